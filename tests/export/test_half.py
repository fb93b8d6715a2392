"""What becomes float16, and what stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, numpy_helper, parser

from m2f.export.half import to_float16

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[batch, 8, 4, 4] x) => (float[batch, 8, 4, 4] y, float[batch, 8, 4, 4] late) {
    before = Conv (x, kernel)
    bent = Relu (before)
    flat = Reshape (bent, target)
    turned = Transpose <perm = [0, 2, 1]> (flat)
    product = MatMul (turned, flat)
    weights = Softmax <axis = -1> (product)
    read = MatMul (flat, weights)
    back = Reshape (read, frame)
    y = Conv (back, kernel)
    twice = Add (bent, back)
    late = Conv (twice, kernel)
}
"""


def model() -> tuple[ModelProto, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    constants = {
        "kernel": random.normal(0, 0.3, (8, 8, 1, 1)).astype(np.float32),
        "target": np.array([0, 8, 16]),
        "frame": np.array([0, 8, 4, 4]),
    }
    parsed = parser.parse_model(TEXT)
    parsed.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return parsed, constants


def run(graph: ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def test_layers_with_weights_are_half_and_products_of_activations_are_not() -> None:
    original, _ = model()
    half = to_float16(model()[0])
    onnx.checker.check_model(half, full_check=True)
    types = {
        info.name: info.type.tensor_type.elem_type for info in onnx.shape_inference.infer_shapes(half).graph.value_info
    }
    assert {name for name, kind in types.items() if kind == TensorProto.FLOAT16} >= {"before", "bent", "flat", "turned"}
    assert all(types[name] == TensorProto.FLOAT for name in ("product", "weights", "read", "back", "twice"))
    assert [output.type.tensor_type.elem_type for output in half.graph.output] == [TensorProto.FLOAT] * 2
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    x = np.random.default_rng(1).normal(0, 1, (3, 8, 4, 4)).astype(np.float32)
    for got, expected in zip(run(half, x), run(original, x), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=0.02)
        assert not np.array_equal(got, expected)


def test_a_constant_is_kept_in_the_types_that_are_read() -> None:
    half = to_float16(model()[0])
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    # The last convolutions give outputs of the graph, so their weights are float32.
    assert kinds["kernel"] == TensorProto.FLOAT
    assert kinds["kernel/float16"] == TensorProto.FLOAT16
    casts = [tuple(node.input) for node in half.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
