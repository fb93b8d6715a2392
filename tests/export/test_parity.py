"""Real exports of a tiny model: the certificate, and the runtime's answers beside the model's own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2f.config import get_cfg
from m2f.export.graphs import MaskGraph, build_graph, head_of
from m2f.export.info import METADATA_KEY, ExportInfo
from m2f.export.onnx_file import export_onnx
from m2f.export.parity import certify
from m2f.export.plugin import save_without_plugin_nodes
from m2f.export.runtime import OnnxModel
from m2f.modeling.build import build_model
from m2f.modeling.maskformer import MaskFormer
from m2f.structures.metadata import Category, Metadata
from m2f.structures.sample import TASKS

METADATA = Metadata("tiny", tuple(Category(i + 1, str(i), i < 3) for i in range(5)))
# Every mode and outputs once, each with one more thing to get right: an export takes seconds.
EVERY: dict[tuple[str, str], dict[str, bool]] = {
    ("semantic", "tao"): {"uint8": True},
    ("panoptic", "tao"): {},
    ("instance", "tao"): {},
    ("panoptic", "panoptic_map"): {"on_cpu": False},
    ("panoptic", "mask_logits"): {"dynamic_size": True},
}
FRAME = (64, 96)
TOLERANCE = 1e-3
MODEL = {
    "object_mask_threshold": 0.1,
    "overlap_threshold": 0.3,
    "test_topk_per_image": 20,
    "backbone": {
        "type": "efficientvit",
        "efficientvit": {
            "name": "custom",
            "family": "b",
            "widths": [8, 8, 16, 16, 16],
            "depths": [1, 1, 1, 1, 1],
            "dim": 8,
        },
    },
    "sem_seg_head": {
        "num_classes": 5,
        "convs_dim": 32,
        "mask_dim": 16,
        "transformer_enc_layers": 1,
        "encoder_dim_feedforward": 32,
    },
    "mask_former": {
        "hidden_dim": 32,
        "nheads": 4,
        "dim_feedforward": 32,
        "dec_layers": 2,
        "num_object_queries": 6,
    },
}
Export = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def model() -> MaskFormer:
    """Random, but as sure of its masks and classes as a trained one: no answer hangs on the last digits."""
    torch.manual_seed(2)
    cfg = get_cfg()
    cfg.merge({"model": MODEL}, "test")
    built = build_model(cfg, METADATA)
    assert isinstance(built, MaskFormer)
    with torch.no_grad():
        built.transformer_decoder.class_embed.weight.mul_(8)
        built.transformer_decoder.mask_embed.layers[-1].weight.mul_(8)
    return built.eval()


@pytest.fixture(scope="module")
def export(model: MaskFormer, make_info: Callable[..., ExportInfo], tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports once for all tests that want the same file; of plugin nodes a copy without them stands beside it."""

    @cache
    def write(mode: str, outputs: str) -> Path:
        flags = {"uint8": False, "on_cpu": True, "dynamic_size": False, **EVERY[mode, outputs]}
        dynamic_size, on_cpu = flags["dynamic_size"], flags["on_cpu"]
        info = make_info(
            mode=mode,
            outputs=outputs,
            height=-1 if dynamic_size else FRAME[0],
            width=-1 if dynamic_size else FRAME[1],
            normalize_in_graph=flags["uint8"],
            metadata=METADATA,
            object_mask_threshold=model.rule.object_mask_threshold,
            overlap_threshold=model.rule.overlap_threshold,
            top_k=model.rule.top_k,
            on_cpu=on_cpu,
        )
        path = tmp_path_factory.mktemp("export") / "graph.onnx"
        export_onnx(
            graph_of(model, mode, outputs),
            path if on_cpu else path.with_name("plugin.onnx"),
            height=FRAME[0],
            width=FRAME[1],
            dynamic_size=dynamic_size,
            on_cpu=on_cpu,
            metadata=lambda opset: {METADATA_KEY: replace(info, opset=opset).to_json()},
        )
        if not on_cpu:
            save_without_plugin_nodes(path.with_name("plugin.onnx"), path)
        return path

    return write


def graph_of(model: MaskFormer, mode: str, outputs: str) -> MaskGraph:
    return build_graph(model, mode, outputs, EVERY[mode, outputs].get("uint8", False))


def pictures(*sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Coloured blocks with noise."""
    rng = np.random.default_rng(3)
    found = {}
    for height, width in sizes:
        blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)
        noise = rng.integers(-20, 20, (height, width, 3))
        found[f"{height}x{width}"] = (blocks[:height, :width] + noise).clip(0, 255).astype(np.uint8)
    return found


def predicted(model: MaskFormer, images: list[np.ndarray], sizes: list[tuple[int, int]], tasks: Any) -> Any:
    """`model.predict` for (3, h, w) images."""
    inputs = [
        {"image": torch.from_numpy(image.copy()), "height": size[0], "width": size[1]}
        for image, size in zip(images, sizes, strict=True)
    ]
    before, model.tasks = model.tasks, tuple(tasks)
    try:
        return model.predict(inputs)
    finally:
        model.tasks = before


def assert_same(found: Any, expected: Any) -> None:
    if "semantic" in expected:
        np.testing.assert_allclose(found.semantic, expected["semantic"].numpy(), atol=1e-4)
    if "panoptic" in expected:
        assert [s[:3] for s in found.panoptic.segments] == [s[:3] for s in expected["panoptic"].segments]
        assert found.panoptic.segments
        assert (found.panoptic.ids != expected["panoptic"].ids.numpy()).mean() < 1e-3
    if "instance" in expected:
        there = expected["instance"]
        assert len(found.instance.labels) == len(there) > 0
        np.testing.assert_allclose(found.instance.scores, there.scores.numpy(), atol=1e-4)
        visible = int((there.scores > 1e-3).sum())
        assert (found.instance.labels[:visible] == there.labels.numpy()[:visible]).all()
        assert (found.instance.masks[:visible] != there.masks.numpy()[:visible]).mean() < 1e-3


@pytest.mark.parametrize(("mode", "outputs"), EVERY)
def test_every_export_is_certified_and_answers_as_the_model(
    model: MaskFormer, export: Export, mode: str, outputs: str
) -> None:
    path, graph = export(mode, outputs), graph_of(model, mode, outputs)
    certificate = certify(model, graph, path, pictures((50, 80), (140, 90)), tolerance=TOLERANCE)
    assert certificate.passed, certificate.to_json()
    assert [c.batch_size for c in certificate.comparisons] == [1, 2]
    for comparison in certificate.comparisons:
        assert tuple(comparison.outputs) == tuple(head_of(mode, outputs).outputs)
        assert {name.partition("/")[0] for name in comparison.agreement} == set(OnnxModel(path).tasks)
    assert certificate.own_size.keys() == comparison.agreement.keys()
    assert certificate.plugin_nodes_replaced == (outputs == "panoptic_map")

    runtime = OnnxModel(path)
    (exact,) = pictures(FRAME).values()  # fills the frame, so that the model sees the same
    (found,) = runtime.predict([exact], runtime.tasks)
    assert_same(found, predicted(model, [exact.transpose(2, 0, 1)], [FRAME], runtime.tasks)[0])


def test_mask_logits_of_any_size_answer_every_task_at_any_size(model: MaskFormer, export: Export) -> None:
    path, graph = export("panoptic", "mask_logits"), graph_of(model, "panoptic", "mask_logits")
    images = [p.transpose(2, 0, 1) for p in pictures((64, 90), (97, 64), (70, 70)).values()]
    sizes = [(75, 101), (97, 64), (33, 40)]
    found = OnnxModel(path).answer(images, sizes, TASKS)
    for ours, theirs in zip(found, predicted(model, images, sizes, TASKS), strict=True):
        assert_same(ours, theirs)
    certificate = certify(model, graph, path, pictures((64, 90)), tolerance=TOLERANCE)
    assert len(certificate.comparisons) == 1
    assert min(certificate.own_size.values()) >= 1 - TOLERANCE  # without a frame of its own, nothing is lost


def test_a_plugin_graph_itself_is_sent_to_tensorrt(export: Export) -> None:
    path = export("panoptic", "panoptic_map").with_name("plugin.onnx")
    with pytest.raises(ValueError, match="MultiscaleDeformableAttnPlugin_TRT nodes, which only TensorRT runs"):
        OnnxModel(path)


def test_another_models_file_does_not_pass(model: MaskFormer, export: Export) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.transformer_decoder.class_embed.weight.mul_(-1)
    graph, path = graph_of(other, "panoptic", "mask_logits"), export("panoptic", "mask_logits")
    certificate = certify(other, graph, path, pictures(FRAME), tolerance=TOLERANCE)
    assert not certificate.passed
    assert any(problem.startswith("class_logits differs by") for problem in certificate.problems)
    assert any(problem.startswith("semantic/pixels of the answers agrees to") for problem in certificate.problems)
    assert not any(problem.startswith("mask_logits") for problem in certificate.problems)
    told = json.loads(certificate.to_json())
    assert told["passed"] is False
    assert told["pictures"] == ["64x96"]
    assert told["versions"]["torch"] == torch.__version__
    assert told["comparisons"][0]["outputs"]["mask_logits"]["mean"] < TOLERANCE
