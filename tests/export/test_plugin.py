"""TensorRT's plugin node, and what stands for it where there is no TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from m2f.export.plugin import DOMAIN, NAME, replace_plugin_nodes, save_without_plugin_nodes
from m2f.layers.deformable_attention import deformable_attention

B, Q, M, P, D = 2, 5, 3, 4, 6
INPUTS = ("value", "shapes", "starts", "locations", "weights")


def one_node(opset: int) -> onnx.ModelProto:
    """A graph of the plugin alone, whose sizes are all free."""
    kinds = (TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT)
    inputs = [
        helper.make_tensor_value_info(name, kind, [None] * rank)
        for name, kind, rank in zip(INPUTS, kinds, (4, 2, 1, 6, 5), strict=True)
    ]
    output = helper.make_tensor_value_info("read", TensorProto.FLOAT, [None] * 4)
    node = helper.make_node(NAME, INPUTS, ["read"], domain=DOMAIN, plugin_version="1", plugin_namespace="")
    graph = helper.make_graph([node], "plugin", inputs, [output])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, {"m2f": "kept"})
    return model


@pytest.mark.parametrize("opset", [12, 17, 20])
@pytest.mark.parametrize("shapes", [[(4, 6), (2, 3), (1, 2)], [(3, 3)]])
def test_the_replacement_computes_deformable_attention(opset: int, shapes: list[tuple[int, int]]) -> None:
    replaced = replace_plugin_nodes(one_node(opset))
    onnx.checker.check_model(replaced, full_check=True)
    assert {node.domain for node in replaced.graph.node} == {""}
    assert not replaced.functions
    value = torch.randn(B, sum(h * w for h, w in shapes), M, D)
    locations = torch.rand(B, Q, M, len(shapes), P, 2) * 1.6 - 0.3  # many lie outside, or between outside and inside
    weights = torch.rand(B, Q, M, len(shapes), P)
    starts = np.cumsum([0, *(h * w for h, w in shapes)])[:-1].astype(np.int32)
    arrays = (value.numpy(), np.array(shapes, np.int32), starts, locations.numpy(), weights.numpy())
    session = onnxruntime.InferenceSession(replaced.SerializeToString(), providers=["CPUExecutionProvider"])
    (read,) = session.run(None, dict(zip(INPUTS, arrays, strict=True)))
    assert read.shape == (B, Q, M, D)
    expected = deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(torch.from_numpy(read).flatten(2), expected, atol=1e-5, rtol=1e-5)


def test_the_original_is_left_alone_and_metadata_travels(tmp_path: Path) -> None:
    onnx.save(one_node(17), tmp_path / "plugin.onnx")
    save_without_plugin_nodes(tmp_path / "plugin.onnx", tmp_path / "standard.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "plugin.onnx").graph.node] == [NAME]
    standard = onnx.load(tmp_path / "standard.onnx")
    assert NAME not in {node.op_type for node in standard.graph.node}
    assert {entry.key: entry.value for entry in standard.metadata_props} == {"m2f": "kept"}
