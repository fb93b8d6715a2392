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
