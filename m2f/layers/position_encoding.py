"""Where a pixel lies, as sines of its two coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_encoding(
    height: int, width: int, num_feats: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Encode each pixel's row, then its column, relative to the size of the map.

    Args:
        height: rows.
        width: columns.
        num_feats: channels per coordinate, even; half sines, half cosines, in turns.
        device: of the result.
        dtype: of the result; the encoding is computed in float32.

    Returns:
        (1, 2 * num_feats, H, W); wavelengths from one map to 10000 maps.

    Raises:
        ValueError: `num_feats` is odd.

    Source: arXiv:1706.03762 section 3.5, in two dimensions and normalised as in DETR, arXiv:2005.12872.
    """
    if num_feats % 2:
        raise ValueError(f"num_feats is {num_feats}; sines and cosines in turns need an even number")
    rows, columns = _axis(height, num_feats, device), _axis(width, num_feats, device)
    rows = rows.t()[:, :, None].expand(num_feats, height, width)
    columns = columns.t()[:, None, :].expand(num_feats, height, width)
    return torch.cat([rows, columns]).unsqueeze(0).to(dtype)


def _axis(length: int, num_feats: int, device: torch.device) -> Tensor:
    """(length, num_feats) of one coordinate, which runs from 2 pi / length to 2 pi."""
    coordinate = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * (2 * math.pi)
    exponent = torch.arange(0, num_feats, 2, dtype=torch.float32, device=device) / num_feats
    angle = coordinate[:, None] / 10000**exponent  # (length, num_feats / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
