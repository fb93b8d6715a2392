"""Masks that are built only when asked for: a mask logit is an embedding times a feature map.

Bilinear resizing and sampling are linear, so they commute with that product. Whoever needs the masks at a coarse level,
at some points or of a few queries resizes, samples or selects *first* and multiplies afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m2f.layers.points import sample_points


def _product(embed: Tensor, features: Tensor) -> Tensor:
    """(..., Q, C) times (..., C, P): (..., Q, P), in float32 at least and outside autocast."""
    dtype = torch.promote_types(torch.promote_types(embed.dtype, features.dtype), torch.float32)
    with torch.autocast(embed.device.type, enabled=False):
        return embed.to(dtype) @ features.to(dtype)


@dataclass(eq=False)
class MaskPrediction:
    """What one decoder layer says about a batch: classes, and masks not yet multiplied out.

    Attributes:
        class_logits: (B, Q, K+1), no-object last.
        mask_embed: (B, Q, C).
        mask_features: (B, C, h, w) at the pixel decoder's stride (4): the same tensor for every layer.
    """

    class_logits: Tensor
    mask_embed: Tensor
    mask_features: Tensor

    def mask_logits(self, image: int, queries: Tensor | None = None) -> Tensor:
        """Dense logits (N, h, w) of one image's queries, before the sigmoid.

        Args:
            image: position in the batch.
            queries: (N,) indices or (Q,) bool; None for all.
        """
        embed = self.mask_embed[image] if queries is None else self.mask_embed[image][queries]
        features = self.mask_features[image]
        return _product(embed, features.flatten(1)).view(len(embed), *features.shape[1:])

    def all_mask_logits(self) -> Tensor:
        """Dense logits (B, Q, h, w) of every query; large, for export and comparisons."""
        logits = _product(self.mask_embed, self.mask_features.flatten(2))
        return logits.view(*logits.shape[:2], *self.mask_features.shape[2:])

    def at_points(self, points: Tensor) -> Tensor:
        """Logits (B, Q, P) at points (B, P, 2), without a dense mask; for all layers at once see `stack_queries`."""
        return _product(self.mask_embed, sample_points(self.mask_features, points))

    def blocked(self, level_features: Tensor) -> Tensor:
        """Where each query may not look at a level: outside its own mask.

        Args:
            level_features: (B, C, h', w') from `resize_features`.

        Returns:
            (B, Q, h' * w') bool, True = may not look; a query whose mask is empty may look everywhere. No gradient.

        Note: the paper's `sigmoid < 0.5` is `logit < 0`, without the sigmoid.
        """
        with torch.no_grad():
            outside = _product(self.mask_embed, level_features.flatten(2)) < 0
            return outside & ~outside.all(dim=-1, keepdim=True)


def resize_features(mask_features: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Mask features (B, C, h, w) at each (height, width): what resized masks are products of. No gradient."""
    features = mask_features.detach()
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(features.device.type, enabled=False):
        return [F.interpolate(features, size=size, mode="bilinear", align_corners=False) for size in sizes]


def stack_queries(predictions: Sequence[MaskPrediction]) -> MaskPrediction:
    """L predictions of Q queries with the same `mask_features` as one of L * Q queries, layer by layer.

    Sampling, matching and losses then handle all layers in one product per image.
    """
    return MaskPrediction(
        torch.cat([prediction.class_logits for prediction in predictions], dim=1),
        torch.cat([prediction.mask_embed for prediction in predictions], dim=1),
        predictions[0].mask_features,
    )
