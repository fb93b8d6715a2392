"""What every backbone promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from m2f.config.defaults import get_cfg
from m2f.modeling.backbone.backbone import STAGES, Backbone, FeatureShape, requested_features
from m2f.modeling.backbone.efficientvit import EfficientViT
from m2f.modeling.backbone.resnet import ResNet
from m2f.modeling.backbone.swin import SwinBlockOptions, SwinTransformer
from m2f.modeling.build import BACKBONE_REGISTRY

BACKBONES = ("swin", "resnet18", "resnet50", "efficientvit_b", "efficientvit_l")


def build(name: str, **more) -> Backbone:
    """A small member of each kind."""
    torch.manual_seed(0)
    if name == "swin":
        return SwinTransformer(
            embed_dim=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], block=SwinBlockOptions(window_size=4), **more
        )
    if name == "resnet18":
        return ResNet(depth=18, stem_channels=8, res2_channels=8, width=8, norm="BN", **more)
    if name == "resnet50":
        return ResNet(depth=50, stem_channels=8, res2_channels=16, width=4, norm="FrozenBN", **more)
    return EfficientViT(family=name[-1], widths=[8, 8, 16, 16, 32], depths=[1, 1, 1, 2, 1], dim=8, **more)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(64, 96), (32, 32), (33, 71), (97, 45)])
def test_maps_have_the_promised_names_channels_and_strides(name: str, size: tuple[int, int]) -> None:
    backbone = build(name).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, *size))
    assert list(features) == list(STAGES) == list(backbone.feature_shapes())
    for feature, shape in zip(features.values(), backbone.feature_shapes().values(), strict=True):
        rounded_up = tuple(-(-side // shape.stride) for side in size)
        assert feature.shape == (2, shape.channels, *rounded_up)
        assert feature.isfinite().all()


@pytest.mark.parametrize("name", BACKBONES)
def test_fresh_weights_keep_signals_alive(name: str) -> None:
    backbone = build(name).train()
    for feature in backbone(torch.randn(2, 3, 64, 64)).values():
        assert 0.05 < feature.std() < 2000


@pytest.mark.parametrize("name", BACKBONES)
def test_only_requested_maps_are_made(name: str) -> None:
    everything, some = build(name).eval(), build(name, out_features=["res4", "res2"]).eval()
    assert list(some.feature_shapes()) == ["res2", "res4"]
    assert sum(p.numel() for p in some.parameters()) < sum(p.numel() for p in everything.parameters())
    some.load_state_dict({k: v for k, v in everything.state_dict().items() if k in some.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, features = everything(x), some(x)
    assert list(features) == ["res2", "res4"]
    for key, feature in features.items():
        assert torch.equal(feature, expected[key])


@pytest.mark.parametrize("name", BACKBONES)
def test_recomputing_activations_changes_neither_gradients_nor_statistics(name: str) -> None:
    results = []
    x = torch.randn(2, 3, 64, 64)
    for activation_checkpoint in (False, True):
        backbone = build(name, activation_checkpoint=activation_checkpoint).train()
        sum(feature.square().mean() for feature in backbone(x).values()).backward()
        gradients = {key: parameter.grad for key, parameter in backbone.named_parameters()}
        results.append((gradients, dict(backbone.named_buffers())))
    (plain, statistics), (recomputed, recomputed_statistics) = results
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)
    assert all(torch.equal(statistics[key], recomputed_statistics[key]) for key in statistics)


def test_activations_are_recomputed_in_training_only() -> None:
    backbone = build("resnet18", activation_checkpoint=True)
    calls = []
    backbone.get_submodule("layer4.0.bn1").register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 3, 64, 64)
    backbone.train()(x)["res5"].sum().backward()
    assert len(calls) == 2
    backbone.eval()(x)["res5"].sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["swin", "efficientvit_b"])
def test_half_precision_runs_and_stays_close(name: str) -> None:
    backbone = build(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(x)["res5"]
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone(x)["res5"].float()
    assert (half - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "channels"),
    [("swin", (96, 192, 384, 768)), ("resnet", (256, 512, 1024, 2048)), ("efficientvit", (64, 128, 256, 512))],
)
def test_defaults_of_the_spec_build(name: str, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        backbone = BACKBONE_REGISTRY.build(name, get_cfg())
    shapes = backbone.feature_shapes()
    assert list(shapes) == list(STAGES)
    assert list(shapes.values()) == [FeatureShape(c, 4 * 2**i) for i, c in enumerate(channels)]
    assert backbone.size_divisibility == 32
    assert backbone.activation_checkpoint  # train.activation_checkpoint's default


@pytest.mark.parametrize("section", ["swin", "efficientvit", "resnet"])
def test_a_backbones_own_checkpoint_key_is_enough(section: str) -> None:
    cfg = get_cfg()
    cfg.train.activation_checkpoint = False
    with torch.device("meta"):
        assert not BACKBONE_REGISTRY.build(section, cfg).activation_checkpoint
        cfg.model.backbone[section].use_checkpoint = True
        assert BACKBONE_REGISTRY.build(section, cfg).activation_checkpoint


@pytest.mark.parametrize("section", ["swin", "efficientvit"])
def test_both_output_keys_are_honoured(section: str) -> None:
    cfg = get_cfg()
    cfg.model.backbone[section].out_indices = [0, 1, 3]
    cfg.model.backbone[section].out_features = ["res3", "res4", "res5"]
    with torch.device("meta"):
        assert list(BACKBONE_REGISTRY.build(section, cfg).feature_shapes()) == ["res3", "res5"]


def test_impossible_output_keys_are_named() -> None:
    with pytest.raises(ValueError, match=r"a\.b\.out_indices has \[4\]"):
        requested_features([0, 4], STAGES, "a.b")
    with pytest.raises(ValueError, match=r"a\.b\.out_features has \['res6'\]"):
        requested_features([0], ["res6"], "a.b")
    with pytest.raises(ValueError, match="no stage in common"):
        requested_features([0], ["res3"], "a.b")


@pytest.mark.parametrize(("section", "key"), [("swin", "type"), ("efficientvit", "name"), ("resnet", "type")])
def test_an_unknown_name_lists_the_known_ones(section: str, key: str) -> None:
    cfg = get_cfg()
    cfg.model.backbone[section][key] = "enormous"
    with pytest.raises(ValueError, match=f"backbone.{section}.{key} is 'enormous'; it is one of .*custom"):
        BACKBONE_REGISTRY.build(section, cfg)


def test_custom_frees_the_sizes() -> None:
    cfg = get_cfg()
    node = cfg.model.backbone.resnet
    node.type, node.depth, node.stem_channels, node.res2_channels, node.width, node.norm = "custom", 50, 8, 16, 4, "BN"
    backbone = BACKBONE_REGISTRY.build("resnet", cfg)
    assert backbone.get_submodule("layer1.0.conv2").weight.shape == (4, 4, 3, 3)
    assert isinstance(backbone.get_submodule("bn1"), nn.BatchNorm2d)
