"""Deformable attention point by point, with its own backward: the fast form on a CPU, in plain PyTorch.

One sampling point of all queries at a time keeps the working set in the cache, and puts the long axis where
`grid_sample` is vectorised. Nothing but the inputs is kept for the backward pass, which samples again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Shapes = Sequence[tuple[int, int]]


def deformable_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """As the package's `deformable_attention`; holds one point's samples (B, M, D, Q) at a time."""
    out: Tensor = _PointByPoint.apply(value, locations, weights, tuple(shapes))
    return out


def _to_maps(value: Tensor, shapes: Shapes) -> list[Tensor]:
    """(B, S, M, D) to one (B M, D, h, w) per level."""
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)
    levels = torch.split(maps, [height * width for height, width in shapes], dim=2)
    return [level.view(*level.shape[:2], *shape) for level, shape in zip(levels, shapes, strict=True)]


def _to_rows(per_point: Tensor) -> Tensor:
    """(B, Q, M, L, P, ...) to (L, P, B M, 1, Q, ...), in memory order."""
    rest = range(5, per_point.dim())
    return per_point.permute(3, 4, 0, 2, 1, *rest).flatten(2, 3).unsqueeze(3).contiguous()


def _from_rows(rows: Tensor, batch: int) -> Tensor:
    """The inverse of `_to_rows`."""
    split = rows.view(*rows.shape[:2], batch, -1, *rows.shape[4:])  # (L, P, B, M, Q, ...)
    rest = range(5, split.dim())
    return split.permute(2, 4, 3, 0, 1, *rest)


def _points(levels: int, points: int) -> Iterator[tuple[int, int]]:
    return ((level, point) for level in range(levels) for point in range(points))


def _sample(level_map: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(level_map, grid, align_corners=False)


class _PointByPoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        B, _, M, D = value.shape
        maps, grids, shares = _to_maps(value, shapes), _to_rows(2 * locations - 1), _to_rows(weights)
        total = value.new_zeros(B * M, D, 1, locations.shape[1])
        for at in _points(len(shapes), weights.shape[4]):
            total.addcmul_(_sample(maps[at[0]], grids[at]), shares[at].unsqueeze(1))
        return total.view(B, M * D, -1).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        value, locations, weights = ctx.saved_tensors
        B, _, M, D = value.shape
        maps, grids, shares = _to_maps(value, ctx.shapes), _to_rows(2 * locations - 1), _to_rows(weights)
        gradient = gradient.transpose(1, 2).reshape(B * M, D, 1, -1)
        map_grads = [torch.zeros_like(level, memory_format=torch.contiguous_format) for level in maps]
        grid_grads, share_grads = torch.empty_like(grids), torch.empty_like(shares)
        for at in _points(len(maps), weights.shape[4]):
            with torch.enable_grad():
                level, grid = maps[at[0]].detach().requires_grad_(), grids[at].detach().requires_grad_()
                samples = _sample(level, grid)
            share_grads[at] = (samples.detach() * gradient).sum(dim=1)
            weighted = gradient * shares[at].unsqueeze(1)
            level_grad, grid_grads[at] = torch.autograd.grad(samples, (level, grid), weighted)
            map_grads[at[0]] += level_grad
        value_grad = torch.cat([level.flatten(2) for level in map_grads], dim=2).view(B, M, D, -1)
        return value_grad.permute(0, 3, 1, 2), 2 * _from_rows(grid_grads, B), _from_rows(share_grads, B), None
