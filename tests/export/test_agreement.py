from __future__ import annotations

import numpy as np
import pytest
import torch

from m2f.evaluation.panoptic import PanopticEvaluator
from m2f.export.agreement import agreement, panoptic_quality
from m2f.export.runtime import Answer, InstanceAnswer, PanopticAnswer
from m2f.structures.metadata import Category, Metadata
from m2f.structures.panoptic import PanopticMap, Segment

METADATA = Metadata("m", tuple(Category(i, str(i), i < 3) for i in range(6)))


def random_panoptic(rng: np.random.Generator, near: np.ndarray | None = None) -> PanopticAnswer:
    """Rectangles of random classes, or those of `near` with some pixels and classes changed."""
    ids = np.zeros((40, 50), np.int64) if near is None else near.copy()
    for i in rng.integers(1, 9, 10 if near is None else 2):
        y, x = rng.integers(0, 30, 2)
        ids[y : y + rng.integers(3, 20), x : x + rng.integers(3, 20)] = i
    ids[:, rng.integers(0, 50, 3)] = 0
    labels = np.where(rng.random(9) < 0.2, rng.integers(0, 6, 9), np.arange(9) % 6)
    return PanopticAnswer(ids, [Segment(int(i), int(labels[i]), labels[i] < 3) for i in np.unique(ids) if i])


def evaluated(found: PanopticAnswer, truth: PanopticAnswer) -> float:
    evaluator = PanopticEvaluator(METADATA)
    maps = [PanopticMap(torch.from_numpy(p.ids), p.segments) for p in (truth, found)]
    evaluator.process([{"panoptic": maps[0]}], [{"panoptic": maps[1]}])
    return evaluator.evaluate()["panoptic/PQ"] / 100


@pytest.mark.parametrize("seed", range(20))
def test_panoptic_quality_is_the_evaluators(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_panoptic(rng)
    for found in (random_panoptic(rng, truth.ids), random_panoptic(rng)):
        assert panoptic_quality(found, truth) == pytest.approx(evaluated(found, truth), abs=1e-12)
    assert panoptic_quality(truth, truth) == 1


def test_panoptic_agreement_sees_what_one_of_them_lacks() -> None:
    whole = random_panoptic(np.random.default_rng(0))
    empty = PanopticAnswer(np.zeros_like(whole.ids), [])
    assert panoptic_quality(empty, empty) == 1
    assert panoptic_quality(whole, empty) == 1  # void is not judged
    for pair in ((whole, empty), (empty, whole)):
        assert agreement(Answer(panoptic=pair[0]), Answer(panoptic=pair[1])) == {"panoptic/PQ": 0}


def instances(masks: np.ndarray, labels: list[int], scores: list[float]) -> InstanceAnswer:
    return InstanceAnswer(np.array(labels), masks, np.array(scores, np.float32), np.zeros((len(labels), 4), np.float32))


def test_instances_agree_in_any_order_and_by_their_scores() -> None:
    masks = np.zeros((4, 20, 20), bool)
    masks[0, :10], masks[1, 10:], masks[2, :, :10] = True, True, True  # the last one is empty
    one = instances(masks, [0, 1, 1, 2], [0.9, 0.8, 0.5, 0.0])
    order = np.array([2, 3, 0, 1])
    other = instances(masks[order], [1, 2, 0, 1], [0.5, 0.0, 0.9, 0.8])
    assert agreement(Answer(instance=one), Answer(instance=other)) == pytest.approx(
        {"instance/matched": 1, "instance/mask_iou": 1}
    )
    half = masks.copy()
    half[1, 10:14] = False
    found = agreement(Answer(instance=one), Answer(instance=instances(half, [0, 1, 2, 2], [0.9, 0.8, 0.5, 0.0])))
    assert found["instance/matched"] == pytest.approx((2 * 0.9 + 2 * 0.8) / 4.4)
    assert found["instance/mask_iou"] == pytest.approx((0.9 + 0.8 * 0.6) / 1.7)


def test_no_instances_at_all_agree_and_none_against_some_do_not() -> None:
    none, some = instances(np.zeros((0, 4, 4), bool), [], []), instances(np.ones((1, 4, 4), bool), [0], [0.5])
    same = {"instance/matched": 1, "instance/mask_iou": 1}
    assert agreement(Answer(instance=none), Answer(instance=none)) == same
    assert agreement(Answer(instance=some), Answer(instance=some)) == same
    assert agreement(Answer(instance=some), Answer(instance=none)) == {"instance/matched": 0, "instance/mask_iou": 0}


def test_semantic_agreement_is_the_share_of_pixels_of_one_class() -> None:
    scores = np.random.default_rng(0).random((3, 10, 10), np.float32)
    other = scores.copy()
    other[:, :4] = other[[1, 2, 0], :4]
    assert agreement(Answer(semantic=scores), Answer(semantic=other)) == {"semantic/pixels": pytest.approx(0.6)}
    assert agreement(Answer(semantic=scores), Answer()) == {}
