"""Relative positions inside a square window, as Swin's bias tables are indexed."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each (query, key) pair of a window.

    Args:
        window_size: w, tokens along a side.

    Returns:
        (w*w, w*w) int64 in [0, (2w-1)^2): (row offset + w - 1) * (2w - 1) + column offset + w - 1.

    Source: Swin Transformer, arXiv:2103.14030, section 3.2.
    """
    steps = torch.arange(window_size)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
    row_offset = rows[:, None] - rows[None, :] + window_size - 1
    column_offset = columns[:, None] - columns[None, :] + window_size - 1
    return row_offset * (2 * window_size - 1) + column_offset
