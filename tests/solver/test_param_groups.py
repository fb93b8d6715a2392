from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from m2f.solver.param_groups import param_groups


def rates_by_name(model: nn.Module, *numbers: float) -> dict[str, tuple[float, float]]:
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in param_groups(model, *numbers) for p in g["params"]}
    return {name: rates[id(p)] for name, p in model.named_parameters() if id(p) in rates}


class ChannelNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norms = nn.ModuleList([nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.BatchNorm2d(2), ChannelNorm(2)])
        self.query = nn.Embedding(2, 2)
        self.level_embed = nn.Parameter(torch.zeros(2))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(2))
        self.absolute_pos_embed = nn.Parameter(torch.zeros(2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Part()
        self.head = Part()
        self.head.shared = self.head.linear
        self.head.linear.bias.requires_grad_(False)


def test_rates_by_name():
    rates = rates_by_name(Model(), 1e-3, 0.05, 0.1)
    for prefix, lr in (("backbone", 1e-4), ("head", 1e-3)):
        for name in ("linear.weight", "level_embed"):
            assert rates[f"{prefix}.{name}"] == (pytest.approx(lr, rel=1e-15), 0.05)
        for name in (
            "query.weight",
            "relative_position_bias_table",
            "absolute_pos_embed",
            "norms.3.weight",
            "norms.0.bias",
        ):
            assert rates[f"{prefix}.{name}"] == (pytest.approx(lr, rel=1e-15), 0.0)
    assert rates["backbone.linear.bias"][1] == 0.05
    assert "head.linear.bias" not in rates and "head.shared.weight" not in rates


def test_groups_are_few_complete_and_independent_of_the_numbers():
    model = Model()
    groups = param_groups(model, 1e-3, 0.05, 0.1)
    assert len(groups) == 4 and len({(g["lr"], g["weight_decay"]) for g in groups}) == 4
    grouped = [id(p) for g in groups for p in g["params"]]
    learning = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(learning)
    again = param_groups(model, 1.0, 0.0, 1.0)
    assert [[id(p) for p in g["params"]] for g in again] == [[id(p) for p in g["params"]] for g in groups]


def test_a_wholly_frozen_model_is_refused():
    with pytest.raises(ValueError, match=r"train.freeze leaves nothing to train"):
        param_groups(Model().requires_grad_(False), 1e-3, 0.05, 0.1)


def _module_of(name: str) -> type[nn.Module]:
    """What kind of module owned an official parameter, from its name alone."""
    parts = name.split(".")
    owner = parts[-2]
    if owner in ("query_feat", "query_embed") or name.endswith("predictor.level_embed.weight"):
        return nn.Embedding
    if "norm" in owner or (owner.isdigit() and "input_proj" in name and owner == "1"):
        return nn.LayerNorm
    return nn.Module


@pytest.mark.realdata
@pytest.mark.parametrize("file", ["swin_small.npz", "resnet_small.npz"])
def test_official_groups(oracles, file):
    """A tree of modules with the official names gets the official rates."""
    with np.load(oracles / file) as stored:
        config, expected = (json.loads(str(stored[key])) for key in ("config", "optimizer_groups"))
    root = nn.Module()
    for name in expected:
        *path, leaf = name.split(".")
        node = root
        for depth, part in enumerate(path):
            if part not in node._modules:
                is_owner = depth == len(path) - 1
                kind = _module_of(name) if is_owner else nn.Module
                sizes = {nn.Embedding: (1, 1), nn.LayerNorm: (1,)}.get(kind, ())
                node.add_module(part, kind(*sizes))
            node = node._modules[part]
        node.register_parameter(leaf, nn.Parameter(torch.zeros(1)))
    rates = rates_by_name(root, config["lr"], config["weight_decay"], config["backbone_multiplier"])
    wrong = {n: (rates[n], e) for n, e in expected.items() if not np.allclose(rates[n], e, rtol=1e-12, atol=0)}
    assert not wrong
