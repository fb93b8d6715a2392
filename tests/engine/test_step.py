"""One step of training: accumulation, clipping, scaling, and what happens to numbers that are none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2f.engine.step import TrainStep
from m2f.solver import Schedule
from m2f.solver.clipping import make_clipper
from m2f.structures.instances import Instances


class SumOverMasks(nn.Module):
    """A loss that, like the mask losses, is a sum over targets divided by `num_masks`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, inputs: list[Any], num_masks: float) -> dict[str, Tensor]:
        rows = torch.stack([sample["image"] for sample in inputs])
        counts = torch.tensor([len(sample["instances"]) for sample in inputs])
        parts = self.linear(rows).float().squeeze(1) ** 2 * counts
        return {"loss_mask": parts.sum() / num_masks, "loss_dice": 2 * parts.sum() / num_masks}


def sample(targets: int, name: str = "a.png") -> dict[str, Any]:
    empty = torch.zeros(targets, 2, 2, dtype=torch.bool)
    return {"image": torch.randn(4), "instances": Instances(torch.zeros(targets).long(), empty), "file_name": name}


def build(model: nn.Module, precision: str = "fp32", limit: float = 0.0, rate: float = 0.1) -> TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    schedule = Schedule(optimizer, lambda _: 1.0)
    return TrainStep(model, optimizer, schedule, make_clipper("full", limit), precision, torch.device("cpu"))


def nothing() -> None:
    pass


def test_micro_batches_equal_the_big_batch() -> None:
    big, small = SumOverMasks(), SumOverMasks()
    small.load_state_dict(big.state_dict())
    batch = [sample(n) for n in (3, 0, 1, 5)]
    one = build(big)([batch], nothing)
    two = build(small)([batch[:2], batch[2:]], nothing)
    assert two.total_loss == pytest.approx(one.total_loss, rel=1e-6)
    assert two.losses["loss_mask"] == pytest.approx(one.losses["loss_mask"], rel=1e-6)
    assert torch.allclose(big.linear.weight, small.linear.weight, rtol=1e-6)


def test_gradient_norm_is_from_before_the_clip_and_the_step_from_after() -> None:
    model = SumOverMasks()
    before = copy.deepcopy(model)
    result = build(model, limit=0.01, rate=1.0)([[sample(3)]], nothing)
    assert result.gradient_norm > 0.01
    moved = torch.cat(
        [(a - b).detach().flatten() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    )
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_hooks_see_the_gradients_before_they_are_used() -> None:
    model = SumOverMasks()
    before = copy.deepcopy(model)

    def drop_gradients() -> None:
        assert model.linear.weight.grad is not None
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    build(model)([[sample(3)]], drop_gradients)
    assert torch.equal(model.linear.weight, before.linear.weight)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_steps_and_unscales(precision: str) -> None:
    exact, rough = SumOverMasks(), SumOverMasks()
    rough.load_state_dict(exact.state_dict())
    batch = [sample(2)]
    step = build(rough, precision)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=128, enabled=step.scaler.is_enabled())  # no overflow here
    one, two = build(exact)([batch], nothing), step([batch], nothing)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=0.05)
    assert torch.allclose(exact.linear.weight, rough.linear.weight, rtol=0.05, atol=0.05)


def test_what_is_not_finite_stops_before_a_weight_moves() -> None:
    model = SumOverMasks()
    before = copy.deepcopy(model)
    bad = sample(1, "bad.png")
    bad["image"][0] = torch.nan
    with pytest.raises(FloatingPointError) as caught:
        build(model)([[sample(1, "good.png")], [bad]], nothing)
    for word in ("loss_mask nan", "gradient norm nan", "learning rate 0.1", "good.png, bad.png"):
        assert word in str(caught.value)
    assert torch.equal(model.linear.weight, before.linear.weight)


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    model = SumOverMasks()

    def spoil() -> None:
        assert model.linear.weight.grad is not None
        model.linear.weight.grad[0, 0] = torch.inf

    with pytest.raises(FloatingPointError, match="gradient norm inf"):
        build(model)([[sample(1)]], spoil)


def test_fp16_overflow_skips_the_step_and_lowers_the_scale() -> None:
    model = SumOverMasks()
    before = copy.deepcopy(model)
    step = build(model, "fp16")

    def spoil() -> None:
        assert model.linear.weight.grad is not None
        model.linear.weight.grad[0, 0] = torch.inf

    scale = step.scaler.get_scale()
    step([[sample(1)]], spoil)
    assert torch.equal(model.linear.weight, before.linear.weight)
    assert step.scaler.get_scale() == scale / 2
