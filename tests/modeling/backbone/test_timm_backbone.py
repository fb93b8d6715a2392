"""timm's networks by name: their maps, and what is said about those that cannot serve."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

from m2f.config import CfgNode, load_spec
from m2f.modeling.backbone.timm_backbone import TimmBackbone
from m2f.modeling.build import BACKBONE_REGISTRY

SMALL = {"test_convnext": [24, 32, 48, 64], "test_efficientnet": [24, 32, 48, 64], "test_resnet": [32, 48, 192, 96]}


@pytest.fixture(autouse=True)
def _timm() -> None:
    pytest.importorskip("timm")


def cfg_of(name: str, *words: str) -> CfgNode:
    kind = ("model.backbone.type=timm", f"model.backbone.timm.name={name}", "train.activation_checkpoint=False")
    return load_spec(None, [*kind, *words])


def build(name: str, *words: str) -> TimmBackbone:
    backbone = BACKBONE_REGISTRY.build("timm", cfg_of(name, *(f"model.backbone.timm.{word}" for word in words)))
    assert isinstance(backbone, TimmBackbone)
    return backbone


@torch.no_grad()
@pytest.mark.parametrize("name", [*SMALL, "pvt_v2_b0", "swin_tiny_patch4_window7_224", "cspnext_s", "dla34"])
def test_maps_are_what_was_announced(name: str) -> None:
    backbone = TimmBackbone(name=name).eval()
    shapes = backbone.feature_shapes()
    assert [shape.stride for shape in shapes.values()] == [4, 8, 16, 32]
    assert [shape.channels for shape in shapes.values()] == SMALL.get(name, [s.channels for s in shapes.values()])
    for size in ((64, 96), (75, 93), (33, 32)):
        padded = [-(-length // 32) * 32 for length in size]
        features = backbone(torch.randn(2, 3, *size))
        assert list(features) == ["res2", "res3", "res4", "res5"]
        for stage, feature in features.items():
            channels, stride = shapes[stage]
            assert feature.shape == (2, channels, padded[0] // stride, padded[1] // stride)


@torch.no_grad()
def test_padding_adds_zeros_right_and_below() -> None:
    backbone = build("test_convnext").eval()
    x = torch.randn(1, 3, 33, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :33, :50] = x
    for feature, expected in zip(backbone(x).values(), backbone(padded).values(), strict=True):
        assert torch.equal(feature, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", list(SMALL))
def test_only_the_maps_asked_for_are_made(name: str) -> None:
    whole, part = TimmBackbone(name=name).eval(), TimmBackbone(name=name, out_features=["res5", "res3"]).eval()
    assert part.feature_shapes() == {stage: whole.feature_shapes()[stage] for stage in ("res3", "res5")}
    assert part.state_dict().keys() == whole.state_dict().keys()
    part.load_state_dict(whole.state_dict())
    x = torch.randn(1, 3, 64, 96)
    expected = whole(x)
    for stage, feature in part(x).items():
        assert torch.equal(feature, expected[stage])


def test_stochastic_depth() -> None:
    backbone = build("test_convnext", "drop_path_rate=0.9")
    x = torch.randn(1, 3, 64, 64)
    first, second = backbone(x)["res5"], backbone(x)["res5"]
    assert not torch.equal(first, second)
    backbone.eval()
    assert torch.equal(backbone(x)["res5"], backbone(x)["res5"])
    with pytest.raises(ValueError, match=r"model\.backbone\.timm\.drop_path_rate: repvit_m0_9 has no stochastic depth"):
        build("repvit_m0_9", "drop_path_rate=0.1")


def counted(backbone: nn.Module) -> list[int]:
    """Grows with every call of a convolution."""
    calls = [0]
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


@pytest.mark.parametrize("name", [*SMALL, "cspnext_s"])
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    kept, recomputed = build(name).train(), build(name, "use_checkpoint=True").train()
    recomputed.load_state_dict(copy.deepcopy(kept.state_dict()))
    x, calls = torch.randn(2, 3, 64, 64), []
    for backbone in (kept, recomputed):
        calls.append(counted(backbone))
        torch.stack([feature.square().mean() for feature in backbone(x).values()]).sum().backward()
    assert calls[1][0] > calls[0][0]
    for (key, ours), theirs in zip(recomputed.named_parameters(), kept.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), key
        if ours.grad is not None and theirs.grad is not None:
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6), key


def test_either_key_recomputes() -> None:
    for word in ("train.activation_checkpoint=True", "model.backbone.timm.use_checkpoint=True"):
        assert TimmBackbone.from_config(cfg_of("test_resnet", word))["activation_checkpoint"]
    assert not TimmBackbone.from_config(cfg_of("test_resnet"))["activation_checkpoint"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnxt_tiny", r"'convnxt_tiny', which timm [\d.]+ does not know"),
        ("convnext", r"'convnext', which timm .* does not know; near it are convnext_"),
        ("test_vit", r"test_vit has feature maps at strides \[16, 16, 16\]; a pixel decoder needs 4, 8, 16 and 32"),
        (
            "test_maxvit",
            r"test_maxvit cannot take an image of \(64, 96\), and a backbone must take any size; timm says",
        ),
        ("hiera_tiny_224", r"hiera_tiny_224 cannot take an image of \(64, 96\)"),
        (
            "legacy_xception",
            r"legacy_xception gives a map of \(15, 23\) at stride 4 for .*; a pixel decoder needs \(16",
        ),
    ],
)
def test_a_network_that_cannot_serve_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.backbone\.timm\.name.*{message}"):
        build(name)


def test_a_network_that_cannot_recompute_is_refused() -> None:
    with pytest.raises(ValueError, match=r"timm cannot recompute the activations of hrnet_w18_small; set train\."):
        build("hrnet_w18_small", "use_checkpoint=True")


def test_without_timm_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs timm; pip install 'm2f\[timm\]'"):
        build("test_resnet")


def test_arguments_come_from_the_section() -> None:
    words = ("drop_path_rate=0.2", "use_checkpoint=True", "out_features=[res2, res4, res5]")
    encoder = "model.sem_seg_head.deformable_transformer_encoder_in_features=[res4, res5]"
    cfg = cfg_of("test_resnet", *(f"model.backbone.timm.{word}" for word in words), encoder)
    expected: dict[str, Any] = {"name": "test_resnet", "drop_path_rate": 0.2, "activation_checkpoint": True}
    assert TimmBackbone.from_config(cfg) == {**expected, "out_features": ["res2", "res4", "res5"]}
