"""A float16 graph: convolutions, linear layers and what lies between them; everything delicate stays in float32.

In float32 stay norms, softmax, products of two activations (attention, whose sums over all pixels overflow float16, and
masks, whose sign decides where a query looks), sampling locations, resizing and the answers.

Note: onnxruntime's own converter sends what it leaves in float32 through float16 between any two nodes, which costs
sampling locations and masks the digits that they were to keep.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

_HAVE_WEIGHTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Half where all of their activations are: they only move or bend what a layer with weights has made.
_PASS_ON = {
    *("Add", "Mul", "Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Erf", "Gelu"),
    *("MaxPool", "GlobalAveragePool", "Concat", "Split", "Slice", "Pad", "Gather"),
    *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"),
}


def to_float16(model: ModelProto) -> ModelProto:
    """Convert a simplified graph, whose constants are initializers; inputs and outputs keep their types.

    Args:
        model: changed in place.

    Returns:
        The same object.
    """
    _Conversion(model).run()
    return model


class _Conversion:
    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        inferred = shape_inference.infer_shapes(model).graph
        infos = (*inferred.input, *inferred.value_info, *inferred.output)
        types = {info.name: info.type.tensor_type.elem_type for info in infos}
        types |= {name: tensor.data_type for name, tensor in self.constants.items()}
        self.floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self.half: set[str] = set()
        self.nodes: list[NodeProto] = []
        self.twins: dict[str, str] = {}  # a name, and that of the same value in the other type

    def run(self) -> None:
        outputs = {output.name for output in self.graph.output}
        for node in self.graph.node:
            is_half = self._becomes_half(node) and not outputs & set(node.output)
            for i, name in enumerate(node.input):
                if name in self.floats and (name in self.half) != is_half:
                    node.input[i] = self._twin(name, is_half)
            self.nodes.append(node)
            self.half |= self.floats & set(node.output) if is_half else set()
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input} | outputs
        kept = [tensor for tensor in self.constants.values() if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _becomes_half(self, node: NodeProto) -> bool:
        if node.op_type in _HAVE_WEIGHTS:
            return any(name in self.constants for name in node.input)
        activations = [name for name in node.input if name in self.floats and name not in self.constants]
        return node.op_type in _PASS_ON and bool(activations) and self.half.issuperset(activations)

    def _twin(self, name: str, is_half: bool) -> str:
        """The same value as float16 or as float32: another constant, or the output of a cast."""
        if name not in self.twins:
            twin = self.twins[name] = f"{name}/{'float16' if is_half else 'float32'}"
            if name in self.constants:
                value = numpy_helper.to_array(self.constants[name])
                self.constants[twin] = numpy_helper.from_array(value.astype(np.float16), twin)
            else:
                kind = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
                self.nodes.append(helper.make_node("Cast", [name], [twin], name=f"{twin}/Cast", to=kind))
        return self.twins[name]
