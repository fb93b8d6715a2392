"""Exported files in ONNX Runtime beside the graph in PyTorch, at batches and sizes other than the traced ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from m2f.config import get_cfg
from m2f.export.graphs import Head, MaskGraph, build_graph
from m2f.export.onnx_file import export_onnx, settle_opset
from m2f.export.plugin import NAME, replace_plugin_nodes
from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling.backbone import swin
from m2f.modeling.build import build_model
from m2f.modeling.maskformer import MaskFormer
from m2f.structures.metadata import Category, Metadata

K = 4
METADATA = Metadata("tiny", tuple(Category(i + 1, str(i), is_thing=i < 2) for i in range(K)))
BACKBONES: dict[str, dict[str, Any]] = {
    "efficientvit": {"name": "custom", "family": "b", "widths": [8, 8, 8, 8, 8], "depths": [1, 1, 1, 1, 1], "dim": 8},
    "swin": {"type": "custom", "embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 3},
    "resnet": {"type": "custom", "depth": 18, "stem_channels": 8, "res2_channels": 8, "width": 8},
    "timm": {"name": "test_resnet"},
}


def tiny_model(backbone: str = "efficientvit", decoder: str = "FPNPixelDecoder", **former: Any) -> MaskFormer:
    cfg = get_cfg()
    head = {"num_classes": K, "convs_dim": 16, "mask_dim": 16, "pixel_decoder": decoder, "transformer_enc_layers": 2}
    sizes = {"hidden_dim": 32, "dim_feedforward": 32, "nheads": 4, "num_object_queries": 6, "dec_layers": 4}
    model = {
        "backbone": {"type": backbone, backbone: BACKBONES[backbone]},
        "sem_seg_head": {**head, "encoder_dim_feedforward": 32},
        "mask_former": {**sizes, **former},
    }
    cfg.merge({"model": model}, "test")
    built = build_model(cfg, METADATA).eval()
    assert isinstance(built, MaskFormer)
    return built


def session(path: Path) -> onnxruntime.InferenceSession:
    model = onnx.load(path)
    if any(node.op_type == NAME for node in model.graph.node):
        model = replace_plugin_nodes(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def images(graph: MaskGraph, batch: int, height: int, width: int) -> Tensor:
    shape = (batch, 3, height, width)
    return torch.randint(256, shape, dtype=torch.uint8) if graph.normalize_in_graph else torch.randn(shape)


def differences(graph: MaskGraph, runtime: onnxruntime.InferenceSession, *shape: int) -> dict[str, Tensor]:
    """Of each output, once types and shapes are sure to be the same."""
    batch = images(graph, *shape)
    found = {}
    for info, expected, got in zip(
        runtime.get_outputs(), graph(batch), runtime.run(None, {"inputs": batch.numpy()}), strict=True
    ):
        assert (got.shape, got.dtype) == (tuple(expected.shape), expected.numpy().dtype)
        assert all(isinstance(want, str) or want == size for want, size in zip(info.shape, got.shape, strict=True))
        found[info.name] = (torch.from_numpy(got).double() - expected.double()).abs()
    return found


@pytest.mark.parametrize(
    ("backbone", "decoder", "pre_norm"),
    [
        ("efficientvit", "MSDeformAttnPixelDecoder", False),
        ("swin", "MSDeformAttnPixelDecoder", True),
        ("resnet", "FPNPixelDecoder", False),
        ("timm", "FPNPixelDecoder", True),
    ],
)
def test_any_batch_and_any_size(backbone: str, decoder: str, pre_norm: bool, tmp_path: Path) -> None:
    if backbone == "timm":
        pytest.importorskip("timm")
    graph = build_graph(tiny_model(backbone, decoder, pre_norm=pre_norm), "panoptic", "mask_logits")
    export_onnx(graph, tmp_path / "any.onnx", height=1, width=1, dynamic_size=True)  # the size is not used
    runtime = session(tmp_path / "any.onnx")
    assert runtime.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for shape in ((1, 64, 64), (2, 160, 96), (5, 64, 128), (1, 96, 224)):
        for difference in differences(graph, runtime, *shape).values():
            assert difference.max() < 1e-4


@pytest.mark.parametrize(
    ("mode", "outputs"), [("semantic", "tao"), ("panoptic", "tao"), ("instance", "tao"), ("panoptic", "panoptic_map")]
)
def test_every_mode_at_any_batch(mode: str, outputs: str, tmp_path: Path) -> None:
    graph = build_graph(tiny_model(dec_layers=2), mode, outputs, normalize_in_graph=True)
    result = export_onnx(graph, tmp_path / "mode.onnx", height=64, width=96)
    runtime = session(tmp_path / "mode.onnx")
    assert runtime.get_inputs()[0].shape == ["batch", 3, 64, 96]
    assert "NonZero" not in result.operators
    for batch in (1, 2, 5):
        for name, difference in differences(graph, runtime, batch, 64, 96).items():
            if name in ("pred_masks", "panoptic_ids") and mode != "semantic":
                assert (difference > 1e-4).float().mean() < 1e-3  # a pixel on an edge may fall to the other side
            else:
                assert difference.max() < 1e-4


def test_plugin_nodes_for_tensorrt(tmp_path: Path) -> None:
    graph = build_graph(tiny_model("efficientvit", "MSDeformAttnPixelDecoder", dec_layers=2), "panoptic", "mask_logits")
    path = tmp_path / "plugin.onnx"
    result = export_onnx(graph, path, height=64, width=96, on_cpu=False, opset_version=12)
    assert (result.opset, result.plugin_nodes) == (12, 2)
    assert "GridSample" not in result.operators
    model = onnx.load(path)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in (node for node in model.graph.node if node.op_type == NAME):
        sizes, starts = values[node.input[1]], values[node.input[2]]
        assert (sizes.dtype, sizes.tolist()) == (np.int32, [[2, 3], [4, 6], [8, 12]])
        assert (starts.dtype, starts.tolist()) == (np.int32, [0, 6, 30])
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes == {"plugin_version": b"1", "plugin_namespace": b""}
    runtime = session(path)
    for batch in (1, 3):
        for difference in differences(graph, runtime, batch, 64, 96).values():
            assert difference.max() < 1e-4


def test_half_precision_halves_the_file_and_keeps_the_interface(tmp_path: Path) -> None:
    graph = build_graph(tiny_model("efficientvit", "MSDeformAttnPixelDecoder", dec_layers=2), "panoptic", "mask_logits")
    settings: dict[str, Any] = {"dynamic_size": True, "height": 64, "width": 64}
    half = export_onnx(graph, tmp_path / "half.onnx", fp16=True, on_cpu=False, **settings)
    assert half.plugin_nodes == 2
    weights = onnx.load(tmp_path / "half.onnx").graph.initializer
    kinds = {tensor.data_type for tensor in weights if len(tensor.dims) == 4}
    assert onnx.TensorProto.FLOAT16 in kinds
    runtime = session(tmp_path / "half.onnx")
    for shape in ((1, 64, 64), (2, 64, 128)):
        for difference in differences(graph, runtime, *shape).values():
            assert 0 < difference.mean() < 0.02


def test_a_fixed_batch_and_a_model_that_is_left_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("swin", dec_layers=2)
    model.train()
    model.backbone.eval()
    graph = build_graph(model, "panoptic", "mask_logits")
    modes = {name: module.training for name, module in graph.named_modules()}
    state = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    swin.shift_mask.cache_clear()
    random = torch.get_rng_state()
    with caplog.at_level(logging.INFO, "m2f.export"):
        result = export_onnx(
            graph,
            tmp_path / "fixed.onnx",
            height=64,
            width=96,
            batch_size=2,
            opset_version=9,
            metadata=lambda opset: {"m2f": f"opset {opset}"},
        )
    assert "export.opset_version 9 is raised to 12" in caplog.text
    assert capfd.readouterr() == ("", "")
    assert {name: module.training for name, module in graph.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in graph.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert swin.shift_mask.cache_info().currsize == 0
    assert not torch.onnx.is_in_onnx_export()

    saved = onnx.load(tmp_path / "fixed.onnx")
    assert {entry.key: entry.value for entry in saved.metadata_props} == {"m2f": "opset 12"}
    assert (len(saved.graph.node), result.size) == (result.nodes, (tmp_path / "fixed.onnx").stat().st_size)
    assert saved.opset_import[0].version == result.opset == 12
    runtime = session(tmp_path / "fixed.onnx")
    assert runtime.get_inputs()[0].shape == [2, 3, 64, 96]
    assert "Shape" not in result.operators  # everything is known
    for difference in differences(build_graph(model.eval(), "panoptic", "mask_logits"), runtime, 2, 64, 96).values():
        assert difference.max() < 1e-4


class Untranslatable(Head):
    """Outputs by an operator that ONNX does not have."""

    outputs = {"mask_logits": ("batch", "queries", "mask_height", "mask_width")}  # noqa: RUF012 - a test's

    def forward(self, prediction: MaskPrediction, _: torch.Size) -> tuple[Tensor, ...]:
        return (torch.special.i1(prediction.all_mask_logits()),)


def test_an_operator_that_onnx_lacks_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(dec_layers=2)
    graph = MaskGraph(model, Untranslatable(METADATA, model.rule), False)
    with pytest.raises(ValueError, match=r"^export.opset_version 17: .*special_i1.*not supported$"):
        export_onnx(graph, tmp_path / "never.onnx", height=64, width=64)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"height": 72}, "export.input_height is 72; it is a multiple of 32 pixels, 64 at least"),
        ({"width": 32}, "export.input_width is 32; it is a multiple of 32 pixels, 64 at least"),
        ({"batch_size": 0}, "export.batch_size is 0; it is at least 1, or -1 for any"),
        ({"opset_version": 21}, "export.opset_version is 21; torch's exporter writes 12 to 20 here"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, int], said: str, tmp_path: Path) -> None:
    graph = build_graph(tiny_model(), "panoptic", "tao")
    with pytest.raises(ValueError, match=said):
        export_onnx(graph, tmp_path / "never.onnx", **{"height": 64, "width": 64, **settings})
    assert not list(tmp_path.iterdir())


def test_the_opset_is_the_wanted_one_where_it_can_be(caplog: pytest.LogCaptureFixture) -> None:
    deformable = build_graph(tiny_model("efficientvit", "MSDeformAttnPixelDecoder"), "panoptic", "tao")
    plain = build_graph(tiny_model(), "panoptic", "tao")
    settled: Callable[..., int] = settle_opset
    with caplog.at_level(logging.INFO, "m2f.export"):
        assert [settled(plain, wanted, True) for wanted in (12, 13, 20)] == [12, 13, 20]
        assert [settled(deformable, wanted, False) for wanted in (12, 17)] == [12, 17]
        assert [settled(deformable, wanted, True) for wanted in (16, 17)] == [16, 17]
    assert caplog.text == ""
    with caplog.at_level(logging.INFO, "m2f.export"):
        assert settled(deformable, 12, True) == 16
    assert "export.opset_version 12 is raised to 16: GridSample" in caplog.text
