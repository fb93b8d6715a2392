"""A light pixel decoder: a feature pyramid of convolutions only, without attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2f.layers.conv import ConvNorm
from m2f.modeling.backbone.backbone import FeatureShape
from m2f.modeling.build import PIXEL_DECODER_REGISTRY
from m2f.modeling.pixel_decoder.features import NUM_LEVELS, PixelFeatures, by_stride, in_float32


@PIXEL_DECODER_REGISTRY.register()
class FPNPixelDecoder(nn.Module):
    """Lateral 1x1 and output 3x3 convolutions from the coarsest feature down to the common stride.

    Args:
        shapes: the backbone's features, at least three from the common stride upwards.
        dim: C, the width.
        mask_dim: channels of the mask features.
        common_stride: stride of the mask features.
        norm: of the convolutions: GN, LN, BN, SyncBN or "" (none).

    Raises:
        ValueError: too few features, or no feature of the common stride.

    Source: FPN, arXiv:1612.03144, whose nearest-neighbour upsampling is kept.
    """

    def __init__(
        self, *, shapes: Mapping[str, FeatureShape], dim: int, mask_dim: int, common_stride: int = 4, norm: str = "GN"
    ) -> None:
        super().__init__()
        self.multi_scale_channels, self.mask_dim = dim, mask_dim
        self.in_features = list(by_stride(shapes, common_stride))
        if len(self.in_features) < NUM_LEVELS:
            raise ValueError(f"FPNPixelDecoder needs {NUM_LEVELS} features or more; the backbone gives {list(shapes)}")
        *finer, coarsest = self.in_features
        for number, name in enumerate(finer, start=1):
            setattr(self, f"adapter_{number}", ConvNorm(shapes[name].channels, dim, 1, norm=norm))
            setattr(self, f"layer_{number}", ConvNorm(dim, dim, 3, norm=norm, activation=True))
        top = ConvNorm(shapes[coarsest].channels, dim, 3, norm=norm, activation=True)
        setattr(self, f"layer_{len(self.in_features)}", top)
        self.mask_features = ConvNorm(dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: Any, shapes: Mapping[str, FeatureShape]) -> dict[str, Any]:
        """The constructor's arguments from the spec and the backbone's features."""
        head = cfg.model.sem_seg_head
        return {
            "shapes": shapes,
            "dim": head.convs_dim,
            "mask_dim": head.mask_dim,
            "common_stride": head.common_stride,
            "norm": head.norm,
        }

    def forward(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        """Decode, in float32 even under autocast, as every pixel decoder does."""
        features = in_float32(features, self.in_features)
        *finer, coarsest = self.in_features
        with torch.autocast(features[coarsest].device.type, enabled=False):
            levels = [getattr(self, f"layer_{len(self.in_features)}")(features[coarsest])]
            for number in range(len(finer), 0, -1):
                lateral = getattr(self, f"adapter_{number}")(features[finer[number - 1]])
                upsampled = F.interpolate(levels[-1], size=lateral.shape[-2:], mode="nearest")
                levels.append(getattr(self, f"layer_{number}")(lateral + upsampled))
            return PixelFeatures(self.mask_features(levels[-1]), levels[:NUM_LEVELS])
