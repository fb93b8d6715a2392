"""Answers against dense computations that hold every mask at full size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling import postprocess
from m2f.modeling.postprocess import DecisionRule, Frame, answer, instance, mask_boxes, panoptic, semantic
from m2f.structures.metadata import Category, Metadata

THINGS = {0, 2}
METADATA = Metadata("test", tuple(Category(i + 1, f"class {i}", i in THINGS) for i in range(5)))
FRAMES = [
    Frame((64, 96), (64, 96), (64, 96)),
    Frame((64, 96), (50, 83), (50, 83)),
    Frame((64, 96), (50, 83), (121, 70)),
    Frame((64, 96), (33, 1), (20, 3)),
]


def make_prediction(queries: int = 12) -> MaskPrediction:
    coarse = torch.randn(2, 8, 5, 7)
    features = F.interpolate(coarse, size=(16, 24), mode="bilinear", align_corners=False)
    return MaskPrediction(torch.randn(2, queries, 6) * 3, torch.randn(2, queries, 8) * 2, features)


def dense_logits(prediction: MaskPrediction, image: int, frame: Frame) -> Tensor:
    masks = prediction.all_mask_logits()[image : image + 1]
    masks = F.interpolate(masks, size=frame.padded, mode="bilinear", align_corners=False)
    masks = masks[..., : frame.size[0], : frame.size[1]]
    return F.interpolate(masks, size=frame.output, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("frame", FRAMES)
def test_semantic_is_the_sum_over_queries(frame: Frame) -> None:
    prediction = make_prediction()
    probabilities = prediction.class_logits[1].softmax(-1)[:, :-1]
    expected = torch.einsum("qk,qhw->khw", probabilities, dense_logits(prediction, 1, frame).sigmoid())
    torch.testing.assert_close(semantic(prediction, 1, frame, METADATA), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("numbers", [1, 5000, 2**21])
def test_strips_are_the_dense_masks_whatever_their_height(
    frame: Frame, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postprocess, "_STRIP_NUMBERS", numbers)
    prediction = make_prediction()
    strips = [logits for _, logits in postprocess._strips(prediction.mask_logits(0), frame)]
    torch.testing.assert_close(torch.cat(strips, 1), dense_logits(prediction, 0, frame), rtol=1e-5, atol=2e-5)


def plain_panoptic(prediction: MaskPrediction, frame: Frame, rule: DecisionRule) -> tuple[Tensor, list[tuple]]:
    """The paper's loop over kept queries."""
    scores, labels = prediction.class_logits[0].softmax(-1).max(-1)
    masks = dense_logits(prediction, 0, frame).sigmoid()
    kept = [q for q in range(len(labels)) if labels[q] != 5 and scores[q] > rule.object_mask_threshold]
    ids, segments, stuff = torch.zeros(frame.output, dtype=torch.int64), [], {}
    owner = (masks[kept] * scores[kept][:, None, None]).argmax(0) if kept else None
    for place, q in enumerate(kept):
        label = int(labels[q])
        won, own = owner == place, masks[q] >= 0.5
        if not own.any() or not (won & own).any() or won.sum() / own.sum() < rule.overlap_threshold:
            continue
        if label in stuff:
            ids[won & own] = stuff[label]
            continue
        segments.append((len(segments) + 1, label, label in THINGS))
        ids[won & own] = len(segments)
        if label not in THINGS:
            stuff[label] = len(segments)
    return ids, segments


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("rule", [DecisionRule(0.0, 0.0), DecisionRule(0.5, 0.5), DecisionRule(0.6, 0.8)])
def test_panoptic_is_the_loop_over_kept_queries(frame: Frame, rule: DecisionRule) -> None:
    prediction = make_prediction(30)
    ids, segments = plain_panoptic(prediction, frame, rule)
    found = panoptic(prediction, 0, frame, METADATA, rule)
    assert float((found.ids != ids).float().mean()) <= 1e-3
    assert [segment[:3] for segment in found.segments] == segments
    assert sorted(set(found.ids.unique().tolist()) - {0}) == [segment.id for segment in found.segments]


def test_panoptic_with_nothing_kept_is_void() -> None:
    found = panoptic(make_prediction(), 0, FRAMES[1], METADATA, DecisionRule(object_mask_threshold=1.0))
    assert found.segments == []
    assert found.ids.shape == (50, 83)
    assert not found.ids.any()


def test_repeated_stuff_is_one_segment_with_the_best_score() -> None:
    features = torch.full((1, 2, 8, 8), -9.0)
    features[0, 0, :, :4], features[0, 1, :, 4:] = 9.0, 9.0
    logits = torch.zeros(1, 2, 6)
    logits[0, 0, 1], logits[0, 1, 1] = 4.0, 8.0  # label 1 is stuff
    prediction = MaskPrediction(logits, torch.eye(2).unsqueeze(0), features)
    frame = Frame((32, 32), (32, 32), (32, 32))
    found = panoptic(prediction, 0, frame, METADATA, DecisionRule())
    assert [segment[:3] for segment in found.segments] == [(1, 1, False)]
    assert found.segments[0].score == pytest.approx(float(logits[0, 1].softmax(-1)[1]))
    assert float((found.ids == 1).float().mean()) > 0.9
    logits[0, :, 1], logits[0, :, 0] = 0.0, 8.0  # label 0 is a thing: two of them
    assert [s.id for s in panoptic(prediction, 0, frame, METADATA, DecisionRule()).segments] == [1, 2]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("top_k", [7, 100])
def test_instances_are_the_best_pairs_that_are_things(frame: Frame, top_k: int) -> None:
    prediction = make_prediction()  # 12 queries, 5 classes: 100 is more than there are pairs
    probabilities = prediction.class_logits[0].softmax(-1)[:, :-1]
    logits = dense_logits(prediction, 0, frame)
    expected = []
    for pair in probabilities.flatten().argsort(descending=True)[:top_k].tolist():
        query, label = divmod(pair, 5)
        if label in THINGS:
            mask = logits[query] > 0
            quality = (logits[query].sigmoid() * mask).sum() / (mask.sum() + 1e-6)
            expected.append((float(probabilities[query, label] * quality), label, mask))
    expected.sort(key=lambda row: -row[0])
    found = instance(prediction, 0, frame, METADATA, DecisionRule(top_k=top_k))
    assert len(found) == len(expected)
    torch.testing.assert_close(found.scores, torch.tensor([row[0] for row in expected]), rtol=0, atol=1e-5)
    visible = [i for i, row in enumerate(expected) if row[0] > 0]  # empty masks all score 0: any order among them
    assert [int(found.labels[i]) for i in visible] == [expected[i][1] for i in visible]
    assert all(float((found.masks[i] != expected[i][2]).float().mean()) <= 1e-3 for i in visible)


def test_instances_without_a_thing_are_none() -> None:
    stuff_only = Metadata("stuff", tuple(Category(i, str(i), False) for i in range(5)))
    found = instance(make_prediction(), 0, FRAMES[2], stuff_only, DecisionRule())
    assert len(found) == 0
    assert found.masks.shape == (0, 121, 70)
    assert found.boxes.shape == (0, 4)


def test_boxes_are_tight_and_half_open() -> None:
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 9, 11] = True
    assert mask_boxes(masks).tolist() == [[3, 2, 9, 5], [11, 9, 12, 10], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_gap_labels_never_win() -> None:
    categories = tuple(Category(i, str(i), i != 1, is_gap=i == 1) for i in range(5))
    metadata = Metadata("gaps", categories)
    prediction = make_prediction()
    prediction.class_logits[..., 1] = 20.0
    frame = FRAMES[1]
    assert 1 not in semantic(prediction, 0, frame, metadata).argmax(0)
    found = panoptic(prediction, 0, frame, metadata, DecisionRule(object_mask_threshold=0.0, overlap_threshold=0.0))
    assert 1 not in [segment.label for segment in found.segments]


def test_answers_are_those_asked_for_and_float32_under_autocast() -> None:
    prediction, frame, rule = make_prediction(), FRAMES[1], DecisionRule()
    plain = answer(prediction, 0, frame, METADATA, rule, ("semantic", "instance"))
    assert list(plain) == ["semantic", "instance"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = answer(prediction, 0, frame, METADATA, rule, ("semantic", "instance"))
    torch.testing.assert_close(cast["semantic"], plain["semantic"], rtol=0, atol=0)
    torch.testing.assert_close(cast["instance"].scores, plain["instance"].scores, rtol=0, atol=0)
    with pytest.raises(ValueError, match="unknown task 'depth'"):
        answer(prediction, 0, frame, METADATA, rule, ("depth",))
