"""Losses over layers: match once, then class, mask and Dice terms of every supervised prediction in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2f.layers.mask_prediction import MaskPrediction, stack_queries
from m2f.layers.points import PointSource, RandomPoints, sample_points
from m2f.modeling.build import CRITERION_REGISTRY
from m2f.modeling.matcher import HungarianMatcher, LossWeights, Match
from m2f.modeling.targets import MaskTarget, TargetBatch

__all__ = ["LossWeights", "MaskCriterion", "MaskTarget"]

# Matched masks whose candidate points are drawn at a time: bounds memory at 3 x 12544 candidates a mask.
_MASKS_AT_A_TIME = 64


class Pairs(NamedTuple):
    """R matched (query, target) pairs of all layers, image by image and within an image layer by layer; each (R,)."""

    image: Tensor
    layer: Tensor
    query: Tensor  # among the L * Q stacked queries
    target: Tensor  # among the batch's targets
    per_image: list[int]  # pairs of each image; they sum to R


@CRITERION_REGISTRY.register()
class MaskCriterion(nn.Module):
    """The set loss of Mask2Former, arXiv:2112.01527: classification, binary cross-entropy and Dice at sampled points.

    Args:
        num_classes: K; label K is no-object.
        weights: of the three losses, and of the three matching costs.
        no_object_weight: weight of label K in the classification loss.
        num_points: P points per mask, for matching and for the losses alike.
        points: where the points come from.
        deep_supervision: losses on every prediction; otherwise the last alone is looked at.
        ignore_void: points in void count neither in matching nor in mask losses; otherwise void is background.
    """

    class_weights: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        weights: LossWeights,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        points: PointSource | None = None,
        deep_supervision: bool = True,
        ignore_void: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weights = weights
        self.num_points = num_points
        self.points: PointSource = RandomPoints() if points is None else points
        self.deep_supervision = deep_supervision
        self.ignore_void = ignore_void
        self.matcher = HungarianMatcher(weights)
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    @classmethod
    def from_config(cls, cfg: Any, num_classes: int) -> dict[str, Any]:
        """Constructor arguments from a cfg."""
        former = cfg.model.mask_former
        return {
            "num_classes": num_classes,
            "weights": LossWeights(former.class_weight, former.mask_weight, former.dice_weight),
            "no_object_weight": former.no_object_weight,
            "num_points": former.train_num_points,
            "points": RandomPoints(former.oversample_ratio, former.importance_sample_ratio),
            "deep_supervision": former.deep_supervision,
            "ignore_void": former.ignore_void,
        }

    def forward(
        self, predictions: Sequence[MaskPrediction], targets: Sequence[MaskTarget], num_masks: float
    ) -> dict[str, Tensor]:
        """Weighted losses, in float32 whatever autocast says.

        Args:
            predictions: one per supervised layer, the last one final.
            targets: one per image.
            num_masks: what sums over matched masks are divided by.

        Returns:
            Scalars `loss_ce`, `loss_mask`, `loss_dice` of the last prediction, and with a suffix `_l` those of
            prediction l before it (0 = the bare queries).

        Raises:
            FloatingPointError: the predictions are not finite.
        """
        suffixes = [f"_{layer}" for layer in range(len(predictions) - 1)] + [""]
        if not self.deep_supervision:
            predictions, suffixes = predictions[-1:], suffixes[-1:]
        layers = len(predictions)
        with torch.autocast(predictions[0].class_logits.device.type, enabled=False):
            stacked, batch = stack_queries(predictions), self._batch(targets)
            pairs = _flatten(self._match(stacked, layers, batch), stacked, batch)
            class_loss = self._class_loss(stacked.class_logits.float(), pairs, batch, layers)
            mask_loss, dice_loss = self._mask_losses(stacked, pairs, batch, layers)
        terms = {
            "loss_ce": self.weights.classes * class_loss,
            "loss_mask": self.weights.masks * mask_loss / num_masks,
            "loss_dice": self.weights.dice * dice_loss / num_masks,
        }
        return {name + suffixes[i]: term[i] for i in reversed(range(layers)) for name, term in terms.items()}

    def match(self, predictions: Sequence[MaskPrediction], targets: Sequence[MaskTarget]) -> list[list[Match]]:
        """`[layer][image]` -> (query indices, target indices): the assignment that `forward` would train on."""
        return self._match(stack_queries(predictions), len(predictions), self._batch(targets))

    def _batch(self, targets: Sequence[MaskTarget]) -> TargetBatch:
        return TargetBatch(targets if self.ignore_void else [target._replace(valid=None) for target in targets])

    def _match(self, stacked: MaskPrediction, layers: int, batch: TargetBatch) -> list[list[Match]]:
        points = self.points.matching(len(batch.counts), self.num_points, stacked.class_logits.device)
        return self.matcher.match(stacked, layers, batch, points)

    def _class_loss(self, class_logits: Tensor, pairs: Pairs, batch: TargetBatch, layers: int) -> Tensor:
        """(L,) cross-entropy over all queries, a mean weighted by each query's class weight."""
        labels = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)
        labels[pairs.image, pairs.query] = batch.labels[pairs.target]
        entropy = F.cross_entropy(class_logits.mT, labels, self.class_weights, reduction="none")  # (B, L * Q)
        weight = self.class_weights[labels]
        total, norm = (value.view(len(labels), layers, -1).sum(dim=(0, 2)) for value in (entropy, weight))
        return total / norm.clamp(min=torch.finfo(norm.dtype).tiny)

    def _mask_losses(
        self, stacked: MaskPrediction, pairs: Pairs, batch: TargetBatch, layers: int
    ) -> tuple[Tensor, Tensor]:
        """Sums over each layer's matched masks of binary cross-entropy and Dice loss, (L,) each."""
        if len(pairs.query) == 0:  # zero, but still a function of everything that masks are made of
            zero = 0 * (stacked.mask_embed.float().sum() + stacked.mask_features.float().sum())
            return zero.expand(layers), zero.expand(layers)
        dense = torch.cat(
            [stacked.mask_logits(i, query) for i, query in enumerate(torch.split(pairs.query, pairs.per_image))]
        )
        points = torch.cat(list(self._loss_points(dense.detach())))
        logits = sample_points(dense.unsqueeze(1), points).squeeze(1)
        truth, weights = batch.masks_at(pairs.target, points), batch.weights_at(pairs.image, points)
        by_layer = F.one_hot(pairs.layer, layers).to(logits.dtype)  # a product sums in a fixed order, index_add may not
        return mask_loss(logits, truth, weights) @ by_layer, dice_loss(logits, truth, weights) @ by_layer

    def _loss_points(self, dense: Tensor) -> Iterator[Tensor]:
        """Points (R', P, 2) of a few masks (R', h, w) at a time."""
        for masks in torch.split(dense, _MASKS_AT_A_TIME):

            def logits_at(points: Tensor, masks: Tensor = masks) -> Tensor:
                return sample_points(masks.unsqueeze(1), points).squeeze(1)

            yield self.points.losses(logits_at, len(masks), self.num_points, dense.device)


def mask_loss(mask_logits: Tensor, target_masks: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, averaged over the points that count.

    Args:
        mask_logits: (R, P) before the sigmoid.
        target_masks: (R, P) in [0, 1].
        weights: (R, P), 1 where a point counts and 0 in void.

    Returns:
        (R,).
    """
    entropy = F.binary_cross_entropy_with_logits(mask_logits, target_masks, weights, reduction="none")
    return entropy.sum(1) / weights.sum(1).clamp(min=1)


def dice_loss(mask_logits: Tensor, target_masks: Tensor, weights: Tensor) -> Tensor:
    """Soft-Dice loss of each mask over the points that count, smoothed by 1; arguments as in `mask_loss`.

    Returns:
        (R,) in [0, 1].
    """
    probabilities = mask_logits.sigmoid() * weights
    counted = target_masks * weights
    shared = (probabilities * target_masks).sum(1)
    return 1 - (2 * shared + 1) / (probabilities.sum(1) + counted.sum(1) + 1)


def _flatten(matches: list[list[Match]], stacked: MaskPrediction, batch: TargetBatch) -> Pairs:
    """The matches of all layers and images as one table, in one copy to the device."""
    queries = stacked.mask_embed.shape[1] // len(matches)
    per_image = [sum(len(per_layer[image][0]) for per_layer in matches) for image in range(len(batch.counts))]
    rows = [
        torch.stack(
            [torch.full_like(query, image), torch.full_like(query, layer), layer * queries + query, first + target]
        )
        for image, first in enumerate(batch.first_rows)
        for layer, (query, target) in enumerate(per_layer[image] for per_layer in matches)
    ]
    image, layer, query, target = torch.cat(rows, dim=1).to(stacked.class_logits.device).unbind(0)
    return Pairs(image, layer, query, target, per_image)
