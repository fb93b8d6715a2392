"""From a graph in PyTorch to an ONNX file that is complete, checked and says what it is."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from onnx import ModelProto, helper
from torch import nn
from torch.onnx.errors import UnsupportedOperatorError

from m2f.export.graphs import FRAME, MaskGraph
from m2f.export.half import to_float16
from m2f.export.info import INPUT_NAME
from m2f.export.plugin import NAME, plugin_nodes, plugin_output
from m2f.export.simplify import simplify
from m2f.layers.deformable_attention.module import MultiScaleDeformableAttention

logger = logging.getLogger(__name__)

LEAST_SIZE = 64
"""Least height and width of an input in pixels."""
# What torch's tracing exporter writes, in all versions since 2.2, and what the graphs need at least.
_LAST_OPSET, _LEAST_OPSET, _LEAST_WITH_GRID_SAMPLE = 20, 12, 16
_MASK_AXES = ("mask_height", "mask_width")


class ExportResult(NamedTuple):
    """What was written."""

    opset: int
    operators: Mapping[str, int]  # nodes of each type
    size: int  # bytes

    @property
    def nodes(self) -> int:
        """Of all types."""
        return sum(self.operators.values())

    @property
    def plugin_nodes(self) -> int:
        """Those that only TensorRT runs."""
        return self.operators.get(NAME, 0)


def export_onnx(
    graph: MaskGraph,
    path: Path,
    *,
    height: int,
    width: int,
    batch_size: int = -1,
    dynamic_size: bool = False,
    opset_version: int = 17,
    on_cpu: bool = True,
    fp16: bool = False,
    metadata: Callable[[int], Mapping[str, str]] = lambda _: {},
) -> ExportResult:
    """Write a graph as an ONNX file.

    Args:
        graph: from `build_graph`; exported in eval mode and left in the mode that it was in.
        path: the file, overwritten.
        height: of the input in pixels; not used with `dynamic_size`.
        width: same.
        batch_size: of the input; -1: any.
        dynamic_size: take any height and width that the model's strides divide, from 64 pixels up.
        opset_version: of the file; see `settle_opset`.
        on_cpu: standard operators only; else deformable attention is a node of TensorRT's plugin.
        fp16: convolutions and linear layers in float16; inputs and outputs keep their types.
        metadata: from the opset that was settled on to keys and values to store in the file.

    Raises:
        ValueError: a size or an opset is impossible, or the model has an operator that the opset lacks.
    """
    frame = _frame(graph, height, width, dynamic_size)
    if batch_size < 1 and batch_size != -1:
        raise ValueError(f"export.batch_size is {batch_size}; it is at least 1, or -1 for any")
    opset = settle_opset(graph, opset_version, on_cpu)
    free = {"batch"} if batch_size == -1 else set()
    free |= {*FRAME, *_MASK_AXES} if dynamic_size else set()
    with _evaluating(graph), nullcontext() if on_cpu else plugin_nodes(graph):
        model = _trace(graph, (2 if batch_size == -1 else batch_size, 3, *frame), free, opset)
    simplify(model, {NAME: plugin_output})
    if fp16:
        to_float16(model)
    helper.set_model_props(model, dict(metadata(opset)))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    operators = Counter(node.op_type for node in model.graph.node)
    return ExportResult(opset, dict(operators.most_common()), path.stat().st_size)


def settle_opset(graph: MaskGraph, wanted: int, on_cpu: bool) -> int:
    """The opset of the file: the wanted one, or the least that can hold the graph, which the log says then.

    Args:
        graph: from `build_graph`.
        wanted: `export.opset_version`.
        on_cpu: as in `export_onnx`.

    Raises:
        ValueError: the exporter cannot write the wanted one.
    """
    samples = on_cpu and any(isinstance(module, MultiScaleDeformableAttention) for module in graph.modules())
    least = _LEAST_WITH_GRID_SAMPLE if samples else _LEAST_OPSET
    if wanted > _LAST_OPSET:
        raise ValueError(f"export.opset_version is {wanted}; torch's exporter writes {least} to {_LAST_OPSET} here")
    if wanted < least:
        why = "GridSample, which deformable attention needs, is as old as that" if samples else "the graph needs it"
        logger.info("export.opset_version %d is raised to %d: %s", wanted, least, why)
    return max(wanted, least)


def _frame(graph: MaskGraph, height: int, width: int, dynamic_size: bool) -> tuple[int, int]:
    """(height, width) to trace with; of a dynamic frame any will do, so two small and different ones."""
    step = graph.divisibility
    least = -(-LEAST_SIZE // step) * step
    if dynamic_size:
        return least, least + step
    for key, length in (("input_height", height), ("input_width", width)):
        if length < least or length % step:
            raise ValueError(f"export.{key} is {length}; it is a multiple of {step} pixels, {least} at least")
    return height, width


@contextmanager
def _evaluating(graph: nn.Module) -> Iterator[None]:
    """Every module in eval mode, whatever its `train` method would say, and then as it was."""
    modes = {module: module.training for module in graph.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _trace(graph: MaskGraph, shape: tuple[int, ...], free: set[str], opset: int) -> ModelProto:
    """The graph as torch's exporter leaves it.

    Note: of torch's two exporters this is the older one. The newer (of 2.14) needs a package more, writes no opset
    below 18, took twenty times as long, and with a free height and width it gave other numbers than the model.

    Raises:
        ValueError: the model has an operator that the opset lacks.
    """
    axes = {INPUT_NAME: ("batch", "channels", *FRAME), **graph.head.outputs}
    dtype = torch.uint8 if graph.normalize_in_graph else torch.float32
    example = torch.zeros(shape, dtype=dtype, device=graph.model.pixel_mean.device)
    with tempfile.TemporaryDirectory() as room, _quiet():
        path = Path(room) / "traced.onnx"
        try:
            torch.onnx.export(
                graph,
                (example,),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=list(graph.head.outputs),
                dynamic_axes={k: {i: axis for i, axis in enumerate(v) if axis in free} for k, v in axes.items()},
            )
        except UnsupportedOperatorError as error:
            raise ValueError(f"export.opset_version {opset}: {error}") from error
        return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what tracing warns about, and without the dump of the graph to the process's stdout when it fails.

    Sizes that vary are tensors while a graph is traced; only those that never do become numbers, which is the warning.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
