from __future__ import annotations

import pytest
import torch
from torch import nn

from m2f.config import load_spec
from m2f.solver import build_clipper, build_optimizer
from m2f.solver.clipping import make_clipper


def tiny_model() -> nn.Module:
    return nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))})


def test_adamw_takes_the_spec():
    cfg = load_spec(None, ["train.optim.lr=1e-3", "train.optim.momentum=0.8", "train.optim.weight_decay=0.05"])
    optimizer = build_optimizer(cfg, tiny_model())
    assert type(optimizer) is torch.optim.AdamW
    assert {(round(g["lr"], 9), g["weight_decay"]) for g in optimizer.param_groups} == {
        (1e-3, 0.05),
        (1e-3, 0.0),
        (1e-4, 0.05),
    }
    assert all(g["betas"] == (0.8, 0.999) and g["eps"] == 1e-8 for g in optimizer.param_groups)


def test_sgd_takes_the_spec():
    optimizer = build_optimizer(load_spec(None, ["train.optim.type=SGD", "train.optim.momentum=0.7"]), tiny_model())
    assert type(optimizer) is torch.optim.SGD and all(g["momentum"] == 0.7 for g in optimizer.param_groups)


def test_an_unknown_optimizer_lists_the_members():
    with pytest.raises(KeyError, match=r"unknown optimiser 'adamw'; did you mean 'AdamW'\? Registered: AdamW, SGD"):
        build_optimizer(load_spec(None, ["train.optim.type=adamw"]), tiny_model())


def gradients() -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    return parameters


def values(parameters) -> list[float]:
    return torch.cat([p.grad for p in parameters if p.grad is not None]).tolist()


@pytest.mark.parametrize(
    ("kind", "limit", "result"),
    [
        ("full", 1.0, [0.6, 0.0, 0.8]),
        ("full", 10.0, [3.0, 0.0, 4.0]),
        ("norm", 3.5, [3.0, 0.0, 3.5]),
        ("value", 2.0, [2.0, 0.0, 2.0]),
        ("full", 0.0, [3.0, 0.0, 4.0]),
        ("norm", 0.0, [3.0, 0.0, 4.0]),
        ("value", 0.0, [3.0, 0.0, 4.0]),
    ],
)
def test_clipping_and_the_norm_before_it(kind, limit, result):
    cfg = load_spec(None, [f"train.clip_grad_type={kind}", f"train.clip_grad_norm={limit}"])
    parameters = gradients()
    norm = build_clipper(cfg)(iter(parameters))
    assert norm.item() == pytest.approx(5.0) and values(parameters) == pytest.approx(result, abs=1e-5)


def test_other_norms_and_no_gradients():
    parameters = gradients()
    assert make_clipper("full", 2.0, float("inf"))(parameters).item() == 4.0
    assert values(parameters) == pytest.approx([1.5, 0.0, 2.0], abs=1e-5)
    assert make_clipper("full", 2.0)([nn.Parameter(torch.zeros(1))]).item() == 0.0
    with pytest.raises(ValueError, match=r"train.clip_grad_type is 'all'; it must be one of full, norm, value"):
        make_clipper("all", 1.0)
