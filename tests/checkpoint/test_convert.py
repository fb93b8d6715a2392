"""Names of the official code, TAO and ImageNet backbones to m2f's, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from m2f.checkpoint.convert import (
    backbone_to_m2f,
    detect,
    m2f_to_official,
    official_to_m2f,
    tao_to_m2f,
    to_m2f,
)
from m2f.config.defaults import get_cfg
from m2f.modeling.build import BACKBONE_REGISTRY, build_model
from m2f.structures.metadata import Category, contiguous_metadata

OFFICIAL = ("swin_tiny", "swin_large", "resnet50")


def _official(oracles: Path, name: str) -> dict[str, Tensor]:
    shapes = json.loads((oracles / "official_state_dict_shapes.json").read_text())[name]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def _small_official() -> dict[str, Tensor]:
    return {
        "backbone.patch_embed.proj.weight": torch.randn(4, 3, 4, 4),
        "backbone.layers.0.blocks.0.attn.relative_position_bias_table": torch.randn(25, 2),
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(9, 9),
        "sem_seg_head.pixel_decoder.mask_features.weight": torch.randn(4, 4, 1, 1),
        "sem_seg_head.predictor.query_feat.weight": torch.randn(3, 4),
        "sem_seg_head.predictor.class_embed.weight": torch.randn(6, 4),
        "sem_seg_head.predictor.class_embed.bias": torch.randn(6),
        "criterion.empty_weight": torch.ones(6),
    }


@pytest.mark.realdata
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names_and_shapes_there_and_back(oracles: Path, name: str) -> None:
    official = _official(oracles, name)
    ours = official_to_m2f(official)
    assert {key.split(".")[0] for key in ours} == {"backbone", "pixel_decoder", "transformer_decoder"}
    back = m2f_to_official(ours)
    assert {key: tensor.shape for key, tensor in back.items()} == {k: v.shape for k, v in official.items()}


@pytest.mark.realdata
@pytest.mark.parametrize("name", OFFICIAL)
def test_converted_names_are_those_of_the_model(oracles: Path, name: str) -> None:
    ours = official_to_m2f(_official(oracles, name))
    cfg = get_cfg()
    cfg.model.sem_seg_head.num_classes = 133
    cfg.model.backbone.type = name.split("_")[0].rstrip("50")
    if name == "swin_large":
        cfg.model.backbone.swin.type, cfg.model.backbone.swin.window_size = "large", 12
        cfg.model.mask_former.num_object_queries = 200
    metadata = contiguous_metadata("coco", [Category(i + 1, str(i)) for i in range(133)])
    with torch.device("meta"):
        model = build_model(cfg, metadata)
    own = {key: tensor.shape for key, tensor in model.state_dict().items() if not key.startswith("criterion.")}
    assert own == {key: tensor.shape for key, tensor in ours.items()}


def test_derived_buffers_are_made_again() -> None:
    back = m2f_to_official(official_to_m2f(_small_official()), no_object_weight=0.2)
    assert back["criterion.empty_weight"].tolist() == pytest.approx([1, 1, 1, 1, 1, 0.2])
    index = back["backbone.layers.0.blocks.0.attn.relative_position_index"]
    assert index.shape == (9, 9)
    assert index[0].tolist() == [12, 11, 10, 7, 6, 5, 2, 1, 0]  # the first token sees the others right and below
    assert index.diagonal().unique().tolist() == [12]


def test_old_official_names_are_understood() -> None:
    state = {
        "module.sem_seg_head.predictor.static_query.weight": torch.zeros(3, 4),
        "module.sem_seg_head.adapter_1.weight": torch.zeros(1),
        "module.sem_seg_head.pixel_decoder.layer_1.weight": torch.zeros(1),
        "module.backbone.norm0.weight": torch.zeros(1),
    }
    assert list(official_to_m2f(state)) == [
        "transformer_decoder.query_feat.weight",
        "pixel_decoder.adapter_1.weight",
        "pixel_decoder.layer_1.weight",
        "backbone.norm0.weight",
    ]


def test_tao_heads_are_rotated_and_prefixes_stripped() -> None:
    official = _small_official()
    tao = {f"model.{name}": tensor.roll(1, 0) if "class_embed" in name else tensor for name, tensor in official.items()}
    ours, expected = tao_to_m2f(tao), official_to_m2f(official)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert detect(tao) == "tao"
    no_object_first = tao["model.sem_seg_head.predictor.class_embed.bias"][0]
    assert ours["transformer_decoder.class_embed.bias"][-1] == no_object_first


def test_tao_efficientvit_has_another_prefix() -> None:
    tao = {"model.backbone.model.stages.0.op_list.0.conv.weight": torch.zeros(1)}
    assert list(tao_to_m2f(tao)) == ["backbone.stages.0.op_list.0.conv.weight"]
    assert detect(tao) == detect({"backbone.model.stages.0.op_list.0.conv.weight": 0}) == "tao"


def test_torchvision_and_detectron2_resnets_are_one() -> None:
    with torch.device("meta"):
        torchvisions = torchvision.models.resnet50().state_dict()
        cfg = get_cfg()
        cfg.model.backbone.resnet.norm = "BN"
        own = BACKBONE_REGISTRY.build("resnet", cfg).state_dict()
    ours = backbone_to_m2f(torchvisions)
    assert ours.keys() - {"backbone.fc.weight", "backbone.fc.bias"} == {f"backbone.{name}" for name in own}
    detectron2 = {name.removeprefix("backbone."): tensor for name, tensor in m2f_to_official(ours).items()}
    assert "res2.0.shortcut.norm.running_mean" in detectron2
    assert backbone_to_m2f(detectron2).keys() == ours.keys()
    assert (detect(torchvisions), detect(detectron2)) == ("torchvision", "detectron2")


def test_microsoft_swin() -> None:
    microsoft = {
        "patch_embed.proj.weight": torch.zeros(1),
        "layers.0.blocks.1.attn_mask": torch.zeros(1),
        "layers.0.blocks.1.attn.relative_position_index": torch.zeros(1),
        "layers.0.downsample.norm.weight": torch.zeros(1),
        "head.weight": torch.zeros(1),
    }
    ours, scheme = to_m2f(microsoft)
    assert scheme == "swin"
    assert list(ours) == [
        "backbone.patch_embed.proj.weight",
        "backbone.layers.0.downsample.norm.weight",
        "backbone.head.weight",
    ]


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_mit_han_lab_efficientvit(prefix: str) -> None:
    state = {f"{prefix}input_stem.op_list.0.conv.weight": torch.zeros(1), "head.op_list.0.conv.weight": torch.zeros(1)}
    ours, scheme = to_m2f(state)
    assert scheme == "efficientvit"
    assert "backbone.input_stem.op_list.0.conv.weight" in ours


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("pixel_decoder.mask_features.weight", "m2f"),
        ("module.transformer_decoder.query_feat.weight", "m2f"),
        ("backbone.my_blocks.weight", "m2f"),
        ("sem_seg_head.predictor.query_feat.weight", "official"),
        ("backbone.layers.0.blocks.0.norm1.weight", "m2f"),
    ],
)
def test_schemes_are_told_by_their_names(name: str, scheme: str) -> None:
    assert detect([name]) == scheme


@pytest.mark.parametrize("state", [{}, {"encoder.weight": torch.zeros(1)}])
def test_unknown_names_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"unknown weight names .* m2f reads m2f, official, tao"):
        to_m2f(state)


def test_inputs_are_left_alone() -> None:
    state = _small_official()
    names = list(state)
    to_m2f(state)
    assert list(state) == names
