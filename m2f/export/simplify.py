"""The same ONNX graph with fewer nodes: what does not depend on the values of the input is computed at export.

A traced graph works out every shape at run time, many of them again and again. Where the frame is fixed, all of them
are known beforehand but for the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_node_outputs

# A constant larger than this, and than all that it is made of, is left to the runtime; in numbers (4 MB of float32).
_LARGEST = 2**20
# Constants of up to so many numbers take part in shape inference by value, larger ones by their shape.
_SMALL = 64

Constants = dict[str, np.ndarray]
Sizes = np.ndarray
"""int64 values as objects. A size that is unknown until run time stands there as a prime of its own, larger than any
size: products and quotients of sizes, known or not, are those of numbers."""
_LARGER_THAN_SIZES = 2**31

TypeRule = Callable[[list[TypeProto]], TypeProto]
"""From the types of an operator's inputs to that of its output."""


def simplify(model: ModelProto, rules: Mapping[str, TypeRule] | None = None) -> ModelProto:
    """Fold what is constant, share what is computed twice, and leave out what nobody reads.

    A graph with branches or loops stays as it is.

    Args:
        model: changed in place; its inputs, outputs and what they mean stay.
        rules: for operators that are not ONNX's own, by name.

    Returns:
        The same object.
    """
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for n in model.graph.node for a in n.attribute):
        return model
    constants = _take_constants(model)
    walk = _Walk(model, constants, rules or {})
    nodes = [node for node in model.graph.node if not walk.vanishes(node)]
    _replace_nodes(model, _read_by_someone(nodes, walk.outputs))
    _put_constants(model, constants)
    for name in (node.output[0] for node in model.graph.node if node.op_type in walk.rules):
        model.graph.value_info.add(name=name).type.CopyFrom(walk.type_of(name))  # nobody else can infer it
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


def _replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    nodes = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _read_by_someone(nodes: list[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """Without the nodes on which no output depends."""
    wanted, alive = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            alive.append(node)
    return alive[::-1]


class _Walk:
    """What is known while one goes along the nodes: constants, shapes, and numbers picked from shapes."""

    def __init__(self, model: ModelProto, constants: Constants, rules: Mapping[str, TypeRule]) -> None:
        self.constants, self.rules = constants, rules
        self.opsets = list(model.opset_import)
        self.opset = next(entry.version for entry in self.opsets if not entry.domain)
        self.outputs = {output.name for output in model.graph.output}
        self.kinds: dict[str, int] = {}  # element types
        self.shapes: dict[str, Sizes] = {}
        self.sizes: dict[str, Sizes] = {}  # values of int64 tensors that hold sizes
        self.same: dict[str, str] = {}  # a name, and an earlier one with the same value
        self.seen: dict[tuple[object, ...], list[str]] = {}
        self.primes: Iterator[int] = iter(_primes())
        symbols: dict[str, int] = {}
        for entry in model.graph.input:  # all of whose free sizes have names
            self._note(entry.name, entry.type, lambda dim: symbols.setdefault(dim.dim_param, next(self.primes)))

    def vanishes(self, node: NodeProto) -> bool:
        """Whether the graph can do without a node, whose inputs are updated."""
        for i, name in enumerate(node.input):
            node.input[i] = self.same.get(name, name)
        self._infer_types(node)
        self._infer_sizes(node)
        if node.op_type == "Reshape":
            self._fix_target(node)
        if self.outputs & set(node.output):
            return False
        return self._is_copy(node) or self._is_constant(node) or self._is_repeated(node)

    def type_of(self, name: str) -> TypeProto:
        """As far as it is known; a size that is not has its number for a name."""
        if name in self.constants:
            value = self.constants[name]
            return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        if name not in self.shapes:
            return helper.make_tensor_type_proto(self.kinds.get(name, TensorProto.UNDEFINED), None)
        shape = [size if size < _LARGER_THAN_SIZES else str(size) for size in self.shapes[name]]
        return helper.make_tensor_type_proto(self.kinds[name], shape)

    def _note(self, name: str, type_: TypeProto, number: Callable[[TypeProto], int]) -> None:
        tensor = type_.tensor_type
        self.kinds[name] = tensor.elem_type
        if tensor.HasField("shape"):
            sizes = [dim.dim_value if dim.HasField("dim_value") else number(dim) for dim in tensor.shape.dim]
            self.shapes[name] = np.array(sizes, dtype=object)

    def _infer_types(self, node: NodeProto) -> None:
        types = {name: self.type_of(name) for name in node.input if name}
        if any(type_.tensor_type.elem_type == TensorProto.UNDEFINED for type_ in types.values()):
            return
        if node.op_type in self.rules:
            inferred = {node.output[0]: self.rules[node.op_type](list(types.values()))}
        else:
            known = {name: self.constants[name] for name in types if name in self.constants}
            data = {name: numpy_helper.from_array(value) for name, value in known.items() if value.size <= _SMALL}
            schema = defs.get_schema(node.op_type, self.opset, node.domain)
            inferred = infer_node_outputs(schema, node, types, data, opset_imports=self.opsets)
        for name, type_ in inferred.items():
            self._note(name, type_, lambda dim: int(dim.dim_param) if dim.dim_param.isdigit() else next(self.primes))
        shape = self._shape_asked_for(node)
        if shape is not None:
            self.shapes[node.output[0]] = shape

    def _shape_asked_for(self, node: NodeProto) -> Sizes | None:
        """The shape that an input gives to the output, which ONNX infers from constants only."""
        if node.op_type == "ConstantOfShape":
            return self._sizes(node.input[0])
        if node.op_type == "Resize":
            return self._sizes(node.input[3]) if len(node.input) == 4 else None
        source = self._shape(node.input[0]) if node.op_type in ("Expand", "Reshape") else None
        target = None if source is None else self._sizes(node.input[1])
        if source is None or target is None or 0 in target or (node.op_type == "Expand" and len(source) > len(target)):
            return None
        if node.op_type == "Expand":
            return np.where(target == 1, np.pad(source, (len(target) - len(source), 0), constant_values=1), target)
        rest, all_of_it = abs(math.prod(target)), math.prod(source)
        return np.where(target == -1, next(self.primes) if all_of_it % rest else all_of_it // rest, target)

    def _infer_sizes(self, node: NodeProto) -> None:
        """What is known of a shape, and of numbers picked from shapes."""
        if node.op_type == "Shape" and not node.attribute:
            sizes = self._shape(node.input[0])
        elif node.op_type in _ON_SIZES and self._are_sizes(node):
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            sizes = _ON_SIZES[node.op_type](*(self._sizes(name) for name in node.input), **attributes)
        else:
            return
        if sizes is not None:
            self.sizes[node.output[0]] = np.asarray(sizes, dtype=object)

    def _fix_target(self, node: NodeProto) -> None:
        """A target with one unknown size, written -1, beside known and kept ones, written 0, need not be computed."""
        source, target = self._shape(node.input[0]), self._shape(node.output[0])
        if source is None or target is None or 0 in target or node.input[1] in self.constants:
            return
        kept = [i < len(source) and size == source[i] for i, size in enumerate(target)]
        written = [s if s < _LARGER_THAN_SIZES else 0 if keeps else -1 for s, keeps in zip(target, kept, strict=True)]
        if written.count(-1) <= 1:
            node.input[1] = f"{node.output[0]}/target"
            self.constants[node.input[1]] = np.array(written, dtype=np.int64)

    def _is_copy(self, node: NodeProto) -> bool:
        source = node.input[0] if node.input else ""
        if node.op_type == "Cast":
            copies = self.kinds.get(source) == node.attribute[0].i
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
        alone = helper.make_function("", "folded", list(inputs), node.output, [node], self.opsets)
        results = ReferenceEvaluator(alone).run(None, inputs, {})
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

    def _are_sizes(self, node: NodeProto) -> bool:
        """Whether a node takes lists of numbers, and picks from the first, if that is what it does, by constants."""
        rest = node.input[1:]
        known = [self._sizes(name) for name in node.input]
        lists = all(sizes is not None and sizes.ndim <= 1 for sizes in known)
        return lists and (node.op_type in ("Concat", "Mul") or all(name in self.constants for name in rest))

    def _are_never_equal(self, name: str, other: str) -> bool:
        """Whether the first are sizes and the second are negative."""
        sizes, numbers = self.sizes.get(name), self.constants.get(other)
        if sizes is None or numbers is None or sizes.shape != numbers.shape:
            return False
        return bool((sizes >= 0).all() and (numbers < 0).all())

    def _sizes(self, name: str) -> Sizes | None:
        value = self.constants.get(name)
        if value is not None:
            return value.astype(object) if value.dtype == np.int64 else None
        return self.sizes.get(name)

    def _shape(self, name: str) -> Sizes | None:
        if name in self.constants:
            return np.array(self.constants[name].shape, dtype=object)
        return self.shapes.get(name)


@lru_cache
def _primes() -> list[int]:
    """Some ten thousand primes from `_LARGER_THAN_SIZES` up."""
    is_prime = np.ones(2**20, dtype=bool)
    for divisor in range(2, math.isqrt(_LARGER_THAN_SIZES + len(is_prime)) + 1):
        is_prime[-_LARGER_THAN_SIZES % divisor :: divisor] = False
    numbers: list[int] = (_LARGER_THAN_SIZES + np.flatnonzero(is_prime)).tolist()
    return numbers


def _slice(sizes: Sizes, starts: Sizes, ends: Sizes, _: Sizes | None = None, steps: Sizes | None = None) -> Sizes:
    return sizes[slice(starts[0], ends[0], None if steps is None else steps[0])]


def _cast(sizes: Sizes, to: int) -> Sizes | None:
    return sizes if to == TensorProto.INT64 else None


_ON_SIZES: dict[str, Callable[..., Sizes | None]] = {
    "Cast": _cast,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "Gather": lambda sizes, index, axis=0: np.take(sizes, index.astype(np.int64), axis),
    "Mul": np.multiply,
    "Slice": _slice,
    "Squeeze": lambda sizes, axes=None: np.squeeze(sizes, None if axes is None else tuple(axes)),
    "Unsqueeze": lambda sizes, axes: np.expand_dims(sizes, tuple(axes)),
}
