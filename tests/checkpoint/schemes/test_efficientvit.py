"""EfficientViTs of mit-han-lab and timm in m2f's; their numbers are in tests/modeling/backbone/test_against_timm."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2f.checkpoint.schemes import detect, to_m2f
from m2f.config.variants import EFFICIENTVIT
from m2f.modeling.backbone.efficientvit import EfficientViT

NAMES = Path(__file__).parents[1] / "names"
FILES = [("mit_han_lab_efficientvit_b0", "b0"), ("timm_efficientvit_b0", "b0"), ("timm_efficientvit_l1", "l1")]


def published(file: str) -> dict[str, Tensor]:
    names = json.loads((NAMES / f"{file}.json").read_text())["names"]
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def own_shapes(variant: str) -> dict[str, torch.Size]:
    sizes = dict(zip(EFFICIENTVIT.fields, EFFICIENTVIT.rows[variant], strict=True))
    with torch.device("meta"):
        return {f"backbone.{name}": tensor.shape for name, tensor in EfficientViT(**sizes).state_dict().items()}


@pytest.mark.parametrize(("file", "variant"), FILES)
@pytest.mark.parametrize("wrapping", ["as published", "features alone", "distributed"])
def test_published_names_and_shapes(file: str, variant: str, wrapping: str) -> None:
    state = published(file)
    if wrapping == "features alone":
        state = {n.removeprefix("backbone."): tensor for n, tensor in state.items() if not n.startswith("head.")}
    elif wrapping == "distributed":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    ours, scheme = to_m2f(state)
    assert scheme == "efficientvit"
    own = own_shapes(variant)
    assert {name: tensor.shape for name, tensor in ours.items() if not name.startswith("backbone.head.")} == own
    assert len(ours) == len(state)


@pytest.mark.parametrize("file", ["timm_efficientvit_b0", "timm_efficientvit_l1"])
def test_timm_features_only_names(file: str) -> None:
    whole = {name: tensor for name, tensor in published(file).items() if not name.startswith("head.")}
    features = {re.sub(r"^(stem|stages)\.", r"\1_", name): tensor for name, tensor in whole.items()}
    assert detect(features) == "efficientvit"
    assert list(to_m2f(features)[0]) == list(to_m2f(whole)[0])


@pytest.mark.realdata
@pytest.mark.parametrize("variant", list(EFFICIENTVIT.rows))
def test_the_authors_names_and_shapes(oracles: Path, variant: str) -> None:
    shapes = json.loads((oracles / "efficientvit_state_dict_shapes.json").read_text())[variant]
    ours, scheme = to_m2f({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert scheme == "efficientvit"
    assert {name: tensor.shape for name, tensor in ours.items()} == own_shapes(variant)
