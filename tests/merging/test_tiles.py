"""Tiles: a predictor that knows the truth of each gives the truth back, and one that errs is joined all the same."""

from __future__ import annotations

import tracemalloc
from itertools import product
from types import ModuleType

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from m2f.merging.grid import tile_grid
from m2f.merging.seams import InstanceSeams, PanopticSeams
from m2f.merging.tiles import TiledPredictor
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.structures.sample import ModelInput, ModelOutput

TASKS = ("semantic", "panoptic", "instance")
TILE = (101, 137)  # divides nothing


def tiled(predict, metadata: Metadata, image: ModelInput, tasks=TASKS, tile=TILE, **options) -> ModelOutput:
    return TiledPredictor(predict, metadata, tasks, tile, **options)([image])[0]


def decoded(found: Instances) -> Tensor:
    assert isinstance(found.masks, list)
    return torch.from_numpy(coco_mask.decode(found.masks)).permute(2, 0, 1).bool()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("tile", "overlap"), [((101, 137), 0.25), ((64, 80), 0.25), ((90, 400), 0.1), ((101, 97), 0.6)]
)
def test_the_truth_of_tiles_is_the_truth(scenes: ModuleType, seed: int, tile: tuple[int, int], overlap: float) -> None:
    truth = scenes.cells(seed)
    oracle = scenes.Oracle(truth)
    output = tiled(oracle, scenes.METADATA, scenes.coded(*truth.ids.shape), tile=tile, overlap=overlap, batch_size=3)
    assert_is_truth(output, scenes.answers(truth, scenes.METADATA))
    assert all(images <= 3 for images, *_ in oracle.shown)
    assert {tuple(size) for _, *size in oracle.shown} == {(tile[0], min(tile[1], truth.ids.shape[1]))}


def assert_is_truth(output: ModelOutput, truth: ModelOutput) -> None:
    known = truth["semantic"].sum(0) > 0
    assert torch.equal(output["semantic"][known], truth["semantic"].max(0).indices[known])
    same_segments(output["panoptic"], truth["panoptic"])
    found, expected = output["instance"], truth["instance"]
    order = torch.argsort(expected.scores, descending=True)
    assert torch.equal(decoded(found), expected.masks[order])
    assert torch.equal(found.labels, expected.labels[order])
    torch.testing.assert_close(found.scores, expected.scores[order])
    corners = [mask.nonzero() for mask in expected.masks[order]]
    boxes = torch.stack([torch.cat([at.amin(0).flip(0), at.amax(0).flip(0) + 1]) for at in corners])
    assert torch.equal(found.boxes, boxes.float())


def same_segments(found: PanopticMap, truth: PanopticMap) -> None:
    """Equal but for the order of the ids."""
    assert sorted(s.id for s in found.segments) == list(range(1, len(truth.segments) + 1))
    assert torch.equal(found.ids == 0, truth.ids == 0)
    rows = {segment.id: segment for segment in found.segments}
    for segment in truth.segments:
        (id,) = found.ids[truth.ids == segment.id].unique().tolist()
        assert rows[id][1:3] == segment[1:3]
        assert rows[id].score == pytest.approx(segment.score)


@pytest.mark.parametrize("seed", range(2))
def test_the_place_of_the_grid_does_not_matter(scenes: ModuleType, seed: int) -> None:
    truth = scenes.cells(seed)
    counts = set()
    for top, left in ((0, 0), (1, 50), (70, 8)):
        ids = torch.nn.functional.pad(truth.ids, (left, 99 - left, top, 70 - top))
        moved = PanopticMap(ids, truth.segments)
        output = tiled(scenes.Oracle(moved), scenes.METADATA, scenes.coded(*ids.shape), TASKS[1:], (64, 80))
        same_segments(output["panoptic"], moved)
        counts.add(len(output["instance"]))
    assert counts == {sum(segment.is_thing for segment in truth.segments)}


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_tiles_does_not_matter(scenes: ModuleType, seed: int) -> None:
    truth = scenes.cells(seed)
    size = tuple(truth.ids.shape)
    tiles = tile_grid(size, (64, 80), 0.25)
    oracle, image = scenes.Oracle(truth, spoil=scenes.Unsteady(truth, seed)), scenes.coded(*size)["image"]
    parts = [oracle([{"image": image[:, b.top : b.bottom, b.left : b.right]}])[0] for b, *_ in tiles]
    results = []
    for order in (range(len(tiles)), reversed(range(len(tiles))), torch.randperm(len(tiles)).tolist()):
        panoptic, instances = PanopticSeams(size, tiles, scenes.METADATA), InstanceSeams(size, tiles, scenes.METADATA)
        for number in order:
            panoptic.add(number, parts[number]["panoptic"])
            instances.add(number, parts[number]["instance"])
        results.append((panoptic.result(), instances.result()))
    (first_map, first_instances), *others = results
    for panoptic, instances in others:
        assert torch.equal(panoptic.ids, first_map.ids)
        torch.testing.assert_close(instances.scores, first_instances.scores)
        assert instances.masks == first_instances.masks


@pytest.mark.parametrize("seed", range(3))
def test_unsteady_borders_are_joined(scenes: ModuleType, seed: int) -> None:
    """Touching things of two classes: each comes out once, and no two as one."""
    truth = scenes.cells(seed, count=100)
    oracle = scenes.Oracle(truth, spoil=scenes.Unsteady(truth, seed))
    output = tiled(oracle, scenes.METADATA, scenes.coded(*truth.ids.shape), TASKS[1:])
    things = [row for row, segment in enumerate(truth.segments) if segment.is_thing]
    _, iou = scenes.overlaps(truth, output["panoptic"])
    assert (iou[things].amax(1) > 0.6).float().mean() >= 0.95
    assert ((iou[things] > 0.2).sum(1) == 1).float().mean() >= 0.95
    instances = output["instance"]
    expected = scenes.answers(truth, scenes.METADATA)["instance"].masks.flatten(1).float()
    common = decoded(instances).flatten(1).float() @ expected.T
    assert (common.amax(1) > 0.7 * common.sum(1)).all()  # none covers two
    assert abs(len(instances) - len(things)) <= 0.05 * len(things)


def answer_of(ids: Tensor, label: int = 0, score: float = 0.9, others: int = 2) -> PanopticMap:
    """Things of one label, on stuff."""
    rows = [Segment(int(id), label, True, score=score) for id in ids.unique() if id > 0]
    return PanopticMap(torch.where(ids > 0, ids, 99), [*rows, Segment(99, others, False, score=0.5)])


def merge(scenes: ModuleType, *maps: PanopticMap) -> tuple[PanopticMap, Instances]:
    """Two tiles of 40 x 40 side by side, with 20 columns in common: the cut lies at column 30."""
    size = (40, 60)
    tiles = tile_grid(size, (40, 40), 0.5)
    panoptic, instances = PanopticSeams(size, tiles, scenes.METADATA), InstanceSeams(size, tiles, scenes.METADATA)
    for number, panoptic_map in enumerate(maps):
        panoptic.add(number, panoptic_map)
        instances.add(number, scenes.answers(panoptic_map, scenes.METADATA)["instance"])
    return panoptic.result(), instances.result()


def halves(scene: Tensor) -> tuple[Tensor, Tensor]:
    return scene[:, :40].clone(), scene[:, 20:].clone()


def test_an_object_that_the_shallower_tile_misses_stays_whole(scenes: ModuleType) -> None:
    scene = torch.zeros(40, 60, dtype=torch.int64)
    scene[10:20, 10:34] = 1
    one, other = halves(scene)
    panoptic, instances = merge(scenes, answer_of(one), answer_of(other * 0))
    assert torch.equal(decoded(instances)[0], scene == 1)
    assert torch.equal(panoptic.ids != panoptic.ids[0, 0], scene == 1)
    assert instances.scores.tolist() == pytest.approx([0.9 * 20 / 24])  # 4 of 24 columns lie deeper in the other tile


def test_an_object_that_the_deeper_tile_misses_is_none(scenes: ModuleType) -> None:
    scene = torch.zeros(40, 60, dtype=torch.int64)
    scene[10:20, 27:39] = 1
    one, other = halves(scene)
    panoptic, instances = merge(scenes, answer_of(one), answer_of(other * 0))
    assert len(instances) == 0
    assert [segment.label for segment in panoptic.segments] == [2]
    assert (panoptic.ids[10:20, 27:30] == 0).all()  # void: the deepest tile saw there what is not there


def test_a_score_is_weighted_by_area(scenes: ModuleType) -> None:
    scene = torch.zeros(40, 60, dtype=torch.int64)
    scene[10:20, 0:60] = 1
    one, other = halves(scene)
    panoptic, instances = merge(scenes, answer_of(one, score=0.9), answer_of(other, score=0.6))
    assert instances.scores.tolist() == pytest.approx([0.75])
    assert [segment.score for segment in panoptic.segments] == pytest.approx([0.5, 0.75])
    assert instances.boxes.tolist() == [[0, 10, 60, 20]]


def test_things_of_two_labels_are_never_one(scenes: ModuleType) -> None:
    scene = torch.zeros(40, 60, dtype=torch.int64)
    scene[10:20, 0:60] = 1
    one, other = halves(scene)
    panoptic, instances = merge(scenes, answer_of(one, label=0), answer_of(other, label=1))
    assert sorted(instances.labels.tolist()) == [0, 1]
    assert [segment.label for segment in panoptic.segments if segment.is_thing] == [0, 1]
    assert (panoptic.ids[10:20] > 1).all()
    assert panoptic.ids[15, 29] != panoptic.ids[15, 30]


def test_what_a_tile_tells_apart_stays_apart(scenes: ModuleType) -> None:
    """The other tile sees one object where this one sees two."""
    scene = torch.zeros(40, 60, dtype=torch.int64)
    scene[10:20, 0:60], scene[20:24, 0:60] = 1, 2
    one, other = halves(scene)
    _, instances = merge(scenes, answer_of(one), answer_of((other > 0).long()))
    assert len(instances) == 2
    assert decoded(instances).sum(0).max() == 1


def test_semantic_is_the_mean_of_scores_that_fade_towards_borders(scenes: ModuleType) -> None:
    size, tile = (50, 60), (24, 30)
    tiles = tile_grid(size, tile, 0.3)
    scores = torch.rand(len(tiles), 4, *tile)
    scores[:, 3] += 5
    gap = (*scenes.METADATA.categories[:3], Category(9, "gap", False, is_gap=True))
    given = iter([{"semantic": row} for row in scores])
    output = tiled(lambda _: [next(given)], Metadata("gap", gap), scenes.coded(*size), TASKS[:1], tile, overlap=0.3)
    total = torch.zeros(4, *size)
    ramps = [1 - (2 * (torch.arange(edge) + 0.5) / edge - 1).abs() for edge in tile]
    for (box, *_), row in zip(tiles, scores, strict=True):
        total[:, box.top : box.bottom, box.left : box.right] += row * ramps[0][:, None] * ramps[1]
    assert torch.equal(output["semantic"], total[:3].max(0).indices)


def test_an_image_within_a_tile_goes_straight_through(scenes: ModuleType) -> None:
    given = ModelOutput(semantic=torch.zeros(4, 7, 9))
    shown = []
    small: ModelInput = {"image": torch.zeros(3, *TILE, dtype=torch.uint8), "height": 7, "width": 9, "file_name": "a"}
    predict = TiledPredictor(lambda inputs: shown.append(inputs) or [given], scenes.METADATA, TASKS, TILE)
    assert predict([small])[0] is given
    assert shown[0][0] is small


def test_a_scene_without_objects(scenes: ModuleType) -> None:
    nothing = PanopticMap(torch.zeros(150, 150, dtype=torch.int64), [])
    output = tiled(scenes.Oracle(nothing), scenes.METADATA, scenes.coded(150, 150))
    assert len(output["instance"]) == 0
    assert output["instance"].boxes.shape == (0, 4)
    assert output["panoptic"].segments == []
    assert not output["panoptic"].ids.any()


def test_mistakes_are_named(scenes: ModuleType) -> None:
    def labels(inputs: list[ModelInput]) -> list[ModelOutput]:
        return [{"semantic": torch.zeros(sample["height"], sample["width"]).long()} for sample in inputs]

    large = scenes.coded(150, 150)
    with pytest.raises(ValueError, match="the predictor gives labels"):
        tiled(labels, scenes.METADATA, large, TASKS[:1])
    with pytest.raises(ValueError, match=r"x\.png: tiles need it at its own size \(75, 75\), not \(150, 150\)"):
        tiled(labels, scenes.METADATA, {**large, "height": 75, "width": 75, "file_name": "x.png"}, TASKS[:1])
    with pytest.raises(ValueError, match="unknown task 'depth'"):
        TiledPredictor(labels, scenes.METADATA, ["depth"], TILE)
    for tile, options, message in (
        ((0, 5), {}, r"a tile of \[0, 5\]"),
        ((5,), {}, r"\[height, width\]"),
        (TILE, {"overlap": 0.0}, "a tile overlap of 0.0"),
        (TILE, {"overlap": 1.0}, "between 0 and 1"),
        (TILE, {"batch_size": 0}, "0 tiles at a time"),
    ):
        with pytest.raises(ValueError, match=message):
            TiledPredictor(labels, scenes.METADATA, TASKS, tile, **options)


class Discs:
    """Knows discs of one class in an image of any size, and draws those of a tile only."""

    def __init__(self, side: int, per_side: int) -> None:
        pitch = side // per_side
        middles = range(pitch // 2, side, pitch)
        self.centres = list(product(middles, middles))
        self.radius, self.corners = pitch // 2 - 2, iter(tile_grid((side, side), (256, 256), 0.25))

    def __call__(self, _inputs: list[ModelInput]) -> list[ModelOutput]:
        box = next(self.corners).box
        y, x = np.ogrid[box.top : box.bottom, box.left : box.right]
        ids = np.zeros((box.bottom - box.top, box.right - box.left), np.int64)
        for number, (top, left) in enumerate(self.centres, 1):
            ids[(y - top) ** 2 + (x - left) ** 2 <= self.radius**2] = number
        rows = [Segment(number, 0, True) for number in np.unique(ids)[1:].tolist()]
        panoptic = PanopticMap(torch.from_numpy(ids), rows)
        masks = panoptic.ids == torch.tensor([row.id for row in rows]).view(-1, 1, 1)
        instances = Instances(torch.zeros(len(rows), dtype=torch.int64), masks, torch.ones(len(rows)))
        return [{"panoptic": panoptic, "instance": instances}]


def test_memory_does_not_grow_with_the_number_of_objects(scenes: ModuleType) -> None:
    side = 640
    image: ModelInput = {"image": torch.zeros(3, side, side, dtype=torch.uint8), "height": side, "width": side}
    peaks = {}
    for per_side in (3, 10):
        predict = Discs(side, per_side)
        tracemalloc.start()  # numpy's memory: masks of the whole image and whatever is made of them
        output = tiled(predict, scenes.METADATA, image, TASKS[1:], (256, 256))
        peaks[per_side] = tracemalloc.get_traced_memory()[1] - 8 * side**2  # the map of ids
        tracemalloc.stop()
        assert len(output["instance"]) == len(output["panoptic"].segments) == per_side**2
    assert max(peaks.values()) < 10 * 2**20  # the masks would be 40 MB
    assert peaks[10] < 2 * peaks[3]
