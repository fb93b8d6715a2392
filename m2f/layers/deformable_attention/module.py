"""The attention module around the operator: where to look and how much, both predicted from the query."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from m2f.layers.deformable_attention import deformable_attention


class MultiScaleDeformableAttention(nn.Module):
    """Attention of C channels to P points per head and level.

    Args:
        dim: C.
        num_heads: M; divides C.
        num_levels: L.
        num_points: P.

    Raises:
        ValueError: the heads do not divide the channels.

    Source: Deformable DETR, arXiv:2010.04159.
    """

    attend = staticmethod(deformable_attention)  # an exporter puts another form of the operator here for a while

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be split over {num_heads} heads (convs_dim, nheads)")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal attention to points that lie 1 to P pixels away, each head in its own direction."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)  # onto the square of half side one
        reach = torch.arange(1, self.num_points + 1).view(-1, 1)
        offsets = (direction.view(-1, 1, 1, 2) * reach).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Let queries read the levels around their reference points.

        Args:
            query: (B, Q, C), position encoding included.
            reference: (Q, 2), (x, y) in [0, 1].
            value: (B, S, C), the flattened levels.
            shapes: L pairs (h, w).

        Returns:
            (B, Q, C).
        """
        grid = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points)
        pixels = level_sizes([(width, height) for height, width in shapes], query)  # (L, 2)
        offsets = self.sampling_offsets(query).view(*grid, 2) / pixels[:, None]
        weights = self.attention_weights(query).view(*grid[:3], -1).softmax(dim=-1).view(grid)
        locations = reference[:, None, None, None] + offsets  # (B, Q, M, L, P, 2)
        value = self.value_proj(value).view(*value.shape[:2], self.num_heads, -1)
        out: Tensor = self.output_proj(self.attend(value, shapes, locations, weights))
        return out


def level_sizes(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """L pairs as (L, 2), in the dtype and on the device of `like`; in a traced graph they stay sizes of its input."""
    if not torch.jit.is_tracing():
        return like.new_tensor(shapes)
    return torch.stack([torch.stack([torch.as_tensor(length) for length in shape]) for shape in shapes]).to(like)
