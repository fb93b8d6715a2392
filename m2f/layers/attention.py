"""The three blocks of a transformer decoder layer: self-attention, cross-attention, feed-forward.

Each adds to its input and normalises: after the sum, or before the attention where `pre_norm` is set.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Scaled dot-product attention; a graph traced in eval mode gets its few steps, of which torch would write many.

    Args:
        q: (..., Q, D).
        k: (..., S, D).
        v: (..., S, D).
        mask: broadcast to (..., Q, S): bool, True = may look, with at least one in every row; or added to the logits.
        dropout: probability of leaving out an attention weight.
        scale: of the logits; None: 1 / sqrt(D).

    Returns:
        (..., Q, D).
    """
    if not torch.jit.is_tracing():
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)
    logits = (q * (float(q.shape[-1]) ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if mask is not None:
        logits = torch.where(mask, logits, -math.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1) @ v


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention of several heads, the three input projections in one parameter.

    Args:
        dim: C.
        num_heads: M; divides C.

    Raises:
        ValueError: the heads do not divide the channels.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be split over {num_heads} heads (hidden_dim, nheads)")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            key: (B, S, C).
            value: (B, S, C).
            blocked: (B, Q, S) bool, True = may not look; every row leaves something to look at. None: look anywhere.

        Returns:
            (B, Q, C).
        """
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (self._split_heads(F.linear(x, weight, bias)) for x, weight, bias in projections)
        allowed = None if blocked is None else ~blocked.unsqueeze(1)
        read = attend(q, k, v, allowed)  # (B, M, Q, C / M)
        out: Tensor = self.out_proj(read.transpose(1, 2).flatten(2))
        return out

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, M, S, C / M)."""
        return x.reshape(*x.shape[:2], self.num_heads, self.out_proj.in_features // self.num_heads).transpose(1, 2)


class SelfAttentionBlock(nn.Module):
    """Queries look at one another.

    Args:
        dim: C.
        num_heads: M.
        pre_norm: normalise before the attention instead of after the sum.
    """

    def __init__(self, dim: int, num_heads: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, queries: Tensor, positions: Tensor) -> Tensor:
        """(B, Q, C) to (B, Q, C); `positions` (Q, C) are added to what is compared, not to what is read."""
        x = self.norm(queries) if self.pre_norm else queries
        located = x + positions
        queries = queries + self.self_attn(located, located, x)
        return queries if self.pre_norm else self.norm(queries)


class CrossAttentionBlock(nn.Module):
    """Queries look at the pixels of a level.

    Args:
        dim: C.
        num_heads: M.
        pre_norm: normalise before the attention instead of after the sum.
    """

    def __init__(self, dim: int, num_heads: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, queries: Tensor, positions: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None) -> Tensor:
        """Read the pixels.

        Args:
            queries: (B, Q, C).
            positions: (B, Q, C) or (Q, C), added to what is compared.
            key: (B, S, C), position encoding included.
            value: (B, S, C).
            blocked: (B, Q, S) bool, True = may not look; see `MultiheadAttention`.

        Returns:
            (B, Q, C).
        """
        x = self.norm(queries) if self.pre_norm else queries
        queries = queries + self.multihead_attn(x + positions, key, value, blocked)
        return queries if self.pre_norm else self.norm(queries)


class FeedForwardBlock(nn.Module):
    """Each query by itself through two linear layers with ReLU between.

    Args:
        dim: C.
        hidden: channels between the two.
        pre_norm: normalise before the first layer instead of after the sum.
    """

    def __init__(self, dim: int, hidden: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """(B, Q, C) to (B, Q, C)."""
        x = self.norm(queries) if self.pre_norm else queries
        queries = queries + self.linear2(F.relu(self.linear1(x)))
        return queries if self.pre_norm else self.norm(queries)
