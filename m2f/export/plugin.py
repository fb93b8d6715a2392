"""Deformable attention as TensorRT's own plugin: one node per layer, and the same in standard operators.

What NVIDIA's open-source plugin `multiscaleDeformableAttnPlugin` expects (TensorRT 8 to 10):

- `op_type` is the plugin's name; the ONNX parser finds it by that, `plugin_version` and `plugin_namespace`, whatever
  the node's domain. The plugin has no attributes of its own. Version 1 is what all these releases have; version 2, of
  10.11, takes and gives the same.
- Inputs: value (B, S, M, D), spatial_shapes (L, 2) of (height, width), level_start_index (L,), sampling_locations
  (B, Q, M, L, P, 2) of (x, y) in [0, 1], attention_weights (B, Q, M, L, P). The two of shapes are int32 (the parser of
  TensorRT 10 no longer narrows int64); the others are all float32 or all float16.
- Output: (B, Q, M, D) in the type of value; bilinear, zero outside a level, pixel centres at (j + 0.5) / width.

The domain `trt.plugins` is the one under which ONNX Runtime's TensorRT provider registers plugins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import FunctionProto, ModelProto, TypeProto, inliner, parser
from torch import Tensor, nn

from m2f.layers.deformable_attention import reference
from m2f.layers.deformable_attention.module import MultiScaleDeformableAttention, level_sizes

DOMAIN, NAME = "trt.plugins", "MultiscaleDeformableAttnPlugin_TRT"


@contextmanager
def plugin_nodes(model: nn.Module) -> Iterator[None]:
    """Inside, the model's deformable attention is traced as plugin nodes."""
    layers = [module for module in model.modules() if isinstance(module, MultiScaleDeformableAttention)]
    for layer in layers:
        layer.attend = _attend_by_plugin
    try:
        yield
    finally:
        for layer in layers:
            del layer.attend


def _attend_by_plugin(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As `m2f.layers.deformable_attention.deformable_attention`."""
    sizes = level_sizes(shapes, value).int()  # (L, 2)
    pixels = sizes.prod(dim=1)
    starts = (pixels.cumsum(dim=0) - pixels).int()
    read: Tensor = _Plugin.apply(value, sizes, starts, locations, weights)
    return read.reshape(*locations.shape[:2], value.shape[2] * value.shape[3])


class _Plugin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ARG004 - autograd's signature
        value: Tensor,
        sizes: Tensor,
        starts: Tensor,  # noqa: ARG004 - the node's input
        locations: Tensor,
        weights: Tensor,
    ) -> Tensor:
        shapes = [(height, width) for height, width in sizes.tolist()]
        return reference.deformable_attention(value, shapes, locations, weights).unflatten(2, value.shape[2:])

    @staticmethod
    def symbolic(g: Any, *inputs: Any) -> Any:
        read = g.op(f"{DOMAIN}::{NAME}", *inputs, plugin_version_s="1", plugin_namespace_s="")
        read.setType(inputs[0].type().with_sizes([None] * 4))
        return read


def plugin_output(inputs: Sequence[TypeProto]) -> TypeProto:
    """The type of a node's output, from those of its five inputs."""
    output = TypeProto()
    output.CopyFrom(inputs[0])
    if output.tensor_type.HasField("shape") and inputs[3].tensor_type.HasField("shape"):
        output.tensor_type.shape.dim[1].CopyFrom(inputs[3].tensor_type.shape.dim[1])
    return output


def replace_plugin_nodes(model: ModelProto) -> ModelProto:
    """A copy that any runtime can run: each plugin node as the standard operators that compute the same.

    Args:
        model: with plugin nodes, or without; of opset 12 at least.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    opset = next(entry.version for entry in copy.opset_import if not entry.domain)
    copy.functions.append(plugin_function(opset))
    return inliner.inline_local_functions(copy)


def save_without_plugin_nodes(source: Path, target: Path) -> None:
    """Write the copy that `replace_plugin_nodes` makes of a file, metadata included."""
    onnx.save(replace_plugin_nodes(onnx.load(source)), target)


def plugin_function(opset: int) -> FunctionProto:
    """The plugin in standard operators.

    The four pixels around every point are gathered from the flattened levels, each with its bilinear share of the
    point's weight; what lies outside the level has none. Shapes: (L, 1) of a level; (B, Q, M, L, P) of a point;
    K = 4 L P.
    """
    corners = [(x, y) for y in ("top", "bottom") for x in ("left", "right")]
    each = "\n".join(_CORNER.format(x=x, y=y) for x, y in corners)
    text = _PLUGIN % {
        "domain": DOMAIN,
        "name": NAME,
        "opset": opset,
        "corners": each,
        "shares": ", ".join(f"share_{x}_{y}" for x, y in corners),
        "places": ", ".join(f"place_{x}_{y}" for x, y in corners),
    }
    return parser.parse_function(text)


_PLUGIN = """
<domain: "%(domain)s", opset_import: ["": %(opset)d]>
%(name)s (value, shapes, starts, locations, weights) => (read)
{
  x_axis = Constant <value = int64 {0}> ()
  y_axis = Constant <value = int64 {1}> ()
  column = Constant <value = int64[2] {-1, 1}> ()
  zero = Constant <value = float {0.0}> ()
  half = Constant <value = float {0.5}> ()
  one = Constant <value = float {1.0}> ()
  starts64 = Cast <to = 7> (starts)
  start = Reshape (starts64, column)
  shapes64 = Cast <to = 7> (shapes)
  heights = Gather <axis = 1> (shapes64, x_axis)
  widths = Gather <axis = 1> (shapes64, y_axis)
  height64 = Reshape (heights, column)
  width64 = Reshape (widths, column)
  height = Cast <to = 1> (height64)
  width = Cast <to = 1> (width64)
  last_x = Sub (width, one)
  last_y = Sub (height, one)
  x01 = Gather <axis = 5> (locations, x_axis)
  y01 = Gather <axis = 5> (locations, y_axis)
  x_edge = Mul (x01, width)
  y_edge = Mul (y01, height)
  x = Sub (x_edge, half)
  y = Sub (y_edge, half)
  left = Floor (x)
  top = Floor (y)
  right = Add (left, one)
  bottom = Add (top, one)
  right_part = Sub (x, left)
  bottom_part = Sub (y, top)
  left_part = Sub (one, right_part)
  top_part = Sub (one, bottom_part)
%(corners)s
  share = Concat <axis = 4> (%(shares)s)
  place = Concat <axis = 4> (%(places)s)
  share_by_head = Transpose <perm = [0, 2, 1, 3, 4]> (share)
  place_by_head = Transpose <perm = [0, 2, 1, 3, 4]> (place)
  one_row = Constant <value = int64[5] {0, 0, 0, 1, -1}> ()
  rows = Reshape (share_by_head, one_row)
  as_indices = Constant <value = int64[4] {0, 0, -1, 1}> ()
  indices = Reshape (place_by_head, as_indices)
  pixels = Transpose <perm = [0, 2, 1, 3]> (value)
  samples = GatherND <batch_dims = 2> (pixels, indices)
  without_row = Constant <value = int64[4] {0, 0, 0, -1}> ()
  flat_share = Reshape (share_by_head, without_row)
  counts = Shape (flat_share)
  rest = Constant <value = int64[1] {-1}> ()
  by_point = Concat <axis = 0> (counts, rest)
  samples_by_point = Reshape (samples, by_point)
  sums = MatMul (rows, samples_by_point)
  by_head = Reshape (sums, without_row)
  read = Transpose <perm = [0, 2, 1, 3]> (by_head)
}
"""

_CORNER = """
  below_{x}_{y} = Min ({x}, last_x)
  near_x_{x}_{y} = Max (below_{x}_{y}, zero)
  above_{x}_{y} = Min ({y}, last_y)
  near_y_{x}_{y} = Max (above_{x}_{y}, zero)
  in_x_{x}_{y} = Equal (near_x_{x}_{y}, {x})
  in_y_{x}_{y} = Equal (near_y_{x}_{y}, {y})
  in_{x}_{y} = And (in_x_{x}_{y}, in_y_{x}_{y})
  area_{x}_{y} = Mul ({x}_part, {y}_part)
  weighted_{x}_{y} = Mul (area_{x}_{y}, weights)
  share_{x}_{y} = Where (in_{x}_{y}, weighted_{x}_{y}, zero)
  x64_{x}_{y} = Cast <to = 7> (near_x_{x}_{y})
  y64_{x}_{y} = Cast <to = 7> (near_y_{x}_{y})
  row_{x}_{y} = Mul (y64_{x}_{y}, width64)
  in_level_{x}_{y} = Add (row_{x}_{y}, x64_{x}_{y})
  place_{x}_{y} = Add (start, in_level_{x}_{y})
"""
