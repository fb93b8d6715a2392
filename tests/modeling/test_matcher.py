"""Costs against plain loops, assignments against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling.matcher import HungarianMatcher, LossWeights, class_cost, dice_cost, mask_cost
from m2f.modeling.targets import MaskTarget, TargetBatch

K = 5


def prediction(batch: int, queries: int) -> MaskPrediction:
    return MaskPrediction(
        torch.randn(batch, queries, K + 1), torch.randn(batch, queries, 8), torch.randn(batch, 8, 16, 16)
    )


def target(count: int) -> MaskTarget:
    return MaskTarget(torch.randint(K, (count,)), torch.rand(count, 64, 64) > 0.5)


def total_cost(pred: MaskPrediction, targets: TargetBatch, points: Tensor) -> Tensor:
    """Sum of the three costs in the plainest form, (B, Q, max N)."""
    logits, masks, labels = pred.at_points(points), targets.padded_masks_at(points), targets.padded_labels()
    cost = torch.zeros(*logits.shape[:2], masks.shape[1])
    for b, q, n in itertools.product(*map(range, cost.shape)):
        x, t = logits[b, q], masks[b, n]
        probability = x.sigmoid()
        cost[b, q, n] = (
            -2 * pred.class_logits[b, q].softmax(0)[labels[b, n]]
            + 5 * F.binary_cross_entropy_with_logits(x, t)
            + 5 * (1 - (2 * (probability * t).sum() + 1) / (probability.sum() + t.sum() + 1))
        )
    return cost


def test_costs_are_those_of_plain_loops() -> None:
    pred, batch, points = prediction(2, 4), TargetBatch([target(3), target(2)]), torch.rand(2, 40, 2)
    logits, masks, weights = pred.at_points(points), batch.padded_masks_at(points), torch.ones(2, 40)
    cost = (
        2 * class_cost(pred.class_logits, batch.padded_labels())
        + 5 * mask_cost(logits, masks, weights)
        + 5 * dice_cost(logits, masks, weights)
    )
    torch.testing.assert_close(cost, total_cost(pred, batch, points), rtol=1e-4, atol=1e-5)


def test_mask_costs_do_not_look_into_void() -> None:
    logits, masks, weights = torch.randn(1, 3, 20), torch.rand(1, 2, 20), torch.ones(1, 20)
    weights[:, 12:] = 0
    for cost in (mask_cost, dice_cost):
        torch.testing.assert_close(
            cost(logits, masks, weights), cost(logits[..., :12], masks[..., :12], weights[:, :12])
        )


def test_perfect_masks_cost_nothing() -> None:
    masks = (torch.rand(1, 3, 500) > 0.5).float()
    weights = torch.ones(1, 500)
    logits = (masks * 2 - 1) * 40
    for cost in (mask_cost, dice_cost):
        own = cost(logits, masks, weights)[0].diagonal()
        torch.testing.assert_close(own, torch.zeros(3), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("queries", "count"), [(4, 3), (3, 5), (4, 4), (1, 3)])
def test_assignment_is_the_cheapest_of_all(queries: int, count: int) -> None:
    pred, batch, points = prediction(1, queries), TargetBatch([target(count)]), torch.rand(1, 40, 2)
    cost = total_cost(pred, batch, points)[0]
    [[(rows, columns)]] = HungarianMatcher(LossWeights()).match(pred, 1, batch, points)
    pairs = min(queries, count)
    assert len(rows) == len(set(columns.tolist())) == pairs
    assert rows.tolist() == sorted(set(rows.tolist()))
    cheapest = min(
        float(cost[list(some), list(order)].sum())
        for some in itertools.combinations(range(queries), pairs)
        for order in itertools.permutations(range(count), pairs)
    )
    assert float(cost[rows, columns].sum()) == pytest.approx(cheapest, abs=1e-4)


def test_layers_are_matched_each_for_itself() -> None:
    first, second = prediction(2, 6), prediction(2, 6)
    second.mask_features = first.mask_features
    batch, points = TargetBatch([target(3), target(0)]), torch.rand(2, 40, 2)
    matcher = HungarianMatcher(LossWeights())
    stacked = MaskPrediction(
        torch.cat([first.class_logits, second.class_logits], 1),
        torch.cat([first.mask_embed, second.mask_embed], 1),
        first.mask_features,
    )
    together = matcher.match(stacked, 2, batch, points)
    for layer, single in enumerate((first, second)):
        [alone] = matcher.match(single, 1, batch, points)
        for (q, t), (q2, t2) in zip(together[layer], alone, strict=True):
            assert q.tolist() == q2.tolist()
            assert t.tolist() == t2.tolist()
    assert together[0][1][0].shape == (0,)


def test_no_target_at_all() -> None:
    matches = HungarianMatcher(LossWeights()).match(
        prediction(2, 6), 3, TargetBatch([target(0), target(0)]), torch.rand(2, 9, 2)
    )
    assert [[len(q) for q, _ in layer] for layer in matches] == [[0, 0]] * 3


def test_the_author_of_a_nan_is_named() -> None:
    pred = prediction(2, 4)
    pred.class_logits[1, 3] = torch.nan  # two layers of two queries: the second layer of image 1
    with pytest.raises(FloatingPointError, match=r"prediction 1 .* image 1 "):
        HungarianMatcher(LossWeights()).match(pred, 2, TargetBatch([target(2), target(2)]), torch.rand(2, 9, 2))
