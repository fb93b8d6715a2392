from __future__ import annotations

import logging
import math
from itertools import pairwise

import pytest
import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as reference

from m2f.config import load_spec
from m2f.solver import SCHEDULE_REGISTRY, AutoReduce, Horizon, build_schedule
from m2f.solver.schedules import cosine, linear_warmup, multi_step, poly, step


def optimizer_of(*rates: float) -> SGD:
    return SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def cfg_of(*words: str):
    return load_spec(None, [f"train.optim.{word}" if not word.startswith("train.") else word for word in words])


HORIZON = Horizon(iters_per_epoch=10, max_iters=100, checkpoint_period=10, validation_period=10)


def run(cfg, steps: int = 100) -> list[float]:
    optimizer = optimizer_of(0.5)
    schedule = build_schedule(cfg, optimizer, HORIZON)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return rates


def expected(make, steps: int = 100) -> list[float]:
    optimizer = optimizer_of(0.5)
    schedule = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("words", "make"),
    [
        (["lr_scheduler=MultiStep", "milestones=[3,5]"], lambda o: reference.MultiStepLR(o, [30, 50], 0.1)),
        (["lr_scheduler=StepLR", "step_size=2", "gamma=0.5"], lambda o: reference.StepLR(o, 20, 0.5)),
        (["lr_scheduler=Warmuppoly"], lambda o: reference.PolynomialLR(o, 100, 0.9)),
        (["lr_scheduler=WarmupPoly", "poly_power=2"], lambda o: reference.PolynomialLR(o, 100, 2)),
        (["lr_scheduler=Cosine"], lambda o: reference.CosineAnnealingLR(o, 100)),
        (["lr_scheduler=Cosine", "min_lr_factor=0.2"], lambda o: reference.CosineAnnealingLR(o, 100, eta_min=0.1)),
    ],
)
def test_rates_equal_torchs(words, make):
    assert run(cfg_of(*words)) == pytest.approx(expected(make), rel=1e-9, abs=1e-12)


def test_registered_names():
    assert SCHEDULE_REGISTRY.names() == sorted(
        ["MultiStep", "StepLR", "Warmuppoly", "WarmupPoly", "Cosine", "AutoReduce"]
    )


def test_pure_factors():
    assert [multi_step([2, 4], 0.5)(i) for i in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert [step(2, 0.5)(i) for i in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert poly(10, 0.9, 0.1)(10) == pytest.approx(0.1) == poly(10, 0.9, 0.1)(99)
    assert cosine(10)(0) == 1 and cosine(10)(5) == pytest.approx(0.5) and cosine(10)(10) == pytest.approx(0)
    assert [linear_warmup(4, 0.2)(i) for i in (0, 2, 4, 9)] == [0.2, pytest.approx(0.6), 1, 1]
    assert linear_warmup(0, 0.2)(0) == 1


def test_warm_up_rises_linearly_and_then_lets_go():
    rates = run(cfg_of("lr_scheduler=MultiStep", "milestones=[8]", "warmup_iters=10", "warmup_factor=0.1"))
    assert rates[0] == pytest.approx(0.05) and rates[5] == pytest.approx(0.275) and rates[10] == 0.5
    assert all(b > a for a, b in pairwise(rates[:11])) and rates[80] == pytest.approx(0.05)


def test_groups_keep_their_ratio():
    optimizer = optimizer_of(1.0, 0.1)
    schedule = build_schedule(cfg_of("lr_scheduler=Cosine"), optimizer, HORIZON)
    for _ in range(37):
        schedule.step()
    slow, fast = optimizer.param_groups[1]["lr"], optimizer.param_groups[0]["lr"]
    assert slow / fast == pytest.approx(0.1) and schedule.lr == fast == pytest.approx(schedule.factor())


@pytest.mark.parametrize("name", SCHEDULE_REGISTRY.names())
def test_resume_is_exact_and_honours_a_changed_rate(name):
    cfg = cfg_of(f"lr_scheduler={name}", "milestones=[2,6]", "warmup_iters=25", "patience=0")

    def advance(schedule, start, stop):
        rates = []
        for i in range(start, stop):
            schedule.step()
            schedule.observe({"val_loss": abs(40 - i)})
            rates.append(schedule.lr)
        return rates

    whole = advance(build_schedule(cfg, optimizer_of(0.5), HORIZON), 0, 90)
    first = build_schedule(cfg, optimizer_of(0.5), HORIZON)
    rates = advance(first, 0, 45)
    for base, factor in ((0.5, 1), (0.25, 0.5)):
        optimizer = optimizer_of(base)
        second = build_schedule(cfg, optimizer, HORIZON)
        optimizer.param_groups[0]["lr"] = 123.0  # what an optimiser's own state may bring
        second.load_state_dict(first.state_dict())
        assert second.lr == pytest.approx(first.lr * factor)
        later = [rate * factor for rate in whole[45:]]
        assert advance(second, 45, 90) == (later if factor == 1 else pytest.approx(later))
    assert rates == whole[:45]
    assert "lr" not in str(first.state_dict())


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_auto_reduce_drops_when_torchs_does(patience):
    values = [3.0, 2.0, 2.0, 1.99999, 2.5, math.nan, 1.0, 1.1, 1.2, 1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0]
    ours, theirs = optimizer_of(0.5), optimizer_of(0.5)
    schedule = AutoReduce(ours, "val_loss", 0.1, patience)
    plateau = reference.ReduceLROnPlateau(theirs, factor=0.1, patience=patience, eps=0)
    for value in values:
        schedule.observe({"val_loss": value})
        plateau.step(value)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
    assert schedule.reductions > 0


def test_auto_reduce_has_a_floor_and_names_a_missing_monitor():
    optimizer = optimizer_of(1.0)
    schedule = AutoReduce(optimizer, "val_loss", 0.1, 0, floor=0.05)
    for _ in range(5):
        schedule.observe({"val_loss": 1.0})
    assert optimizer.param_groups[0]["lr"] == 0.05
    with pytest.raises(KeyError, match=r"train.optim.monitor_name is 'val_loss'.*panoptic/PQ"):
        schedule.observe({"panoptic/PQ": 3.0})


def test_verbose_logs_every_change_and_silence_is_the_default(caplog):
    with caplog.at_level(logging.INFO, logger="m2f"):
        run(cfg_of("milestones=[3,5]"))
        assert not caplog.records
        run(cfg_of("milestones=[3,5]", "train.verbose=True"))
    assert [r.getMessage() for r in caplog.records] == [
        "iteration 30: learning rate of group 0: 0.5 -> 0.05",
        "iteration 50: learning rate of group 0: 0.05 -> 0.005",
    ]


def test_an_unknown_schedule_lists_the_members():
    with pytest.raises(KeyError, match="unknown schedule 'multistep'; did you mean 'MultiStep'"):
        build_schedule(cfg_of("lr_scheduler=multistep"), optimizer_of(1.0), HORIZON)
