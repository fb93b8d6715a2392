"""Pictures: colours stay in order, regions get theirs, sizes are the answer's."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, contiguous_metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.visualization import draw_instances, draw_panoptic, draw_sample, draw_semantic, draw_task, side_by_side

BLUE, GREEN = (0, 0, 255), (0, 255, 0)
TOY = contiguous_metadata("toy", [Category(1, "disc", True, BLUE), Category(2, "sky", False, GREEN)])
RED = torch.zeros(3, 20, 30, dtype=torch.uint8)
RED[0] = 255


@pytest.fixture(autouse=True)
def _drawn_as_they_are(monkeypatch, request):
    if "magnified" not in request.node.name:
        monkeypatch.setattr("m2f.visualization.READABLE_SIDE", 0)


def left_half() -> torch.Tensor:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[:, :15] = True
    return mask


def instances(**more) -> Instances:
    return Instances(torch.tensor([1]), left_half()[None], **more)


def test_a_red_image_stays_red_where_nothing_is_drawn():
    void = PanopticMap(torch.zeros(20, 30, dtype=torch.int64), [])
    none = instances()[torch.zeros(1, dtype=torch.bool)]
    for picture in (
        draw_panoptic(RED, void, TOY),
        draw_instances(RED, none, TOY),
        draw_sample({"image": RED, "instances": none, "valid": torch.ones(20, 30, dtype=torch.bool)}, TOY),
    ):
        assert picture.dtype == np.uint8
        assert picture.shape == (20, 30, 3)
        assert (picture == (255, 0, 0)).all()


def test_semantic_blends_the_classes_colour_and_stripes_what_is_ignored():
    labels = torch.where(left_half(), 1, 255)
    picture = draw_semantic(RED, labels, TOY)
    assert (picture[0, 0] == (128, 128, 0)).all()  # half red, half green
    right = picture[:, 16:].reshape(-1, 3)
    assert 0.3 < (right == (255, 0, 0)).all(1).mean() < 0.9
    scores = torch.stack([torch.zeros(20, 30), torch.ones(20, 30)])
    assert (draw_semantic(RED, scores, TOY)[0, 0] == (128, 128, 0)).all()


def test_stuff_has_its_own_colour_and_things_have_shades():
    ids = torch.where(left_half(), 4, 9)
    stuff = draw_panoptic(RED, PanopticMap(ids, [Segment(4, 1, False), Segment(9, 1, False)]), TOY)
    assert (stuff[0, 0] == stuff[0, -1]).all()
    things = draw_panoptic(RED, PanopticMap(ids, [Segment(4, 0, True), Segment(9, 0, True)]), TOY)
    assert (things[0, 0] != things[0, -1]).any()
    assert (things[..., 2] > 90).all()  # both still blueish


def test_an_outline_separates_neighbours():
    ids = torch.where(left_half(), 4, 9)
    picture = draw_panoptic(RED, PanopticMap(ids, [Segment(4, 1, False), Segment(9, 0, True)]), TOY)
    assert (picture[0, 14] == GREEN).all()
    assert (picture[0, 13] == (128, 128, 0)).all()


def test_scores_below_the_threshold_are_left_out_and_crowds_are_striped():
    assert (draw_instances(RED, instances(scores=torch.tensor([0.3])), TOY) == (255, 0, 0)).all()
    assert (draw_instances(RED, instances(scores=torch.tensor([0.7])), TOY)[0, 0] == (128, 128, 0)).all()
    unread = Instances(torch.tensor([1]), [{"size": [20, 30], "counts": "no code"}], scores=torch.tensor([0.1]))
    assert (draw_instances(RED, unread, TOY) == (255, 0, 0)).all()  # what is left out is not decoded either
    crowd = draw_instances(RED, instances(is_crowd=torch.tensor([True])), TOY)
    untouched = (crowd[:, :14] == (255, 0, 0)).all(-1).mean()
    assert 0.3 < untouched < 0.9


def test_run_lengths_and_tensors_give_one_picture():
    run = coco_mask.encode(np.asfortranarray(left_half().numpy().astype(np.uint8)))
    same = Instances(torch.tensor([1]), [run])
    assert (draw_instances(RED, same, TOY) == draw_instances(RED, instances(), TOY)).all()


def test_labels_outside_the_classes_are_striped_like_ignored_ones():
    ignored, strange = (draw_semantic(RED, torch.where(left_half(), 1, value), TOY) for value in (255, -1))
    assert (ignored == strange).all()


def test_things_below_the_least_score_are_left_out_of_a_panoptic_picture_and_stuff_is_not():
    ids = torch.where(left_half(), 4, 9)
    value = PanopticMap(ids, [Segment(4, 0, True, score=0.3), Segment(9, 1, False, score=0.3)])
    picture = draw_panoptic(RED, value, TOY, min_score=0.5)
    assert (picture[:, :15] == (255, 0, 0)).all()
    assert (picture[5, 20] == (128, 128, 0)).all()
    assert (picture == draw_task("panoptic", RED, value, TOY, min_score=0.5)).all()
    assert (draw_task("panoptic", RED, value, TOY)[:, :14] != (255, 0, 0)).any(-1).all()


def hollow() -> torch.Tensor:
    """A diamond, which touches its box at four pixels."""
    row, column = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    return (row - 10).abs() + (column - 12).abs() <= 5


def test_boxes_are_drawn_around_things_in_their_colour():
    ids = 4 * hollow() + 9 * hollow().roll(12, 1)  # the second is stuff, and both are too small for a text
    segments = [Segment(4, 0, True), Segment(9, 1, False)]
    plain, boxed = (draw_panoptic(RED, PanopticMap(ids, segments), TOY, boxes=boxes) for boxes in (False, True))
    changed = (plain != boxed).any(-1)
    rows, columns = changed.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 15, 7, 17)
    frame = np.zeros((20, 30), bool)
    frame[5:16, 7:18] = True
    frame[6:15, 8:17] = False
    assert changed[~frame].sum() == 0
    assert (boxed[frame] == plain[5, 12]).all()  # the outline at the diamond's top has that colour too

    instance = Instances(torch.tensor([0]), hollow()[None])
    assert (draw_task("instance", RED, instance, TOY, boxes=True)[5, 7:18] != (255, 0, 0)).any(-1).all()
    crowd = Instances(torch.tensor([0]), hollow()[None], is_crowd=torch.tensor([True]))
    assert (draw_instances(RED, crowd, TOY, boxes=True) == draw_instances(RED, crowd, TOY)).all()


def test_segments_and_masks_of_no_pixel_are_no_fault():
    ids = torch.where(left_half(), 4, 70000)
    value = PanopticMap(ids, [Segment(4, 1, False), Segment(5, 0, True), Segment(70000, 1, False)])
    assert (draw_panoptic(RED, value, TOY)[0, 0] == (128, 128, 0)).all()
    empty = torch.zeros(1, 20, 30, dtype=torch.bool)
    codes = [coco_mask.encode(np.asfortranarray(empty[0].numpy().astype(np.uint8)))]
    for masks in (empty, codes):
        assert (draw_instances(RED, Instances(torch.tensor([0]), masks), TOY, boxes=True) == (255, 0, 0)).all()


def test_large_pictures_have_large_texts_and_lines_and_keep_their_size():
    large = torch.zeros(3, 1200, 1700, dtype=torch.uint8)
    masks = torch.zeros(1, 1200, 1700, dtype=torch.bool)
    masks[:, 100:900, 200:1500] = True
    masks[:, 300:700, 400:1300] = False  # the text lies on the ring
    picture = draw_instances(large, Instances(torch.tensor([0]), masks, torch.tensor([0.9])), TOY, boxes=True)
    assert picture.shape == (1200, 1700, 3)
    rows = (picture == 255).all(-1).any(1).nonzero()[0]
    assert 12 < rows.max() - rows.min() < 30
    line = (picture[400, :, 2] > 90) & (picture[400, :, 0] < 90)
    assert line[200:202].all()
    untouched = picture[350:650, 450:1250]
    assert (untouched == 0).all()


def test_pixels_that_do_not_count_are_striped():
    picture = draw_sample({"image": RED, "valid": left_half()}, TOY)
    assert (picture[:, :15] == (255, 0, 0)).all()
    assert (picture[:, 15:] != (255, 0, 0)).any()


def test_the_picture_has_the_size_of_the_answer():
    labels = torch.zeros(40, 60, dtype=torch.int64)
    assert draw_task("semantic", RED, labels, TOY).shape == (40, 60, 3)


def test_small_pictures_are_magnified_by_a_whole_factor():
    picture = draw_task("semantic", RED, torch.where(left_half(), 1, 255), TOY)
    assert picture.shape == (200, 300, 3)
    assert (picture[:100, :100] == (128, 128, 0)).all(-1).mean() > 0.7  # the rest is text
    assert draw_task("semantic", RED, torch.zeros(200, 320, dtype=torch.int64), TOY).shape == (200, 320, 3)


def test_a_name_is_written_on_a_large_region():
    large = torch.zeros(3, 100, 200, dtype=torch.uint8)
    picture = draw_semantic(large, torch.ones(100, 200, dtype=torch.int64), TOY)
    assert (picture == (255, 255, 255)).all(-1).any()


def test_side_by_side():
    row = side_by_side([np.zeros((20, 30, 3), np.uint8), np.zeros((40, 20, 3), np.uint8)])
    assert row.shape == (20, 30 + 4 + 10, 3)
    assert (row[:, 30:34] == 255).all()
    with pytest.raises(ValueError, match="at least one"):
        side_by_side([])
