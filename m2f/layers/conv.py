"""Convolution, norm and activation as one module, and the norms that a spec may name."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("GN", "LN", "BN", "SyncBN", "")


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W), each pixel by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups.

    Note: widths that 32 does not divide, which the published models never have, get their largest common divisor.
    """
    return nn.GroupNorm(math.gcd(32, channels), channels)


def build_norm(name: str, channels: int) -> nn.Module | None:
    """The norm that `model.sem_seg_head.norm` names; None for the empty name.

    Raises:
        ValueError: the name is none of `NORMS`.
    """
    if name == "GN":
        return group_norm(channels)
    if name == "LN":
        return ChannelLayerNorm(channels, eps=1e-6)
    if name == "BN":
        return nn.BatchNorm2d(channels)
    if name == "SyncBN":
        return nn.SyncBatchNorm(channels)
    if name == "":
        return None
    raise ValueError(f"model.sem_seg_head.norm is {name!r}; choose one of {', '.join(map(repr, NORMS))}")


class ConvNorm(nn.Conv2d):
    """A convolution that keeps the size, then a norm and perhaps ReLU; a bias only where no norm follows.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd; the padding is half of it.
        norm: one of `NORMS`.
        activation: whether ReLU ends it.

    Raises:
        ValueError: the norm is unknown.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, norm: str = "", activation: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm == "")
        self.norm = build_norm(norm, out_channels)
        self.activation = activation
        xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu(x) if self.activation else x


def xavier_(conv: nn.Conv2d) -> None:
    """Weights uniform with variance one over the fan-in, bias zero."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
