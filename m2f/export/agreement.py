"""How far two answers to one picture agree, as shares: 1 is the same. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m2f.export.runtime.answers import Answer, InstanceAnswer, PanopticAnswer

_PIXELS_AT_A_TIME = 2**18


def agreement(one: Answer, other: Answer) -> dict[str, float]:
    """Measures of the tasks that both answer, as "<task>/<measure>", in [0, 1]; the order of the two does not matter.

    - semantic/pixels: pixels with the same best class.
    - panoptic/PQ: the lower of the panoptic qualities of one against the other and the other way round, which differ
      where one of them has a segment and the other none at all.
    - instance/matched: objects with a partner of the same class and more than half of their common area, weighted by
      their scores, so that what nobody would draw hardly counts.
    - instance/mask_iou: mean intersection over union of those, weighted likewise.
    """
    measures: dict[str, float] = {}
    if one.semantic is not None and other.semantic is not None:
        measures["semantic/pixels"] = float((one.semantic.argmax(0) == other.semantic.argmax(0)).mean())
    if one.panoptic is not None and other.panoptic is not None:
        both = panoptic_quality(one.panoptic, other.panoptic), panoptic_quality(other.panoptic, one.panoptic)
        measures["panoptic/PQ"] = min(both)
    if one.instance is not None and other.instance is not None:
        matched, iou = _objects(one.instance, other.instance)
        measures |= {"instance/matched": matched, "instance/mask_iou": iou}
    return measures


def panoptic_quality(found: PanopticAnswer, truth: PanopticAnswer) -> float:
    """PQ in [0, 1], the mean over classes that either has; 1 where both are empty. Void in `truth` is not judged.

    Source: Kirillov et al., Panoptic Segmentation, arXiv:1801.00868.
    """
    overlap = _overlap(truth.ids, found.ids)
    (true_ids, true_labels), (found_ids, found_labels) = _segments(truth), _segments(found)
    both = overlap[np.ix_(true_ids, found_ids)]
    found_area, unjudged = overlap[:, found_ids].sum(0), overlap[0, found_ids]
    iou = both / np.maximum(overlap[true_ids].sum(1)[:, None] + found_area - unjudged - both, 1)
    match = (iou > 0.5) & (true_labels[:, None] == found_labels)  # at most one per row and column
    missed, spurious = ~match.any(1), ~match.any(0) & (2 * unjudged <= found_area)
    qualities = []
    for label in np.union1d(true_labels, found_labels):
        hits = match & (true_labels[:, None] == label)
        errors = (missed & (true_labels == label)).sum() + (spurious & (found_labels == label)).sum()
        if hits.any() or errors:
            qualities.append(iou[hits].sum() / (hits.sum() + errors / 2))
    return float(np.mean(qualities)) if qualities else 1.0


def _overlap(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of each pair of ids."""
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    return np.bincount((rows * shape[1] + columns).ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def _segments(panoptic: PanopticAnswer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and labels, (N,) each."""
    rows = np.array([(s.id, s.label) for s in panoptic.segments], np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _objects(one: InstanceAnswer, other: InstanceAnswer) -> tuple[float, float]:
    """Share of the objects that have a partner, and the partners' mean IoU, both by score; 1, 1 without any score."""
    total = matched = common = 0.0
    for label in np.union1d(one.labels, other.labels):
        mine, theirs = one.labels == label, other.labels == label
        scores, their_scores = one.scores[mine].astype(np.float64), other.scores[theirs].astype(np.float64)
        weights = scores[:, None] + their_scores
        total += float(scores.sum() + their_scores.sum())
        iou = _mask_iou(one.masks[mine], other.masks[theirs])
        for pair in _partners(iou):
            matched += float(weights[pair])
            common += float(weights[pair] * iou[pair])
    return (matched / total if total else 1.0), (common / matched if matched else float(total == 0))


def _partners(iou: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of rows and columns, the most alike first, each in one pair at most."""
    pairs: list[tuple[int, int]] = []
    left = np.where(iou > 0.5, iou, 0.0)
    while left.any():
        row, column = np.unravel_index(left.argmax(), left.shape)
        pairs.append((int(row), int(column)))
        left[row], left[:, column] = 0.0, 0.0
    return pairs


def _mask_iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, M) of (N, H, W) and (M, H, W) masks; 0 for two empty ones."""
    pixels = one.shape[1] * one.shape[2]
    one, other = one.reshape(-1, pixels), other.reshape(-1, pixels)
    both = np.zeros((len(one), len(other)))
    for start in range(0, pixels, _PIXELS_AT_A_TIME):
        part = slice(start, start + _PIXELS_AT_A_TIME)
        both += one[:, part].astype(np.float32) @ other[:, part].astype(np.float32).T
    return both / np.maximum(one.sum(1)[:, None] + other.sum(1) - both, 1)
