"""Weights of another depth, with more in a block, or of other norms: many of their names fit, and all are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.architecture import require_same_network
from m2f.checkpoint.loading import load_weights
from m2f.checkpoint.schemes import from_m2f, to_m2f
from m2f.modeling.backbone.resnet import ResNet
from m2f.modeling.backbone.swin import SwinBlockOptions, SwinTransformer

THREE = ("res2", "res3", "res4")


def swin(depths: tuple[int, ...] = (1, 1, 2, 1), qkv_bias: bool = True, **more: Any) -> nn.Module:
    block = SwinBlockOptions(window_size=2, qkv_bias=qkv_bias)
    return SwinTransformer(embed_dim=8, depths=depths, num_heads=(1, 1, 2, 2), block=block, **more)


def resnet(depth: int = 18, **more: Any) -> nn.Module:
    width = 32 if depth < 50 else 8
    return ResNet(depth=depth, stem_channels=32, res2_channels=32, width=width, **more)


def state(backbone: nn.Module) -> dict[str, Tensor]:
    return {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}


def load(model: nn.Module, weights: dict[str, Tensor]) -> tuple[str, ...]:
    """The names that were not used."""
    return load_weights(nn.ModuleDict({"backbone": model}), weights, part="backbone").ignored


@pytest.mark.parametrize(
    ("file", "model", "message"),
    [
        (lambda: swin((1, 1, 4, 1)), swin, "backbone.layers.2.blocks ends at 3 in the file and at 1 in the model"),
        (swin, lambda: swin((1, 1, 4, 1)), "backbone.layers.2.blocks ends at 1 in the file and at 3 in the model"),
        (lambda: resnet(101), lambda: resnet(50), "backbone.layer3 ends at 22 in the file and at 5 in the model"),
        (lambda: resnet(34), resnet, "backbone.layer1 ends at 2 in the file and at 1 in the model"),
        (swin, lambda: swin(qkv_bias=False), r"backbone.layers.0 has blocks.0.attn.qkv.bias in the file, which"),
        (resnet, lambda: resnet(norm="GN"), r"backbone.layer1.0 has bn1.running_mean in the file, which the model la"),
        (
            lambda: resnet(norm="GN"),
            resnet,
            "has backbone.bn1.weight, but not backbone.bn1.running_mean: .*other norms",
        ),
    ],
)
def test_another_network_is_refused(file: Callable[..., Any], model: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(model(), state(file()))


def test_a_deeper_file_of_another_home_is_refused() -> None:
    weights = from_m2f(state(resnet(34)), "official")
    assert "backbone.res2.2.conv1.weight" in weights
    with pytest.raises(ValueError, match=r"a state dict: backbone.layer1 ends at 2 in the file and at 1 in the model"):
        load(resnet(), weights)


def test_a_squeeze_and_excite_network_is_not_a_plain_one() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs, plain = (timm.create_model(name).state_dict() for name in ("seresnet18", "resnet18"))
    theirs, plain = ({f"backbone.{name}": tensor for name, tensor in s.items()} for s in (theirs, plain))
    with pytest.raises(ValueError, match=r"backbone.layer1.0 has se.fc1.bias in the file, which the model lacks"):
        require_same_network(plain, theirs)


def test_a_deeper_file_of_timm_is_refused() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        weights = timm.create_model("convnext_small").state_dict()
        network = timm.create_model("convnext_tiny", features_only=True)
    own = {f"backbone.network.{name}": tensor for name, tensor in network.state_dict().items()}
    assert "backbone.network.stages_2.blocks.8.gamma" in own
    with pytest.raises(ValueError, match=r"network.stages_2.blocks ends at 26 in the file and at 8 in the model"):
        require_same_network(own, to_m2f(weights, own)[0])


@pytest.mark.parametrize("build", [swin, resnet])
def test_stages_after_the_last_that_is_wanted_are_left_out(build: Callable[..., nn.Module]) -> None:
    whole, cut = build(), build(out_features=THREE)
    ignored = load(cut, state(whole))
    assert set(ignored) <= state(whole).keys() - state(cut).keys()
    assert ignored or build is resnet
    more = {"backbone.norm.weight": torch.ones(64), "backbone.head.weight": torch.ones(3, 64)}
    assert set(more) <= set(load(build(), {**state(build()), **more}))


def test_a_shorter_decoder_is_another_network() -> None:
    own, theirs = ({f"transformer_decoder.layers.{i}.bias": torch.zeros(1) for i in range(n)} for n in (3, 9))
    with pytest.raises(ValueError, match=r"transformer_decoder.layers ends at 8 in the file and at 2 in the model"):
        require_same_network(own, theirs)


def test_a_replaced_module_of_one_block_is_a_projects_affair() -> None:
    own = {f"backbone.layers.{i}.{kind}": torch.zeros(1) for i in range(20) for kind in ("weight", "bias")}
    theirs = {name.replace("layers.3.bias", "layers.3.offset"): tensor for name, tensor in own.items()}
    require_same_network(own, theirs)
    require_same_network({**own, "backbone.layers.3.gate": torch.zeros(1)}, own)
