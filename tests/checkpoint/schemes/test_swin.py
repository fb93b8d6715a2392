"""Swins of Microsoft and timm in m2f's; their numbers are in tests/modeling/backbone/test_against_timm."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2f.checkpoint.schemes import detect, to_m2f
from m2f.modeling.backbone.swin import SwinTransformer

NAMES = Path(__file__).parents[1] / "names"
FRESH = {f"backbone.norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
TABLE = "backbone.absolute_pos_embed"


def published(file: str) -> dict[str, Tensor]:
    names = json.loads((NAMES / f"{file}.json").read_text())["names"]
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def own_shapes() -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {f"backbone.{name}": tensor.shape for name, tensor in SwinTransformer().state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
@pytest.mark.parametrize(
    ("file", "head"), [("microsoft_swin_tiny", "backbone.head"), ("timm_swin_tiny", "backbone.head.fc")]
)
def test_published_names_and_shapes(file: str, head: str, prefix: str) -> None:
    ours, scheme = to_m2f({prefix + name: tensor for name, tensor in published(file).items()})
    assert scheme == "swin"
    own = own_shapes()
    classifier = {f"{name}.{kind}" for name in ("backbone.norm", head) for kind in ("weight", "bias")}
    assert ours.keys() - own.keys() == classifier
    assert own.keys() - ours.keys() == FRESH
    assert all(ours[name].shape == own[name] for name in ours.keys() & own.keys())


def test_timm_features_only_names() -> None:
    whole = published("timm_swin_tiny")
    features = {re.sub(r"^layers\.", "layers_", name): tensor for name, tensor in whole.items()}
    assert detect(features) == "swin"
    assert list(to_m2f(features)[0]) == list(to_m2f(whole)[0])


def test_downsampling_belongs_to_the_stage_before() -> None:
    state = {f"layers.{stage}.downsample.norm.weight": torch.full((1,), float(stage)) for stage in (1, 2, 3)}
    ours, _ = to_m2f({**state, "patch_embed.proj.bias": torch.zeros(1), "layers.0.blocks.0.norm1.bias": torch.zeros(1)})
    found = {name: float(tensor) for name, tensor in ours.items() if "downsample" in name}
    assert found == {f"backbone.layers.{stage - 1}.downsample.norm.weight": stage for stage in (1, 2, 3)}


def test_the_norms_of_a_detection_network_are_kept() -> None:
    with torch.device("meta"):
        state = SwinTransformer().state_dict()
    ours, scheme = to_m2f({f"backbone.{name}": tensor for name, tensor in state.items()})
    assert (scheme, list(ours)) == ("swin", [f"backbone.{name}" for name in state])


def test_a_classifiers_position_table_becomes_a_map() -> None:
    rest = {"patch_embed.proj.bias": torch.zeros(1), "layers.0.blocks.0.norm1.bias": torch.zeros(1)}
    tokens = torch.arange(9.0)[None, :, None].expand(1, 9, 4)
    ours, _ = to_m2f({"absolute_pos_embed": tokens, **rest})
    assert ours[TABLE].shape == (1, 4, 3, 3)
    assert ours[TABLE][0, 2].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    again, _ = to_m2f({name.removeprefix("backbone."): tensor for name, tensor in ours.items()})
    assert torch.equal(again[TABLE], ours[TABLE])
    with pytest.raises(ValueError, match="absolute_pos_embed has 8 positions; a square number"):
        to_m2f({"absolute_pos_embed": tokens[:, :8], **rest})


def test_swin_v2_is_refused() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model("swinv2_tiny_window8_256").state_dict()
    with pytest.raises(ValueError, match=r"a Swin V2, .* use model\.backbone\.type: timm"):
        to_m2f(state)
