"""Colour thresholds alone must not solve `shapes`: a fair attempt at it, and its panoptic quality."""

import numpy as np
from scipy import ndimage

from m2f.data.datasets.shapes import scene

BINS = 6  # levels per colour channel
LEAST_AREA = 60  # pixels; smaller pieces are left void, which raises the score


def quantised(image):
    """(H, W) one number per colour cell, after a blur that takes noise and fine texture away."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (2, 2, 0))
    cells = (smooth * BINS / 256).astype(int)
    return (cells[..., 0] * BINS + cells[..., 1]) * BINS + cells[..., 2]


def category_map(picture):
    lookup = np.zeros(picture.ids.max() + 1, int)
    lookup[list(picture.categories)] = list(picture.categories.values())
    return lookup[picture.ids]


def color_votes(pictures):
    votes = np.zeros((BINS**3, 8))
    for picture in pictures:
        np.add.at(votes, (quantised(picture.image), category_map(picture)), 1)

    return votes


def predict(image, votes, is_balanced):
    """Segments: connected pieces of one colour cell; stuff of one class is one segment."""
    colors = quantised(image)
    totals = np.maximum(votes.sum(0), 1)
    best = (votes / totals if is_balanced else votes).argmax(1)
    ids, categories = np.zeros(colors.shape, int), {}
    for color in np.unique(colors):
        category = int(best[color])
        pieces, count = ndimage.label(colors == color)
        for piece in range(1, count + 1):
            inside = pieces == piece
            if inside.sum() < LEAST_AREA:
                continue
            segment = 1000 + category if category > 4 else len(categories) + 1
            ids[inside], categories[segment] = segment, category
    return ids, categories


def tally(picture, ids, categories, counts):
    """Add one picture to counts[category] = [sum of IoU, TP, FP, FN]; every pixel of the truth is labelled."""
    pairs, overlap = np.unique(np.stack([picture.ids.ravel(), ids.ravel()]), axis=1, return_counts=True)
    area_true = dict(zip(*np.unique(picture.ids, return_counts=True), strict=True))
    area_said = dict(zip(*np.unique(ids, return_counts=True), strict=True))
    true_left, said_left = dict(picture.categories), dict(categories)
    for (true, said), both in zip(pairs.T.tolist(), overlap.tolist(), strict=True):
        if said and picture.categories[true] == categories[said]:
            iou = both / (area_true[true] + area_said[said] - both)
            if iou > 0.5:
                counts[true_left.pop(true)] += (iou, 1, 0, 0)
                said_left.pop(said)
    for category in said_left.values():
        counts[category] += (0, 0, 1, 0)
    for category in true_left.values():
        counts[category] += (0, 0, 0, 1)


def panoptic_quality(pictures, answer):
    counts = np.zeros((8, 4))
    for picture in pictures:
        tally(picture, *answer(picture), counts)
    iou, tp, fp, fn = counts[1:].T
    return 100 * np.mean(iou / np.maximum(tp + (fp + fn) / 2, 1))


def test_colours_alone_stay_under_30_and_the_truth_scores_100():
    train = [scene("train", index) for index in range(100)]
    val = [scene("val", index) for index in range(40)]
    assert panoptic_quality(val, lambda picture: (picture.ids, picture.categories)) == 100
    votes = color_votes(train)
    by_majority = panoptic_quality(val, lambda picture: predict(picture.image, votes, False))
    by_likelihood = panoptic_quality(val, lambda picture: predict(picture.image, votes, True))
    print(f"PQ of colour thresholds on shapes val: {by_majority:.1f} (majority), {by_likelihood:.1f} (class-balanced)")
    assert max(by_majority, by_likelihood) < 30
