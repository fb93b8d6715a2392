"""Deformable attention by `grid_sample`, one call per level: the form that traces, exports and runs on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As the package's `deformable_attention`; holds one level's samples (B, M, D, P, Q) at a time."""
    B, _, M, D = value.shape
    Q = locations.shape[1]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B M, D, S)
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (L, B M, P, Q, 2)
    shares = weights.permute(3, 0, 2, 4, 1).flatten(1, 2).unsqueeze(2)  # (L, B M, 1, P, Q)
    levels = torch.split(maps, [height * width for height, width in shapes], dim=2)
    read = []
    for level, shape, grid, share in zip(levels, shapes, grids.unbind(), shares.unbind(), strict=True):
        samples = F.grid_sample(level.view(B * M, D, *shape), grid, align_corners=False)  # (B M, D, P, Q)
        read.append((samples * share).sum(dim=2))
    return sum(read[1:], read[0]).view(B, M * D, Q).transpose(1, 2)
