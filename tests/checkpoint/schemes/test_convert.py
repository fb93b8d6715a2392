"""Which scheme a list of names belongs to, and the one door in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from m2f.checkpoint.schemes import SCHEME_REGISTRY, detect, from_m2f, to_m2f
from m2f.config.defaults import get_cfg
from m2f.modeling.build import build_model
from m2f.structures.metadata import Category, contiguous_metadata

LISTS = sorted((Path(__file__).parents[1] / "names").glob("*.json"))
BACKBONES = ("swin", "resnet", "efficientvit")
WRITTEN = ("m2f", "official", "tao")  # whatever the backbone


def stored(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def whole_model(backbone: str) -> nn.Module:
    cfg = get_cfg()
    cfg.model.sem_seg_head.num_classes = 2
    cfg.model.backbone.type = backbone
    with torch.device("meta"):
        return build_model(cfg, contiguous_metadata("two", [Category(1, "a"), Category(2, "b")]))


def assert_one_wins(names: list[str], home: str) -> None:
    """One scheme alone, or one alone of those that hold whole models, says yes; and `detect` says the same."""
    schemes = {name: SCHEME_REGISTRY.get(name) for name in SCHEME_REGISTRY.names()}
    found = [name for name, scheme in schemes.items() if scheme.recognises(names)]
    whole = [name for name in found if schemes[name].whole_model]
    assert (whole or found) == [home]
    assert detect(names) == home


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_names_find_their_home(path: Path, prefix: str) -> None:
    content = stored(path)
    assert content["source"]
    assert detect([prefix + name for name in content["names"]]) == content["home"]
    assert_one_wins(list(content["names"]), content["home"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_written_names_find_their_home(backbone: str) -> None:
    own = whole_model(backbone).state_dict()
    for home in WRITTEN if backbone == "efficientvit" else (*WRITTEN, "huggingface"):
        assert_one_wins(list(from_m2f(own, home)), home)


def test_every_home_has_a_list() -> None:
    assert set(SCHEME_REGISTRY.names()) == {*WRITTEN, *(stored(path)["home"] for path in LISTS)}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("pixel_decoder.mask_features.weight", "m2f"),
        ("module.transformer_decoder.query_feat.weight", "m2f"),
        ("backbone.my_blocks.weight", "m2f"),
        ("sem_seg_head.predictor.query_feat.weight", "official"),
        ("stages.0.op_list.0.conv.weight", "efficientvit"),
        ("backbone.model.stages.0.op_list.0.conv.weight", "tao"),
    ],
)
def test_one_telling_name_is_enough(name: str, scheme: str) -> None:
    assert detect([name]) == scheme


@pytest.mark.parametrize(
    "names",
    [(), ("encoder.weight",), ("backbone.my_blocks.weight", "my_head.weight")],
    ids=["none", "unknown", "a project's backbone with a head"],
)
def test_unknown_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"unknown weight names \(.*\); m2f reads .*detectron2, .*official, .*tao"):
        to_m2f({name: torch.zeros(1) for name in names})


def test_own_names_stay_and_derived_tensors_go() -> None:
    own = whole_model("swin").state_dict()
    derived = {
        "criterion.empty_weight": torch.ones(3),
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.ones(1),
        "pixel_mean": torch.ones(3),
    }
    ours, scheme = to_m2f({**own, **derived})
    assert scheme == "m2f"
    assert list(ours) == list(own)
    assert list(from_m2f(ours, "m2f")) == list(own)


def test_inputs_are_left_alone() -> None:
    own = whole_model("resnet").state_dict()
    for home in WRITTEN:
        there = from_m2f(own, home)
        before = dict(there)
        to_m2f(there)
        assert list(before) == list(there)
        assert all(before[name] is there[name] for name in there)


def test_two_names_of_one_tensor_are_refused() -> None:
    names = ("sem_seg_head.predictor.static_query.weight", "sem_seg_head.predictor.query_feat.weight")
    with pytest.raises(
        ValueError, match=rf"{names[0]} and {names[1]} are both transformer_decoder\.query_feat\.weight"
    ):
        to_m2f({name: torch.zeros(1) for name in names})


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (("module.pixel_decoder.level.bias", "pixel_decoder.level.bias"), ()),
        (("backbone.layer1.0.conv1.weight", "layer1.0.conv1.weight"), ()),
        (("_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_bn1.bias", "bn2.bias"), ()),
        (("model.conv.weight", "conv.weight"), ("backbone.network.model.conv.weight",)),
    ],
    ids=["a wrapper", "a prefix", "efficientnet", "timm"],
)
def test_no_tensor_is_lost_to_another_of_its_new_name(names: tuple[str, ...], own: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"are both .*; a file has one of them"):
        to_m2f({name: torch.zeros(1) for name in names}, own)


def test_names_of_two_homes_are_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="weight names of m2f and official at once"):
        detect(["pixel_decoder.mask_features.bias", "sem_seg_head.predictor.query_feat.weight"])


def test_homes_that_are_only_read_say_so() -> None:
    with pytest.raises(ValueError, match=r"torchvision: .* read, not written"):
        from_m2f({"backbone.conv1.weight": torch.zeros(1)}, "torchvision")
    with pytest.raises(KeyError, match="unknown weight scheme 'offical'; did you mean 'official'"):
        from_m2f({}, "offical")
