"""Which query answers for which target: three costs, one sum, one assignment per layer and image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling.targets import TargetBatch

Match = tuple[Tensor, Tensor]
"""(query indices, ascending; their target indices), both (M,) int64 on the CPU, M = min(Q, N)."""


class LossWeights(NamedTuple):
    """How much each term counts, as a matching cost and as a loss."""

    classes: float = 2.0
    masks: float = 5.0
    dice: float = 5.0


def class_cost(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability that a query gives to a target's class.

    Args:
        class_logits: (B, Q, K+1).
        labels: (B, N) in 0 .. K-1.

    Returns:
        (B, Q, N) in [-1, 0].

    Source: DETR, arXiv:2005.12872, section 3.1: the probability, not its logarithm.
    """
    probabilities = class_logits.softmax(-1)
    return -probabilities.gather(2, labels.unsqueeze(1).expand(-1, class_logits.shape[1], -1))


def mask_cost(mask_logits: Tensor, target_masks: Tensor, weights: Tensor) -> Tensor:
    """Pairwise binary cross-entropy, averaged over the points that count.

    The entropy of logit x against truth t is softplus(x) - x t: one term knows no target, the other is a product.

    Args:
        mask_logits: (B, Q, P) before the sigmoid.
        target_masks: (B, N, P) in [0, 1], at the same points.
        weights: (B, P), 1 where a point counts and 0 in void.

    Returns:
        (B, Q, N), 0 or more.

    Source: Mask2Former, arXiv:2112.01527, section 3.3.
    """
    own = F.softplus(mask_logits) @ weights.unsqueeze(-1)  # (B, Q, 1)
    shared = mask_logits @ (target_masks * weights.unsqueeze(1)).mT
    return (own - shared) / weights.sum(-1).clamp(min=1)[:, None, None]


def dice_cost(mask_logits: Tensor, target_masks: Tensor, weights: Tensor) -> Tensor:
    """Pairwise soft-Dice cost over the points that count.

    Args:
        mask_logits: (B, Q, P) before the sigmoid.
        target_masks: (B, N, P) in [0, 1], at the same points.
        weights: (B, P), 1 where a point counts and 0 in void.

    Returns:
        (B, Q, N) in [0, 1]; 0 is a perfect match. Both sums are smoothed by 1, so two empty masks cost 0 as well.

    Source: V-Net's Dice (arXiv:1606.04797) without the squares in the denominator, as in Mask2Former.
    """
    probabilities = mask_logits.sigmoid()
    counted = target_masks * weights.unsqueeze(1)
    shared = probabilities @ counted.mT
    total = probabilities @ weights.unsqueeze(-1) + counted.sum(-1).unsqueeze(1)
    return 1 - (2 * shared + 1) / (total + 1)


class HungarianMatcher:
    """One-to-one assignment of queries to targets at the least total cost.

    Args:
        weights: of the three costs.
    """

    def __init__(self, weights: LossWeights) -> None:
        self.weights = weights

    @torch.no_grad()
    def match(self, stacked: MaskPrediction, layers: int, targets: TargetBatch, points: Tensor) -> list[list[Match]]:
        """Assign for all layers and images: one batched computation, one copy to the host.

        Args:
            stacked: the predictions of all layers as one of `layers` * Q queries, see `stack_queries`.
            layers: L.
            targets: of the batch.
            points: (B, P, 2) at which masks are compared, shared by all layers and all masks of an image.

        Returns:
            `[layer][image]` -> `Match`; with more targets than queries, some targets stay without one.

        Raises:
            FloatingPointError: a cost is NaN or infinite; the message names prediction and image.
        """
        if max(targets.counts) == 0:
            nothing = torch.zeros(0, dtype=torch.int64)
            return [[(nothing, nothing) for _ in targets.counts] for _ in range(layers)]
        stacked_costs = self._costs(stacked, targets, points)
        costs = stacked_costs.view(len(points), layers, -1, stacked_costs.shape[-1]).cpu().numpy()
        return [
            [_assign(costs[image, layer, :, :count], layer, image) for image, count in enumerate(targets.counts)]
            for layer in range(layers)
        ]

    def _costs(self, stacked: MaskPrediction, targets: TargetBatch, points: Tensor) -> Tensor:
        """(B, L * Q, max N) float32."""
        masks = targets.padded_masks_at(points)
        weights = targets.weights_at(torch.arange(len(points), device=points.device), points)
        with torch.autocast(points.device.type, enabled=False):
            logits = stacked.at_points(points)
            cost = self.weights.classes * class_cost(stacked.class_logits.float(), targets.padded_labels())
            cost += self.weights.masks * mask_cost(logits, masks, weights)
            cost += self.weights.dice * dice_cost(logits, masks, weights)
        return cost


def _assign(cost: np.ndarray, layer: int, image: int) -> Match:
    """The cheapest assignment of a (Q, N) cost matrix."""
    if not np.isfinite(cost).all():
        raise FloatingPointError(
            f"the matching cost of prediction {layer} (0 = first) and image {image} of the batch is not finite: the "
            "model's class or mask logits are NaN or infinite; lower train.optim.lr, or use precision fp32 or bf16"
        )
    queries, targets = linear_sum_assignment(cost)
    return torch.as_tensor(queries, dtype=torch.int64), torch.as_tensor(targets, dtype=torch.int64)
