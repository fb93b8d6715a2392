"""The paper's pixel decoder: deformable attention across coarse levels, then an FPN down to the mask features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m2f.layers.conv import ConvNorm, group_norm
from m2f.layers.deformable_attention.module import MultiScaleDeformableAttention
from m2f.layers.position_encoding import sine_position_encoding
from m2f.modeling.backbone.backbone import FeatureShape
from m2f.modeling.build import PIXEL_DECODER_REGISTRY
from m2f.modeling.pixel_decoder.features import NUM_LEVELS, PixelFeatures, by_stride, in_float32

Shapes = Sequence[tuple[int, int]]


class DeformableEncoderLayer(nn.Module):
    """Every pixel of every level reads the levels around it; then a feed-forward step; norms after the sums.

    Args:
        dim: C.
        feedforward: hidden channels of the feed-forward step.
        num_heads: M.
        num_levels: L.
        num_points: P per head and level.
        dropout: probability, after the attention and twice in the feed-forward step.
    """

    def __init__(
        self, dim: int, feedforward: int, num_heads: int, num_levels: int, num_points: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(dim, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, pixels: Tensor, positions: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """(B, S, C) to (B, S, C); `positions` (S, C), `reference` (S, 2) = where each pixel lies, (x, y) in [0, 1]."""
        attended = self.self_attn(pixels + positions, reference, pixels, shapes)
        pixels = self.norm1(pixels + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(pixels)))
        out: Tensor = self.norm2(pixels + self.dropout(self.linear2(hidden)))
        return out


class _Encoder(nn.Module):
    """Holds the layers under the official name `encoder.layers`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class DeformableEncoder(nn.Module):
    """Levels of C channels to levels of the same shapes that know of one another.

    Args:
        layers: the encoder layers, in order.
        num_levels: L.
        dim: C, a multiple of 4.
        activation_checkpoint: recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self, layers: Sequence[DeformableEncoderLayer], num_levels: int, dim: int, activation_checkpoint: bool
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(layers)
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))
        self.activation_checkpoint = activation_checkpoint

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """L of (B, C, h, w) to L of (B, C, h, w)."""
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        pixels = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, S, C)
        positions, reference = self._positions(shapes, pixels), _pixel_centres(shapes, pixels)
        for layer in self.encoder.layers:
            if self.activation_checkpoint and self.training:
                pixels = checkpoint(layer, pixels, positions, reference, shapes, use_reentrant=False)
            else:
                pixels = layer(pixels, positions, reference, shapes)
        parts = torch.split(pixels, [height * width for height, width in shapes], dim=1)
        return [
            part.transpose(1, 2).reshape(part.shape[0], part.shape[2], *shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def _positions(self, shapes: Shapes, like: Tensor) -> Tensor:
        """(S, C): where in its level, and in which level."""
        num_feats = self.level_embed.shape[1] // 2
        encodings = [sine_position_encoding(h, w, num_feats, like.device, like.dtype) for h, w in shapes]
        return torch.cat([e[0].flatten(1).t() + level for e, level in zip(encodings, self.level_embed, strict=True)])


def _pixel_centres(shapes: Shapes, like: Tensor) -> Tensor:
    """(S, 2): (x, y) in [0, 1] of each pixel of each level."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        centres.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1))
    return torch.cat(centres)


@PIXEL_DECODER_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone features to mask features and three levels.

    Args:
        shapes: the backbone's features.
        encoder_features: names of those that the encoder reads; finer ones join by FPN steps.
        dim: C, the width, a multiple of 4 and of `num_heads`.
        mask_dim: channels of the mask features.
        common_stride: stride of the mask features.
        norm: of the FPN's convolutions: GN, LN, BN, SyncBN or "" (none).
        num_layers: encoder layers.
        num_heads: M of the encoder.
        num_points: P of the encoder, per head and level.
        feedforward: hidden channels of an encoder layer.
        dropout: probability in the encoder.
        activation_checkpoint: recompute encoder layers in the backward pass.

    Raises:
        ValueError: a feature is missing, or the widths, strides or number of levels do not fit.

    Source: Mask2Former, arXiv:2112.01527; Deformable DETR, arXiv:2010.04159.
    """

    def __init__(
        self,
        *,
        shapes: Mapping[str, FeatureShape],
        encoder_features: Sequence[str],
        dim: int,
        mask_dim: int,
        common_stride: int = 4,
        norm: str = "GN",
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward: int = 1024,
        dropout: float = 0.0,
        activation_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"model.sem_seg_head.convs_dim is {dim}; the position encoding needs a multiple of 4")
        self.multi_scale_channels, self.mask_dim = dim, mask_dim
        self.encoder_features, self.fpn_features = _split_features(shapes, encoder_features, common_stride)
        self.input_proj = nn.ModuleList(_projection(shapes[name].channels, dim) for name in self.encoder_features)
        num_levels = len(self.encoder_features)
        layers = [
            DeformableEncoderLayer(dim, feedforward, num_heads, num_levels, num_points, dropout)
            for _ in range(num_layers)
        ]
        self.transformer = DeformableEncoder(layers, num_levels, dim, activation_checkpoint)
        for number, name in enumerate(reversed(self.fpn_features), start=1):
            setattr(self, f"adapter_{number}", ConvNorm(shapes[name].channels, dim, 1, norm=norm))
            setattr(self, f"layer_{number}", ConvNorm(dim, dim, 3, norm=norm, activation=True))
        self.mask_features = ConvNorm(dim, mask_dim, 1)

    @classmethod
    def from_config(cls, cfg: Any, shapes: Mapping[str, FeatureShape]) -> dict[str, Any]:
        """The constructor's arguments from the spec and the backbone's features."""
        head, former = cfg.model.sem_seg_head, cfg.model.mask_former
        return {
            "shapes": shapes,
            "encoder_features": head.deformable_transformer_encoder_in_features,
            "dim": head.convs_dim,
            "mask_dim": head.mask_dim,
            "common_stride": head.common_stride,
            "norm": head.norm,
            "num_layers": head.transformer_enc_layers,
            "num_heads": former.nheads,
            "num_points": head.encoder_num_points,
            "feedforward": head.encoder_dim_feedforward,
            "dropout": former.dropout,
            "activation_checkpoint": cfg.train.activation_checkpoint,
        }

    def forward(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        """Decode, in float32 even under autocast: sampling locations need the digits."""
        features = in_float32(features, [*self.encoder_features, *self.fpn_features])
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            projected = [
                project(features[name]) for name, project in zip(self.encoder_features, self.input_proj, strict=True)
            ]
            levels = self.transformer(projected)
            for number, name in zip(range(len(self.fpn_features), 0, -1), self.fpn_features, strict=True):
                levels.append(self._fpn_step(number, features[name], levels[-1]))
            return PixelFeatures(self.mask_features(levels[-1]), levels[:NUM_LEVELS])

    def _fpn_step(self, number: int, feature: Tensor, coarser: Tensor) -> Tensor:
        lateral = getattr(self, f"adapter_{number}")(feature)
        upsampled = F.interpolate(coarser, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = getattr(self, f"layer_{number}")(lateral + upsampled)
        return out


def _projection(in_channels: int, dim: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, dim, 1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # a convolution's bias is optional in its type
    return nn.Sequential(conv, group_norm(dim))


def _split_features(
    shapes: Mapping[str, FeatureShape], encoder_features: Sequence[str], common_stride: int
) -> tuple[list[str], list[str]]:
    """Names for the encoder and for the FPN steps, each coarse to fine.

    Raises:
        ValueError: a feature is missing, or fewer than three levels come out.
    """
    key = "model.sem_seg_head.deformable_transformer_encoder_in_features"
    missing = [name for name in encoder_features if name not in shapes]
    if missing or not encoder_features:
        raise ValueError(f"{key} is {list(encoder_features)}; the backbone gives {', '.join(shapes)}")
    names = list(reversed(by_stride(shapes, common_stride)))
    too_fine = [name for name in encoder_features if name not in names]
    if too_fine:
        raise ValueError(f"{key} has {too_fine}, finer than model.sem_seg_head.common_stride {common_stride}")
    finest = min(shapes[name].stride for name in encoder_features)
    encoder = [name for name in names if name in encoder_features]
    steps = [name for name in names if shapes[name].stride < finest]
    if len(encoder) + len(steps) < NUM_LEVELS:
        raise ValueError(
            f"{key} {list(encoder_features)} and common_stride {common_stride} give {len(encoder) + len(steps)} "
            f"levels; the transformer decoder needs {NUM_LEVELS}"
        )
    return encoder, steps
