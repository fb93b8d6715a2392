"""Multi-scale deformable attention: one operator, the implementation chosen by where it runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from m2f.layers.deformable_attention import portable, reference


def deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Each query and head reads a few weighted points of every level.

    Args:
        value: (B, S, M, D), the levels flattened row by row and put one after the other; S = sum of h * w.
        shapes: L pairs (h, w), in the order of `value`.
        locations: (B, Q, M, L, P, 2), (x, y) in [0, 1] of a level, pixel centres at (j + 0.5) / w; zero outside.
        weights: (B, Q, M, L, P), summing to one over (L, P) in the paper, but any will do.

    Returns:
        (B, Q, M * D).

    Raises:
        ValueError: the levels do not add up to S.

    Source: Deformable DETR, arXiv:2010.04159, equation 3.
    """
    pixels = sum(height * width for height, width in shapes)
    if not torch.jit.is_tracing() and pixels != value.shape[1]:
        raise ValueError(f"the levels {list(shapes)} have {pixels} pixels in all, but value has {value.shape[1]}")
    traced = torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling()
    if value.device.type == "cpu" and not traced:
        return portable.deformable_attention(value, shapes, locations, weights)
    return reference.deformable_attention(value, shapes, locations, weights)
