"""Losses against plain loops over layers and images, and what they must not depend on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2f.layers.mask_prediction import MaskPrediction
from m2f.layers.points import FixedPoints, sample_points
from m2f.modeling.criterion import LossWeights, MaskCriterion, MaskTarget

K = 5


def make_predictions(layers: int = 3, batch: int = 2, queries: int = 6) -> list[MaskPrediction]:
    features = torch.randn(batch, 8, 16, 16, requires_grad=True)
    return [
        MaskPrediction(
            torch.randn(batch, queries, K + 1, requires_grad=True),
            torch.randn(batch, queries, 8, requires_grad=True),
            features,
        )
        for _ in range(layers)
    ]


def make_target(count: int) -> MaskTarget:
    return MaskTarget(torch.randint(K, (count,)), torch.rand(count, 64, 64) > 0.5)


def make_criterion(fixed: bool = True, **options: object) -> MaskCriterion:
    points = {"points": FixedPoints(torch.rand(50, 2), torch.rand(70, 2))} if fixed else {}
    return MaskCriterion(num_classes=K, weights=LossWeights(), **{"num_points": 50, **points, **options})


def plain_losses(criterion: MaskCriterion, pred: MaskPrediction, targets: list[MaskTarget], num: float) -> list[Tensor]:
    """The three losses of one layer, written as in the paper, one mask after the other."""
    [matches] = criterion.match([pred], targets)
    labels = torch.full(pred.class_logits.shape[:2], K)
    mask = dice = torch.zeros(())
    for b, (queries, rows) in enumerate(matches):
        labels[b, queries] = targets[b].labels[rows]
        for q, row in zip(queries.tolist(), rows.tolist(), strict=True):
            points = criterion.points.losses(lambda p: p[..., 0], 1, 70, torch.device("cpu"))
            x = sample_points(pred.mask_logits(b, torch.tensor([q])).unsqueeze(0), points)[0, 0]
            t = sample_points(targets[b].masks[None, row : row + 1].float(), points)[0, 0]
            mask = mask + F.binary_cross_entropy_with_logits(x, t)
            dice = dice + 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
    weight = torch.ones(K + 1)
    weight[K] = 0.1
    return [2 * F.cross_entropy(pred.class_logits.mT, labels, weight), 5 * mask / num, 5 * dice / num]


def test_losses_are_those_of_plain_loops() -> None:
    predictions, targets = make_predictions(), [make_target(3), make_target(8)]
    criterion = make_criterion()
    losses = criterion(predictions, targets, 11.0)
    assert len(losses) == 9
    for pred, suffix in zip(predictions, ("_0", "_1", ""), strict=True):
        for name, expected in zip(
            ("loss_ce", "loss_mask", "loss_dice"), plain_losses(criterion, pred, targets, 11.0), strict=True
        ):
            torch.testing.assert_close(losses[name + suffix], expected, rtol=1e-5, atol=1e-6)


def test_permuting_queries_changes_nothing() -> None:
    predictions, targets = make_predictions(), [make_target(3), make_target(2)]
    criterion = make_criterion()
    order = torch.randperm(6)
    permuted = [MaskPrediction(p.class_logits[:, order], p.mask_embed[:, order], p.mask_features) for p in predictions]
    before, after = criterion(predictions, targets, 5.0), criterion(permuted, targets, 5.0)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
@pytest.mark.parametrize("fixed", [True, False])
def test_images_without_targets_are_safe_and_reach_every_input(counts: tuple[int, int], fixed: bool) -> None:
    predictions = make_predictions()
    losses = make_criterion(fixed)(predictions, [make_target(n) for n in counts], 1.0)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert predictions[0].mask_features.grad is not None
    for pred in predictions:
        assert pred.class_logits.grad is not None
        assert pred.class_logits.grad.abs().sum() > 0
        assert pred.mask_embed.grad is not None
        assert torch.isfinite(pred.mask_embed.grad).all()


def test_without_deep_supervision_the_last_prediction_alone_counts() -> None:
    predictions, targets = make_predictions(), [make_target(3), make_target(2)]
    criterion = make_criterion()
    full = criterion(predictions, targets, 5.0)
    criterion.deep_supervision = False
    last = criterion(predictions, targets, 5.0)
    assert list(last) == ["loss_ce", "loss_mask", "loss_dice"]
    for name, value in last.items():
        torch.testing.assert_close(value, full[name])


def test_void_is_not_looked_at() -> None:
    predictions, base = make_predictions(), make_target(3)
    valid = torch.ones(64, 64, dtype=torch.bool)
    valid[:, 30:] = False
    altered = base.masks.clone()
    altered[:, :, 31:] ^= True  # points next to the border blend pixels of both sides
    criterion = make_criterion()
    one = criterion(predictions, [base._replace(valid=valid), make_target(0)], 3.0)
    two = criterion(predictions, [MaskTarget(base.labels, altered, valid), make_target(0)], 3.0)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name])
    criterion.ignore_void = False
    counted = criterion(predictions, [MaskTarget(base.labels, altered, valid), make_target(0)], 3.0)
    assert not torch.isclose(counted["loss_mask"], one["loss_mask"])


def test_all_valid_is_the_same_as_no_valid() -> None:
    predictions, targets = make_predictions(), [make_target(3), make_target(2)]
    criterion = make_criterion()
    everywhere = [t._replace(valid=torch.ones(64, 64, dtype=torch.bool)) for t in targets]
    for name, value in criterion(predictions, targets, 5.0).items():
        torch.testing.assert_close(criterion(predictions, everywhere, 5.0)[name], value, rtol=0, atol=0)


def test_an_image_of_void_only_gives_zero_mask_loss() -> None:
    target = make_target(2)._replace(valid=torch.zeros(64, 64, dtype=torch.bool))
    losses = make_criterion()(make_predictions(batch=1), [target], 2.0)
    assert losses["loss_mask"] == 0
    assert losses["loss_dice"] == 0


def test_autocast_does_not_reach_the_losses() -> None:
    predictions, targets = make_predictions(), [make_target(3), make_target(2)]
    criterion = make_criterion()
    expected = criterion(predictions, targets, 5.0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = criterion(predictions, targets, 5.0)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_random_points_repeat_with_the_seed_and_are_the_number_asked_for() -> None:
    predictions, targets = make_predictions(), [make_target(3), make_target(2)]
    criterion = make_criterion(fixed=False)
    torch.manual_seed(1)
    first = criterion(predictions, targets, 5.0)
    torch.manual_seed(1)
    second = criterion(predictions, targets, 5.0)
    other = criterion(predictions, targets, 5.0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["loss_mask"], other["loss_mask"])


def test_perfect_predictions_have_almost_no_loss() -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, 32:] = True, True
    features = F.interpolate((masks.float() * 2 - 1)[None], size=(16, 16), mode="area") * 40
    logits = torch.full((1, 3, K + 1), -30.0)
    logits[0, 0, 4] = logits[0, 1, 2] = logits[0, 2, K] = 30.0
    embed = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]]])
    pred = MaskPrediction(logits, embed, features)
    losses = make_criterion()([pred], [MaskTarget(torch.tensor([2, 4]), masks)], 2.0)
    assert float(losses["loss_ce"]) < 1e-4
    assert float(losses["loss_mask"]) < 1.0  # the border blends at 1/4 resolution
    assert float(losses["loss_dice"]) < 0.3
