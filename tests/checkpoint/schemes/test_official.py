"""The official code's names and shapes, there and back with every value."""

from __future__ import annotations

import json
from math import isqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.schemes import from_m2f, to_m2f
from m2f.checkpoint.schemes.official import no_object_row
from m2f.config.defaults import get_cfg
from m2f.layers.relative_position import relative_position_index
from m2f.modeling.build import BACKBONE_REGISTRY, build_model
from m2f.structures.metadata import Category, contiguous_metadata

OFFICIAL = ("swin_tiny", "swin_large", "resnet50")
EFFICIENTVIT = ("b0", "b1", "b2", "b3", "l0", "l1", "l2", "l3")


def random_tensor(name: str, shape: list[int]) -> Tensor:
    """A value of its own in every row; what a model derives by itself as it is."""
    if name.endswith("relative_position_index"):
        return relative_position_index(isqrt(shape[0]))
    if name == "criterion.empty_weight":
        return torch.tensor([1.0] * (shape[0] - 1) + [0.1])
    if name.endswith("num_batches_tracked"):
        return torch.randint(1000, ())
    return torch.randn(shape[:1] + [1] * (len(shape) - 1)).expand(shape)  # Swin-L in no memory


def checkpoint(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: random_tensor(name, shape) for name, shape in shapes.items()}


def official_model(name: str) -> nn.Module:
    cfg = get_cfg()
    cfg.model.sem_seg_head.num_classes = 133
    cfg.model.backbone.type = "resnet" if name == "resnet50" else "swin"
    if name == "swin_large":
        cfg.model.backbone.swin.type, cfg.model.backbone.swin.window_size = "large", 12
        cfg.model.mask_former.num_object_queries = 200
    with torch.device("meta"):
        return build_model(cfg, contiguous_metadata("coco", [Category(i + 1, str(i)) for i in range(133)]))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in expected.items()}
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


def assert_all_used(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Neither a fresh nor an ignored tensor."""
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not missing
    assert not unexpected


@pytest.mark.realdata
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoints_load_whole_and_come_back_equal(oracles: Path, name: str) -> None:
    official = checkpoint(json.loads((oracles / "official_state_dict_shapes.json").read_text())[name])
    ours, scheme = to_m2f(official)
    assert scheme == "official"
    model = official_model(name)
    assert_all_used(model, ours)
    assert_same(from_m2f(model.state_dict(), "official"), official)


@pytest.mark.realdata
@pytest.mark.parametrize("name", EFFICIENTVIT)
def test_efficientvits_load_whole_and_come_back_equal(oracles: Path, name: str) -> None:
    home = checkpoint(json.loads((oracles / "efficientvit_state_dict_shapes.json").read_text())[name])
    ours, scheme = to_m2f(home)
    assert scheme == "efficientvit"
    cfg = get_cfg()
    cfg.model.backbone.efficientvit.name = name
    with torch.device("meta"):
        model = nn.ModuleDict({"backbone": BACKBONE_REGISTRY.build("efficientvit", cfg)})
    assert_all_used(model, ours)
    own = model.state_dict()
    assert_same(from_m2f(own, "official"), {f"backbone.{key}": tensor for key, tensor in home.items()})
    assert_same(from_m2f(own, "tao"), {f"model.backbone.model.{key}": tensor for key, tensor in home.items()})


def small() -> dict[str, Tensor]:
    return {
        "backbone.patch_embed.proj.weight": torch.randn(4, 3, 4, 4),
        "backbone.layers.0.blocks.0.attn.relative_position_bias_table": torch.randn(25, 2),
        "backbone.layers.0.blocks.0.attn.relative_position_index": relative_position_index(3),
        "sem_seg_head.pixel_decoder.mask_features.weight": torch.randn(4, 4, 1, 1),
        "sem_seg_head.predictor.query_feat.weight": torch.randn(3, 4),
        "sem_seg_head.predictor.class_embed.weight": torch.randn(6, 4),
        "sem_seg_head.predictor.class_embed.bias": torch.randn(6),
        "criterion.empty_weight": torch.tensor([1, 1, 1, 1, 1, 0.1]),
    }


def test_derived_tensors_are_dropped_and_made_again() -> None:
    official = small()
    ours, _ = to_m2f({**official, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)})
    assert len(ours) == len(official) - 2
    back = from_m2f(ours, "official")
    assert_same(back, official)
    index = back["backbone.layers.0.blocks.0.attn.relative_position_index"]
    assert index.dtype == torch.int64
    assert index[0].tolist() == [12, 11, 10, 7, 6, 5, 2, 1, 0]  # the first token sees the others right and below


def test_class_weights_that_are_given_are_written() -> None:
    ours, _ = to_m2f(small())
    weights = torch.tensor([1, 1, 1, 1, 1, 0.4])
    assert from_m2f({**ours, "criterion.empty_weight": weights}, "official")["criterion.empty_weight"] is weights


def test_old_names_are_understood() -> None:
    state = {
        "module.sem_seg_head.predictor.static_query.weight": torch.zeros(3, 4),
        "module.sem_seg_head.adapter_1.weight": torch.zeros(1),
        "module.sem_seg_head.pixel_decoder.layer_1.weight": torch.zeros(1),
        "module.backbone.norm0.weight": torch.zeros(1),
    }
    ours, scheme = to_m2f(state)
    assert scheme == "official"
    assert list(ours) == [
        "transformer_decoder.query_feat.weight",
        "pixel_decoder.adapter_1.weight",
        "pixel_decoder.layer_1.weight",
        "backbone.norm0.weight",
    ]


@pytest.mark.parametrize(
    ("weights", "row"),
    [
        ([0.1, 1, 1], 0),
        ([1, 1, 0.1], -1),
        ([0.1, 1], 0),
        ([1, 0.1], -1),
        ([1, 1, 1], None),
        ([1, 0.1, 1], None),
        ([0.1, 1, 0.1], None),
        ([0.1], None),
        ([], None),
    ],
)
def test_where_no_object_stands(weights: list[float], row: int | None) -> None:
    assert no_object_row({"criterion.empty_weight": torch.tensor(weights)}) == row
    assert no_object_row({"criterion.empty_weight": torch.tensor(weights, dtype=torch.float16)}) == row
    assert no_object_row({}) is None
