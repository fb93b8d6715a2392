"""Answers in numpy against those of modeling/postprocess, and outputs at network size against what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m2f.export.runtime import resizing
from m2f.export.runtime.postprocess import answer
from m2f.export.runtime.resizing import Frame, fine_strips, nearest, sigmoid, strips
from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling import postprocess
from m2f.modeling.postprocess import DecisionRule
from m2f.structures.metadata import Category, Metadata
from m2f.structures.panoptic import Segment
from m2f.structures.sample import TASKS

FRAMES = [
    Frame((64, 96), (64, 96), (64, 96)),
    Frame((64, 96), (50, 83), (50, 83)),
    Frame((64, 96), (50, 83), (121, 70)),
    Frame((64, 96), (33, 1), (20, 3)),
    Frame((32, 32), (31, 7), (301, 211)),
]
EDGE = 2e-5  # logits whose sign rounding may change
GAPS = Metadata("gaps", tuple(Category(i, str(i), i in (0, 2), is_gap=i == 1) for i in range(5)))


def make_prediction(frame: Frame, queries: int = 15) -> MaskPrediction:
    """Smooth masks, some of which hardly differ, and a query that is empty."""
    coarse = torch.randn(2, 8, 5, 7)
    features = F.interpolate(coarse, size=(frame.padded[0] // 4, frame.padded[1] // 4), mode="bilinear")
    embed = torch.randn(2, queries, 8) * 2
    embed[:, 1] = embed[:, 0] * 1.01
    features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    embed = torch.cat([embed, torch.zeros_like(embed[..., :1])], 2)
    embed[:, 2] = F.one_hot(torch.tensor(8), 9) * -9.0
    return MaskPrediction(torch.randn(2, queries, 6) * 3, embed, features)


def outputs_of(prediction: MaskPrediction, image: int) -> dict[str, np.ndarray]:
    return {
        "mask_logits": prediction.mask_logits(image).numpy(),
        "class_logits": prediction.class_logits[image].numpy(),
    }


def rule_of(info) -> DecisionRule:
    return DecisionRule(info.object_mask_threshold, info.overlap_threshold, info.top_k)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(("mask_threshold", "overlap", "top_k"), [(0.0, 0.0, 7), (0.5, 0.5, 40), (0.6, 0.8, 1000)])
def test_answers_are_those_of_the_model(make_info, frame, mask_threshold, overlap, top_k) -> None:
    info = make_info(object_mask_threshold=mask_threshold, overlap_threshold=overlap, top_k=top_k)
    prediction = make_prediction(frame)
    for image in range(2):
        expected = postprocess.answer(prediction, image, postprocess.Frame(*frame), info.metadata, rule_of(info), TASKS)
        found = answer(outputs_of(prediction, image), frame, info, TASKS)
        logits = torch.cat([s for _, s in postprocess._strips(prediction.mask_logits(image), frame)], 1).numpy()
        assert_same_semantic(found.semantic, expected["semantic"])
        assert_same_panoptic(found.panoptic, expected["panoptic"], logits)
        assert_same_instances(found.instance, expected["instance"], logits)


def assert_same_semantic(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def assert_same_panoptic(found, expected, logits: np.ndarray) -> None:
    assert found.ids.dtype == np.int64
    assert [s[:4] for s in found.segments] == [s[:4] for s in expected.segments]
    np.testing.assert_allclose([s.score for s in found.segments], [s.score for s in expected.segments], atol=1e-5)
    different = found.ids != expected.ids.numpy()
    if different.any():  # only where a mask ends, or where two queries want a pixel equally
        best = np.sort(1 / (1 + np.exp(-logits[:, different])), 0)
        assert ((np.abs(logits[:, different]) < EDGE).any(0) | (best[-1] - best[-2] < EDGE)).all()


def assert_same_instances(found, expected, logits: np.ndarray) -> None:
    visible = int((expected.scores > 0).sum())  # empty masks score 0: any order among them
    assert len(found.labels) == len(expected)
    assert found.labels[:visible].tolist() == expected.labels[:visible].tolist()
    assert (found.labels.dtype, found.scores.dtype, found.boxes.dtype) == (np.int64, np.float32, np.float32)
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=1e-5)
    for mine, theirs, box in zip(found.masks[:visible], expected.masks.numpy(), expected.boxes.numpy(), strict=False):
        assert np.abs(logits[:, mine != theirs]).min(0, initial=0).max(initial=0) < EDGE
        if (mine == theirs).all():
            assert (found.boxes[[np.array_equal(mine, m) for m in found.masks]] == box).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_gaps_and_nothing_kept(make_info, threshold) -> None:
    frame, info = FRAMES[2], make_info(metadata=GAPS, object_mask_threshold=threshold, top_k=1000)
    prediction = make_prediction(frame)
    prediction.class_logits[..., 1] = 20.0
    expected = postprocess.answer(prediction, 0, postprocess.Frame(*frame), GAPS, rule_of(info), TASKS)
    found = answer(outputs_of(prediction, 0), frame, info, TASKS)
    assert (found.semantic[1] == -1).all()
    assert [s[:3] for s in found.panoptic.segments] == [s[:3] for s in expected["panoptic"].segments]
    assert (len(found.panoptic.segments) == 0) == (threshold == 1.0)
    assert len(found.instance.labels) == len(expected["instance"])


def test_repeated_stuff_is_one_segment_and_a_share_may_equal_the_threshold(make_info) -> None:
    features = torch.full((1, 3, 8, 8), -9.0)
    features[0, 0, :, :4], features[0, 1, :, 4:], features[0, 2, :, 4:] = 9.0, 9.0, 8.9
    logits = torch.zeros(1, 3, 6)
    logits[0, 0, 1], logits[0, 1, 1], logits[0, 2, 0] = 4.0, 8.0, 6.0
    prediction = MaskPrediction(logits, torch.eye(3).unsqueeze(0), features)
    frame, info = Frame((32, 32), (32, 32), (32, 32)), make_info()
    expected = postprocess.answer(prediction, 0, postprocess.Frame(*frame), info.metadata, rule_of(info), TASKS)
    found = answer(outputs_of(prediction, 0), frame, info, TASKS).panoptic
    assert [s[:3] for s in found.segments] == [(1, 1, False)]
    assert found.segments[0].score == pytest.approx(expected["panoptic"].segments[0].score, abs=1e-6)
    assert (found.ids == expected["panoptic"].ids.numpy()).all()


def test_no_thing_is_no_instance(make_info) -> None:
    info = make_info(metadata=Metadata("stuff", tuple(Category(i, str(i), False) for i in range(5))))
    found = answer(outputs_of(make_prediction(FRAMES[2]), 0), FRAMES[2], info, ["instance"]).instance
    assert found.masks.shape == (0, 121, 70)
    assert found.boxes.shape == (0, 4)
    assert found.labels.shape == found.scores.shape == (0,)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("numbers", [1, 5000, 2**21])
@pytest.mark.parametrize(("resized", "stride"), [(strips, 4), (fine_strips, 1)])
def test_strips_are_the_dense_maps_whatever_their_height(frame, numbers, resized, stride, monkeypatch) -> None:
    monkeypatch.setattr(resizing, "_STRIP_NUMBERS", numbers)
    maps = torch.randn(3, frame.padded[0] // stride, frame.padded[1] // stride) * 20
    dense = F.interpolate(maps[None], size=frame.padded, mode="bilinear")[..., : frame.size[0], : frame.size[1]]
    dense = F.interpolate(dense, size=frame.output, mode="bilinear")[0].numpy()
    parts = list(resized(maps.numpy(), frame))
    assert [rows.start for rows, _ in parts] == [0, *(rows.stop for rows, _ in parts[:-1])]
    np.testing.assert_allclose(np.concatenate([part for _, part in parts], 1), dense, rtol=1e-5, atol=5e-5)


def test_sigmoid_is_exact_for_small_results_and_never_overflows() -> None:
    logits = np.array([-1e4, -80, -20, -1e-3, 0, 1e-3, 20, 1e4], np.float32)
    found = sigmoid(logits.copy())
    np.testing.assert_allclose(found[1:], torch.from_numpy(logits[1:]).double().sigmoid().numpy(), rtol=3e-6)
    assert 0 <= found[0] < 1e-37


def test_semantic_scores_at_network_size_are_cut_out_and_resized(make_info) -> None:
    info, frame = make_info(mode="semantic", outputs="tao"), FRAMES[2]
    scores = np.random.default_rng(0).random((5, *frame.padded), np.float32)
    cut = torch.from_numpy(scores)[None, :, : frame.size[0], : frame.size[1]]
    expected = F.interpolate(cut, size=frame.output, mode="bilinear", align_corners=False)[0].numpy()
    found = answer({"pred_masks": scores}, frame, info, ["semantic"])
    np.testing.assert_allclose(found.semantic, expected, atol=1e-5)
    assert found.panoptic is None


@pytest.mark.parametrize("frame", FRAMES[:2])
def test_tao_panoptic_at_its_own_size_is_the_models(make_info, frame) -> None:
    info = make_info(outputs="tao", object_mask_threshold=0.0, overlap_threshold=0.1)
    prediction = make_prediction(frame, 30)
    logits = F.interpolate(prediction.all_mask_logits()[:1], size=frame.padded, mode="bilinear")[0]
    scores, labels = prediction.class_logits[0].softmax(-1).max(-1)
    outputs = {
        "pred_masks": logits.sigmoid().numpy(),
        "pred_scores": (scores * (labels < 5)).numpy(),
        "pred_classes": labels.numpy(),
    }
    expected = postprocess.panoptic(prediction, 0, postprocess.Frame(*frame), info.metadata, rule_of(info))
    cut = logits.numpy()[:, : frame.size[0], : frame.size[1]]
    assert_same_panoptic(answer(outputs, frame, info, ["panoptic"]).panoptic, expected, cut)
    assert expected.segments


def test_tao_instances_keep_their_order_and_lose_stuff(make_info) -> None:
    info, frame = make_info(mode="instance", outputs="tao"), Frame((32, 64), (32, 40), (64, 80))
    masks = np.zeros((4, 32, 64), np.float32)
    masks[0, 4:8, 6:10] = masks[1] = masks[2, 30:, 38:44] = 1
    outputs = {
        "pred_masks": masks,
        "pred_scores": np.array([0.9, 0.8, 0.7, 0.0], np.float32),
        "pred_classes": np.array([2, 1, 0, 0]),  # class 1 is stuff
    }
    found = answer(outputs, frame, info, ["instance"]).instance
    assert found.labels.tolist() == [2, 0, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0])
    assert found.boxes.tolist() == [[12, 8, 20, 16], [76, 60, 80, 64], [0, 0, 0, 0]]
    assert found.masks.sum((1, 2)).tolist() == [64, 16, 0]
    assert found.masks.shape == (3, 64, 80)


def test_a_merged_map_is_looked_up(make_info) -> None:
    info, frame = make_info(outputs="panoptic_map"), Frame((32, 32), (20, 24), (10, 48))
    ids = np.zeros((32, 32), np.int32)
    ids[:10], ids[10:20, :12], ids[25:] = 1, 2, 3  # 3 lies outside the picture
    outputs = {
        "panoptic_ids": ids,
        "segment_ids": np.array([0, 1, 0, 2, 3], np.int32),
        "segment_classes": np.array([5, 1, 1, 2, 0]),
        "segment_scores": np.array([0, 0.5, 0, 0.75, 0.25], np.float32),
    }
    found = answer(outputs, frame, info, ["panoptic"]).panoptic
    assert found.segments == [Segment(1, 1, False, score=0.5), Segment(2, 2, True, score=0.75)]
    assert found.ids.dtype == np.int64
    assert (found.ids == np.array([[1] * 48] * 5 + [[2] * 24 + [0] * 24] * 5)).all()


def test_nearest_takes_the_pixel_under_the_centre() -> None:
    row = np.arange(5)[None]
    assert nearest(row, Frame((1, 5), (1, 5), (1, 10)))[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert nearest(row, Frame((1, 5), (1, 5), (1, 2)))[0].tolist() == [1, 3]
    assert nearest(row, Frame((1, 5), (1, 3), (1, 3)))[0].tolist() == [0, 1, 2]


def test_half_precision_outputs_are_answered_in_float32(make_info) -> None:
    outputs = {name: values.astype(np.float16) for name, values in outputs_of(make_prediction(FRAMES[1]), 0).items()}
    found = answer(outputs, FRAMES[1], make_info(), TASKS)
    assert found.semantic.dtype == found.instance.scores.dtype == np.float32
