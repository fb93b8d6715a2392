"""A description to vary, and a small ONNX file that stands for an exported graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2f.export.info import INPUT_NAME, METADATA_KEY, ExportInfo
from m2f.structures.metadata import Category, Metadata

INFO = ExportInfo(
    mode="panoptic",
    outputs="mask_logits",
    batch_size=-1,
    height=-1,
    width=-1,
    divisibility=32,
    normalize_in_graph=False,
    pixel_mean=(0.485, 0.456, 0.406),
    pixel_std=(0.229, 0.224, 0.225),
    min_size=64,
    max_size=128,
    target_size=(),
    object_mask_threshold=0.3,
    overlap_threshold=0.5,
    top_k=20,
    metadata=Metadata("small", tuple(Category(i + 1, f"class {i}", i in (0, 2)) for i in range(5))),
    m2f_version="0.1.0",
    checkpoint="model.pth",
    checkpoint_sha256="00",
    opset=17,
    on_cpu=True,
    fp16=False,
)


@pytest.fixture(scope="session")
def make_info() -> Callable[..., ExportInfo]:
    def make(**changes: Any) -> ExportInfo:
        return replace(INFO, **changes)

    return make


@pytest.fixture
def write_graph(tmp_path: Path) -> Callable[[ExportInfo], Path]:
    """Writes an ONNX file of outputs `mask_logits`: colours at a quarter of the size, mixed by random weights."""

    def write(info: ExportInfo, name: str = "small.onnx") -> Path:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        rng, queries, classes = np.random.default_rng(0), 6, info.metadata.num_classes + 1
        weights = {
            "mask_weight": rng.normal(0, 4, (queries, 3, 1, 1)),
            "class_weight": rng.normal(0, 4, (queries * classes, 3, 1, 1)),
        }
        constants = [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()]
        constants.append(numpy_helper.from_array(np.array([0, queries, classes]), "shape"))
        nodes = [
            helper.make_node("Cast", [INPUT_NAME], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("AveragePool", ["floats"], ["quarter"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Conv", ["quarter", "mask_weight"], ["mask_logits"]),
            helper.make_node("GlobalAveragePool", ["quarter"], ["colour"]),
            helper.make_node("Conv", ["colour", "class_weight"], ["rows"]),
            helper.make_node("Reshape", ["rows", "shape"], ["class_logits"]),
        ]
        kind = TensorProto.UINT8 if info.normalize_in_graph else TensorProto.FLOAT
        batch = info.batch_size if info.batch_size > 0 else "B"
        size = [edge if edge > 0 else letter for edge, letter in ((info.height, "H"), (info.width, "W"))]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info(INPUT_NAME, kind, [batch, 3, *size])],
            [
                helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, [batch, queries, "h", "w"]),
                helper.make_tensor_value_info("class_logits", TensorProto.FLOAT, [batch, queries, classes]),
            ],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, {METADATA_KEY: info.to_json()})
        onnx.checker.check_model(model)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write
