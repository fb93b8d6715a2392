"""The heads of a graph beside the model's own post-processing, on the same predictions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from m2f.config import get_cfg
from m2f.export.graphs import (
    Head,
    InstanceHead,
    MaskLogitsHead,
    PanopticHead,
    PanopticMapHead,
    SemanticHead,
    build_graph,
    head_of,
)
from m2f.export.info import ExportInfo
from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling import postprocess
from m2f.modeling.build import build_model
from m2f.modeling.postprocess import DecisionRule, Frame
from m2f.structures.metadata import Category, Metadata

K, Q, B = 7, 12, 3
SIZE = (48, 64)
FRAME = Frame(SIZE, SIZE, SIZE)
NO_GAPS = Metadata("few", tuple(Category(i + 1, str(i), is_thing=i < 3) for i in range(K)))
GAPS = Metadata("gaps", tuple(Category(i + 1, str(i), is_thing=i < 3, is_gap=i in (2, 5)) for i in range(K)))


def predictions(seed: int, confidence: float = 3.0) -> MaskPrediction:
    """Blobs of a few pixels and classes that some queries are sure of, so that segments overlap, merge and lose."""
    random = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.interpolate(
        torch.randn(B, 8, 4, 5, generator=random), size=(SIZE[0] // 4, SIZE[1] // 4), mode="bicubic"
    )
    classes = confidence * torch.randn(B, Q, K + 1, generator=random)
    return MaskPrediction(classes, torch.randn(B, Q, 8, generator=random), features)


def run(head: type[Head], prediction: MaskPrediction, metadata: Metadata, rule: DecisionRule) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = head(metadata, rule)(prediction, torch.Size(SIZE))
    assert len(outputs) == len(head.outputs)
    for output, axes in zip(outputs, head.outputs.values(), strict=True):
        assert output.ndim == len(axes)
    return outputs


@pytest.mark.parametrize("metadata", [NO_GAPS, GAPS], ids=lambda m: m.name)
def test_semantic_scores_are_those_of_the_model(metadata: Metadata) -> None:
    prediction = predictions(0)
    (scores,) = run(SemanticHead, prediction, metadata, DecisionRule())
    for image in range(B):
        expected = postprocess.semantic(prediction, image, FRAME, metadata)
        torch.testing.assert_close(scores[image], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("top_k", [5, 40, 1000])
@pytest.mark.parametrize("metadata", [NO_GAPS, GAPS], ids=lambda m: m.name)
def test_the_things_among_the_instances_are_those_of_the_model(metadata: Metadata, top_k: int) -> None:
    prediction, rule = predictions(1), DecisionRule(top_k=top_k)
    masks, scores, labels = run(InstanceHead, prediction, metadata, rule)
    assert scores.shape == (B, min(top_k, Q * K))
    assert (scores.diff(dim=1) <= 0).all()
    for image in range(B):
        expected = postprocess.instance(prediction, image, FRAME, metadata, rule)
        is_thing = torch.isin(labels[image], torch.tensor(sorted(metadata.thing_labels)))
        torch.testing.assert_close(scores[image][is_thing], expected.scores, atol=1e-5, rtol=0)
        sure = expected.scores > 0  # pairs of score 0, as those of gaps, come in any order
        torch.testing.assert_close(labels[image][is_thing][sure], expected.labels[sure])
        torch.testing.assert_close(masks[image][is_thing][sure], expected.masks[sure].float())


def test_panoptic_outputs_are_what_the_caller_merges() -> None:
    prediction = predictions(2)
    products, masks, scores, labels = run(PanopticHead, prediction, GAPS, DecisionRule())
    torch.testing.assert_close(products, masks * scores[:, :, None, None])
    nothing = labels == K
    assert nothing.any()
    assert not nothing.all()
    assert not scores[nothing].any()
    best = prediction.class_logits.softmax(-1)
    best[..., [2, 5]] = 0
    torch.testing.assert_close(scores[~nothing], best.amax(-1)[~nothing])
    assert not torch.isin(labels, torch.tensor([2, 5])).any()


@pytest.mark.parametrize("rule", [DecisionRule(0.4, 0.8), DecisionRule(0.0, 0.3), DecisionRule(0.999, 0.8)])
@pytest.mark.parametrize("metadata", [NO_GAPS, GAPS], ids=lambda m: m.name)
def test_merged_segments_are_those_of_the_model(metadata: Metadata, rule: DecisionRule) -> None:
    merged = 0
    for seed in range(12):
        prediction = predictions(seed)
        ids, segment_ids, classes, scores = run(PanopticMapHead, prediction, metadata, rule)
        assert (ids.dtype, segment_ids.dtype, classes.dtype) == (torch.int32, torch.int32, torch.int64)
        for image in range(B):
            expected = postprocess.panoptic(prediction, image, FRAME, metadata, rule)
            torch.testing.assert_close(ids[image].long(), expected.ids)
            rows = segment_ids[image].nonzero().flatten()
            assert segment_ids[image][rows].tolist() == [segment.id for segment in expected.segments]
            assert classes[image][rows].tolist() == [segment.label for segment in expected.segments]
            wanted = torch.tensor([segment.score for segment in expected.segments])
            torch.testing.assert_close(scores[image][rows], wanted, atol=1e-6, rtol=0)
            free = segment_ids[image] == 0
            assert (classes[image][free] == K).all()
            assert not scores[image][free].any()
            merged += len(set(ids[image].unique().tolist()) - {0})
    assert merged > 0 or rule.object_mask_threshold > 0.99


def test_stuff_of_one_class_is_one_segment_with_its_best_score() -> None:
    embed = torch.eye(3).unsqueeze(0)
    features = torch.full((1, 3, 12, 16), -9.0)
    features[0, 0, :, :4], features[0, 1, :, 4:8], features[0, 2, :, 8:] = 9.0, 9.0, 9.0
    sure = torch.tensor([2.0, 4.0, 3.0])
    logits = torch.nn.functional.one_hot(torch.tensor([[5, 5, 0]]), K + 1).float() * sure[:, None]
    ids, segment_ids, classes, scores = run(
        PanopticMapHead, MaskPrediction(logits, embed, features), NO_GAPS, DecisionRule(0.1, 0.5)
    )
    assert ids[0, 24].unique_consecutive().tolist() == [1, 2]
    assert segment_ids.tolist() == [[1, 0, 2]]
    assert classes.tolist() == [[5, K, 0]]
    assert scores[0, 0] == logits[0, 1].softmax(-1).max()


def test_a_graph_that_normalises_takes_bytes() -> None:
    cfg = get_cfg()
    former = {"hidden_dim": 32, "dim_feedforward": 32, "nheads": 4, "num_object_queries": 4, "dec_layers": 2}
    head = {"num_classes": K, "convs_dim": 32, "mask_dim": 16, "pixel_decoder": "FPNPixelDecoder"}
    vit = {"name": "custom", "family": "b", "widths": [8, 8, 8, 8, 8], "depths": [1, 1, 1, 1, 1], "dim": 8}
    backbone = {"type": "efficientvit", "efficientvit": vit}
    cfg.merge({"model": {"backbone": backbone, "sem_seg_head": head, "mask_former": former}}, "test")
    model = build_model(cfg, NO_GAPS).eval()
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    batch = model.preprocess([{"image": image} for image in images]).tensor
    for outputs in ("mask_logits", "tao"):
        expected = build_graph(model, "semantic", outputs)(batch)
        torch.testing.assert_close(build_graph(model, "semantic", outputs, True)(images), expected)
    torch.testing.assert_close(
        build_graph(model, "panoptic", "mask_logits")(batch)[0], model.layers(batch)[-1].all_mask_logits()
    )


@pytest.mark.parametrize(
    ("mode", "outputs"),
    [
        *((mode, outputs) for mode in postprocess.TASKS for outputs in ("tao", "mask_logits")),
        ("panoptic", "panoptic_map"),
    ],
)
def test_names_are_those_of_the_description(mode: str, outputs: str, make_info: Callable[..., ExportInfo]) -> None:
    assert tuple(head_of(mode, outputs).outputs) == make_info(mode=mode, outputs=outputs).output_names


def test_every_mask_logit_leaves_the_graph() -> None:
    prediction = predictions(3)
    masks, classes = run(MaskLogitsHead, prediction, NO_GAPS, DecisionRule())
    torch.testing.assert_close(masks[1], prediction.mask_logits(1))
    torch.testing.assert_close(classes, prediction.class_logits)


@pytest.mark.parametrize(
    ("mode", "outputs", "said"),
    [
        ("depth", "tao", "model.mode is 'depth'; it is one of semantic, panoptic, instance"),
        ("instance", "boxes", "export.outputs is 'boxes'; it is one of tao, mask_logits, panoptic_map"),
        ("semantic", "panoptic_map", "export.outputs is panoptic_map, but model.mode is semantic"),
    ],
)
def test_wrong_words_are_refused(mode: str, outputs: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        head_of(mode, outputs)
