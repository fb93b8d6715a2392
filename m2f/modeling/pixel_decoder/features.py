"""What every pixel decoder hands to the transformer decoder, and the checks they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from m2f.modeling.backbone.backbone import FeatureShape

NUM_LEVELS = 3
"""Levels the transformer decoder looks at in turn."""


class PixelFeatures(NamedTuple):
    """A batch's features after the pixel decoder, float32.

    Attributes:
        mask_features: (B, mask_dim, H / common_stride, W / common_stride).
        multi_scale: three of (B, C, h, w), coarse to fine (strides 32, 16, 8 by default).
    """

    mask_features: Tensor
    multi_scale: list[Tensor]


def by_stride(shapes: Mapping[str, FeatureShape], common_stride: int) -> dict[str, FeatureShape]:
    """The features from the common stride upwards, finest first.

    Raises:
        ValueError: no feature has the common stride.
    """
    ordered = dict(sorted(shapes.items(), key=lambda item: item[1].stride))
    usable = {name: shape for name, shape in ordered.items() if shape.stride >= common_stride}
    strides = [shape.stride for shape in ordered.values()]
    if common_stride not in strides:
        raise ValueError(
            f"model.sem_seg_head.common_stride is {common_stride}, but the backbone's features "
            f"{list(ordered)} have the strides {strides}"
        )
    return usable


def in_float32(features: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The named features, at least as exact as float32."""
    return {name: features[name].to(torch.promote_types(features[name].dtype, torch.float32)) for name in names}
