"""The same ONNX graph with fewer nodes: what does not depend on the values of the input is computed at export.

A traced graph works out every shape at run time, many of them again and again. Where the frame is fixed, all of them
are known beforehand but for the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
    shape_inference,
)
from onnx.reference import ReferenceEvaluator

# A constant larger than this, and than all that it is made of, is left to the runtime; in numbers (4 MB of float32).
_LARGEST = 2**20
# Constants of up to so many numbers take part in shape inference by value, larger ones by their shape.
_SMALL = 64

Constants = dict[str, np.ndarray]
Sizes = np.ndarray
"""int64 values as objects. A size that is unknown until run time stands there as a prime of its own, larger than any
size: products and quotients of sizes, known or not, are those of numbers."""
_LARGER_THAN_SIZES = 2**31


def simplify(model: ModelProto, functions: Sequence[FunctionProto] = ()) -> ModelProto:
    """Fold what is constant, share what is computed twice, and leave out what nobody reads.

    A graph with branches or loops stays as it is.

    Args:
        model: changed in place; its inputs, outputs and what they mean stay.
        functions: what its operators of other domains compute, for their shapes.

    Returns:
        The same object.
    """
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for n in model.graph.node for a in n.attribute):
        return model
    constants = _take_constants(model)
    while _Pass(model, constants, functions).run():
        pass
    _put_constants(model, constants)
    _keep_types(model, _infer_types(model, constants, functions))
    return model


def _take_constants(model: ModelProto) -> Constants:
    """Move the values of initializers and Constant nodes out of the graph."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        else:
            nodes.append(node)
    del model.graph.initializer[:], model.graph.value_info[:]
    _replace_nodes(model, nodes)
    return constants


def _put_constants(model: ModelProto, constants: Constants) -> None:
    """Give the graph the constants that it reads; of equal ones the first serves all."""
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in constants:
                value = constants[name]
                node.input[i] = first.setdefault((value.dtype.str, value.shape, value.tobytes()), name)
    model.graph.initializer.extend(numpy_helper.from_array(constants[name], name) for name in first.values())


def _keep_types(model: ModelProto, types: dict[str, TypeProto.Tensor]) -> None:
    """Write down the types that ONNX cannot infer: those of what operators of other domains give."""
    for name in (name for node in model.graph.node if node.domain for name in node.output if name in types):
        model.graph.value_info.add(name=name).type.tensor_type.CopyFrom(types[name])


def _replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    nodes = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Pass:
    """One walk along the nodes; what it makes constant lets the next one know more shapes."""

    def __init__(self, model: ModelProto, constants: Constants, functions: Sequence[FunctionProto]) -> None:
        self.model, self.constants = model, constants
        self.opset = next(entry.version for entry in model.opset_import if not entry.domain)
        self.types = _infer_types(model, constants, functions)
        self.outputs = {output.name for output in model.graph.output}
        self.sizes: dict[str, Sizes] = {}
        self.same: dict[str, str] = {}  # a name, and an earlier one with the same value
        self.seen: dict[tuple[object, ...], list[str]] = {}
        self.primes: dict[str, int] = {}
        self.changed = False

    def run(self) -> bool:
        """Walk; whether anything changed."""
        kept = [node for node in self.model.graph.node if not self._vanishes(node)]
        alive = _read_by_someone(kept, self.outputs)
        self.changed |= len(alive) < len(self.model.graph.node)
        _replace_nodes(self.model, alive)
        return self.changed

    def _vanishes(self, node: NodeProto) -> bool:
        for i, name in enumerate(node.input):
            node.input[i] = self.same.get(name, name)
        if node.op_type == "Reshape":
            self._fix_target(node)
        if self.outputs & set(node.output):
            return False
        self._infer_sizes(node)
        return self._is_copy(node) or self._is_constant(node) or self._is_repeated(node)

    def _fix_target(self, node: NodeProto) -> None:
        """A target with one unknown size, written -1, beside known and kept ones, written 0, need not be computed."""
        source, target = self._shape(node.input[0]), self._sizes(node.input[1])
        if source is None or target is None or 0 in target or node.input[1] in self.constants:
            return
        rest, all_of_it = -math.prod(target), math.prod(source)
        if -1 in target and all_of_it % rest == 0:
            target = np.where(target == -1, all_of_it // rest, target)
        kept = [i < len(source) and size == source[i] for i, size in enumerate(target)]
        written = [
            size if size < _LARGER_THAN_SIZES else 0 if keeps else -1 for size, keeps in zip(target, kept, strict=True)
        ]
        if written.count(-1) <= 1:
            node.input[1] = f"{node.output[0]}/target"
            self.constants[node.input[1]] = np.array(written, dtype=np.int64)
            self.changed = True

    def _infer_sizes(self, node: NodeProto) -> None:
        """What is known of a shape, and of numbers picked from shapes."""
        if node.op_type == "Shape" and not node.attribute:
            sizes = self._shape(node.input[0])
        elif node.op_type in _ON_SIZES and all(self._sizes(name) is not None for name in node.input):
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            sizes = _ON_SIZES[node.op_type](*(self._sizes(name) for name in node.input), **attributes)
        else:
            return
        if sizes is not None:
            self.sizes[node.output[0]] = np.asarray(sizes, dtype=object)

    def _is_copy(self, node: NodeProto) -> bool:
        source = node.input[0] if node.input else ""
        if node.op_type == "Cast":
            copies = source in self.types and self.types[source].elem_type == node.attribute[0].i
        elif node.op_type == "Where":  # torch writes one at every expand, for sizes of -1
            sizes = self._sizes(node.input[2])
            never = source in self.constants and not self.constants[source].any()
            copies = never and sizes is not None and self.constants[source].shape == sizes.shape
            source = node.input[2]
        else:
            copies = node.op_type == "Identity"
        if copies:
            self.same[node.output[0]] = source
        return copies

    def _is_constant(self, node: NodeProto) -> bool:
        name, sizes = node.output[0], self.sizes.get(node.output[0])
        if sizes is not None and (sizes < _LARGER_THAN_SIZES).all():
            self.constants[name] = sizes.astype(np.int64)
            return True
        if node.op_type == "Equal" and self._are_never_equal(*node.input):
            self.constants[name] = np.zeros(self.constants[node.input[1]].shape, dtype=bool)
            return True
        inputs = {source: self.constants[source] for source in node.input if source in self.constants}
        if node.domain or not inputs or len(inputs) < len({*node.input} - {""}):
            return False
        if node.op_type == "Unsqueeze" and self.opset < 13:  # onnx's evaluator fails on axes as an attribute
            return False
        results = ReferenceEvaluator(node, opsets={"": self.opset}).run(None, inputs)
        if max(map(np.size, results)) > max(_LARGEST, *map(np.size, inputs.values())):
            return False
        self.constants |= {name: np.asarray(result) for name, result in zip(node.output, results, strict=True)}
        return True

    def _is_repeated(self, node: NodeProto) -> bool:
        attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
        first = self.seen.setdefault((node.domain, node.op_type, *node.input, attributes), list(node.output))
        repeated = first != list(node.output)
        if repeated:
            self.same |= dict(zip(node.output, first, strict=True))
        return repeated

    def _are_never_equal(self, name: str, other: str) -> bool:
        """Whether the first are sizes and the second are negative."""
        sizes, numbers = self.sizes.get(name), self.constants.get(other)
        return sizes is not None and numbers is not None and sizes.shape == numbers.shape and bool((numbers < 0).all())

    def _sizes(self, name: str) -> Sizes | None:
        value = self.constants.get(name)
        if value is not None:
            return value.astype(object) if value.dtype == np.int64 else None
        return self.sizes.get(name)

    def _shape(self, name: str) -> Sizes | None:
        if name in self.constants:
            return np.array(self.constants[name].shape, dtype=object)
        if name not in self.types or not self.types[name].HasField("shape"):
            return None
        dims = enumerate(self.types[name].shape.dim)
        sizes = [
            d.dim_value if d.HasField("dim_value") else self._prime(d.dim_param or f"{name}[{i}]") for i, d in dims
        ]
        return np.array(sizes, dtype=object)

    def _prime(self, symbol: str) -> int:
        """The number that stands for an unknown size."""
        return self.primes.setdefault(symbol, _primes()[len(self.primes)])


@lru_cache
def _primes() -> list[int]:
    """Some ten thousand primes from `_LARGER_THAN_SIZES` up."""
    is_prime = np.ones(2**20, dtype=bool)
    for divisor in range(2, math.isqrt(_LARGER_THAN_SIZES + len(is_prime)) + 1):
        is_prime[-_LARGER_THAN_SIZES % divisor :: divisor] = False
    numbers: list[int] = (_LARGER_THAN_SIZES + np.flatnonzero(is_prime)).tolist()
    return numbers


def _infer_types(
    model: ModelProto, constants: Constants, functions: Sequence[FunctionProto]
) -> dict[str, TypeProto.Tensor]:
    """Types and shapes, as far as they are known, without moving the weights about."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    skeleton.functions.extend(functions)
    graph = skeleton.graph
    for name, value in constants.items():
        if value.size <= _SMALL:
            graph.initializer.append(numpy_helper.from_array(value, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    graph = shape_inference.infer_shapes(skeleton, data_prop=True).graph
    return {info.name: info.type.tensor_type for info in (*graph.input, *graph.value_info, *graph.output)}


def _read_by_someone(nodes: list[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """Without the nodes on which no output depends."""
    wanted, alive = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            alive.append(node)
    return alive[::-1]


def _slice(sizes: Sizes, starts: Sizes, ends: Sizes, axes: Sizes | None = None, steps: Sizes | None = None) -> Sizes:  # noqa: ARG001 - a list has one axis
    return sizes[slice(starts[0], ends[0], None if steps is None else steps[0])]


def _cast(sizes: Sizes, to: int) -> Sizes | None:
    return sizes if to == TensorProto.INT64 else None


_ON_SIZES: dict[str, Callable[..., Sizes | None]] = {
    "Cast": _cast,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "Gather": lambda sizes, index, axis=0: np.take(sizes, index.astype(np.int64), axis),
    "Mul": np.multiply,
    "Slice": _slice,
    "Squeeze": lambda sizes, axes: np.squeeze(sizes, tuple(axes)),
    "Unsqueeze": lambda sizes, axes: np.expand_dims(sizes, tuple(axes)),
}
