"""Test-time augmentation: an answer that turns with the image is a fixed point, and votes are counted as stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from m2f.merging.augmentation import AugmentedPredictor
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.structures.sample import ModelInput, ModelOutput

METADATA = Metadata("made", tuple(Category(i + 1, f"class {i}", is_thing=i < 2) for i in range(4)))
TASKS = ("semantic", "panoptic", "instance")
SIZE = (24, 32)


def truth(shift: int = 0) -> tuple[Tensor, list[Segment]]:
    """(H, W) ids: two things of one class, one of another, stuff, and void at the bottom."""
    ids = torch.full(SIZE, 4)
    ids[2:9, 2 + shift : 11 + shift], ids[2:9, 20:30], ids[12:20, 5:17], ids[22:] = 1, 2, 3, 0
    rows = [(1, 0, 0.9), (2, 0, 0.8), (3, 1, 0.7), (4, 3, 0.6)]
    return ids, [Segment(i, label, label < 2, score=score) for i, label, score in rows]


def answer(ids: Tensor, segments: Sequence[Segment]) -> ModelOutput:
    """All three answers that such a map stands for."""
    scores = torch.zeros(METADATA.num_classes, *ids.shape)
    for segment in segments:
        scores[segment.label][ids == segment.id] = segment.score
    things = [segment for segment in segments if segment.is_thing]
    masks = (
        torch.stack([ids == thing.id for thing in things]) if things else torch.zeros(0, *ids.shape, dtype=torch.bool)
    )
    labels, found = (torch.tensor([getattr(thing, name) for thing in things]) for name in ("label", "score"))
    return {
        "semantic": scores,
        "panoptic": PanopticMap(ids, list(segments)),
        "instance": Instances(labels.long(), masks, found, torch.zeros(len(things), 4)),
    }


class Painted:
    """Answers by what is painted on the image: red is the segment's id; whatever the size and the side."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        return [self._answer(sample) for sample in inputs]

    def _answer(self, sample: ModelInput) -> ModelOutput:
        self.shown.append(tuple(sample["image"].shape[1:]))
        size = (sample["height"], sample["width"])
        ids = F.interpolate(sample["image"][None, :1].float() / 50, size, mode="nearest-exact")[0, 0].round().long()
        return answer(ids, [segment for segment in truth()[1] if (ids == segment.id).any()])


def painted() -> ModelInput:
    """Large enough that every scale shows each answer's pixel alike."""
    image = (truth()[0] * 50).to(torch.uint8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    return {"image": image.expand(3, -1, -1).contiguous(), "height": SIZE[0], "width": SIZE[1]}


def same(one: ModelOutput, other: ModelOutput) -> None:
    torch.testing.assert_close(one["semantic"], other["semantic"])
    assert torch.equal(one["panoptic"].ids, other["panoptic"].ids)
    for a, b in zip(one["panoptic"].segments, other["panoptic"].segments, strict=True):
        assert a[:4] == b[:4]
        assert a.score == pytest.approx(b.score)
    torch.testing.assert_close(one["instance"].scores, other["instance"].scores)
    assert torch.equal(one["instance"].labels, other["instance"].labels)
    assert torch.equal(masks_of(one), masks_of(other))


def masks_of(output: ModelOutput) -> Tensor:
    masks = output["instance"].masks
    return torch.from_numpy(coco_mask.decode(masks)).permute(2, 0, 1).bool() if isinstance(masks, list) else masks


@pytest.mark.parametrize(("flip", "scales"), [(True, (1.0,)), (False, (1.0, 2.0)), (True, (1.0, 1.5, 2.0))])
def test_what_turns_with_the_image_stays(flip: bool, scales: tuple[float, ...]) -> None:
    predict = Painted()
    (merged,) = AugmentedPredictor(predict, METADATA, TASKS, flip=flip, scales=scales)([painted()])
    same(merged, answer(*truth()))
    assert len(predict.shown) == len(scales) * (1 + flip)
    assert set(predict.shown) == {(round(96 * scale), round(128 * scale)) for scale in scales}
    boxes = merged["instance"].boxes
    assert boxes is not None
    assert boxes.tolist() == [[2, 2, 11, 9], [20, 2, 30, 9], [5, 12, 17, 20]]


@pytest.mark.parametrize("scales", [(1.0,), ()])
def test_one_version_is_the_predictor_itself(scales: tuple[float, ...]) -> None:
    inputs = [painted(), painted()]
    outputs = AugmentedPredictor(Painted(), METADATA, TASKS, flip=False, scales=scales)(inputs)
    assert len(outputs) == 2
    same(outputs[0], answer(*truth()))


class Listed:
    """Gives its answers one after the other."""

    def __init__(self, *answers: ModelOutput) -> None:
        self._answers = iter(answers)

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        return [next(self._answers) for _ in inputs]


def merged(*answers: ModelOutput, **thresholds: float) -> ModelOutput:
    scales = tuple(1.0 + n for n in range(len(answers)))
    predict = AugmentedPredictor(Listed(*answers), METADATA, TASKS, flip=False, scales=scales, **thresholds)
    return predict([painted()])[0]


def without(ids: Tensor, segments: list[Segment], gone: int) -> ModelOutput:
    return answer(torch.where(ids == gone, 4, ids), [segment for segment in segments if segment.id != gone])


def test_masks_may_come_as_run_lengths() -> None:
    """Also those of a mirrored image."""
    plain, turned = answer(*truth()), answer(truth()[0].flip(1), truth()[1])
    for output in (plain, turned):
        columns = np.asfortranarray(masks_of(output).permute(1, 2, 0), np.uint8)
        output["instance"] = replace(output["instance"], masks=coco_mask.encode(columns))
    found = AugmentedPredictor(Listed(plain, turned), METADATA, TASKS[2:])([painted()])[0]
    assert torch.equal(masks_of(found), masks_of(answer(*truth())))


def test_what_few_versions_saw_has_their_share_of_the_score() -> None:
    whole, lacking = answer(*truth()), without(*truth(), gone=1)
    found = merged(whole, lacking, lacking, whole)
    scores = found["instance"].scores
    assert scores is not None
    assert scores.tolist() == pytest.approx([0.8, 0.7, 0.45])
    assert [s.score for s in found["panoptic"].segments if s.label == 0] == pytest.approx([0.45, 0.8])
    found = merged(whole, lacking, lacking, whole, object_mask_threshold=0.5)
    assert [s.score for s in found["panoptic"].segments if s.label == 0] == pytest.approx([0.8])
    assert [s.id for s in found["panoptic"].segments] == [1, 2, 3]


def test_a_mask_is_what_half_of_its_finders_say() -> None:
    found = merged(answer(*truth()), answer(*truth(shift=2)), answer(*truth(shift=2)))
    masks = masks_of(found)
    assert torch.equal(masks[0], truth(shift=2)[0] == 1)
    assert len(masks) == 3
    assert torch.equal(found["panoptic"].ids == 1, truth(shift=2)[0] == 1)


def test_touching_objects_of_a_class_stay_two() -> None:
    ids = torch.zeros(SIZE, dtype=torch.int64)
    ids[4:10, 4:10], ids[4:10, 10:16] = 1, 2
    segments = [Segment(1, 0, True, score=0.9), Segment(2, 0, True, score=0.8)]
    found = merged(answer(ids, segments), answer(ids, segments))
    assert torch.equal(found["panoptic"].ids, ids)
    assert len(found["instance"]) == 2


def test_an_image_without_objects() -> None:
    empty = answer(torch.zeros(SIZE, dtype=torch.int64), [])
    found = merged(empty, empty)
    assert len(found["instance"]) == 0
    assert found["instance"].masks == []
    assert found["instance"].boxes.shape == (0, 4)
    assert not found["panoptic"].ids.any()
    assert found["panoptic"].segments == []


def test_labels_cannot_be_averaged() -> None:
    labels = answer(*truth())
    labels["semantic"] = labels["semantic"].max(0).indices
    with pytest.raises(ValueError, match="averages semantic scores"):
        merged(labels, labels)


@pytest.mark.parametrize("scales", [(0.0,), (1.0, -1.0)])
def test_wrong_scales_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must lie above 0"):
        AugmentedPredictor(Painted(), METADATA, TASKS, scales=scales)
