"""ResNets of torchvision, timm and Detectron2 in m2f's ResNet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from m2f.checkpoint.schemes import from_m2f, to_m2f
from m2f.modeling.backbone.resnet import ResNet

NAMES = Path(__file__).parents[1] / "names"
DEPTHS = {18: 64, 34: 64, 50: 256}  # and the channels of res2


def published(file: str) -> dict[str, Tensor]:
    names = json.loads((NAMES / f"{file}.json").read_text())["names"]
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def randomise(network: nn.Module) -> nn.Module:
    """Statistics that a network in use could have; without them every norm would do nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1)
    return network.eval()


def loaded(depth: int, state: dict[str, Tensor], norm: str = "FrozenBN") -> ResNet:
    """m2f's ResNet with these weights: nothing fresh, and nothing left over but a classifier."""
    backbone = ResNet(depth=depth, res2_channels=DEPTHS[depth], norm=norm)
    missing, unexpected = nn.ModuleDict({"backbone": backbone}).load_state_dict(state, strict=False)
    assert not missing
    assert set(unexpected) <= {"backbone.fc.weight", "backbone.fc.bias"}
    return backbone.eval()


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("file", "depth", "scheme"),
    [
        ("torchvision_resnet18", 18, "torchvision"),
        ("timm_resnet34", 34, "torchvision"),
        ("torchvision_resnet50", 50, "torchvision"),
        ("detectron2_torchvision_r50", 50, "detectron2"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_published_names_and_shapes(file: str, depth: int, scheme: str, prefix: str) -> None:
    ours, found = to_m2f({prefix + name: tensor for name, tensor in published(file).items()})
    assert found == scheme
    with torch.device("meta"):
        backbone = ResNet(depth=depth, res2_channels=DEPTHS[depth], norm="FrozenBN")
    own = {f"backbone.{name}": tensor.shape for name, tensor in backbone.state_dict().items()}
    classifier = {"backbone.fc.weight", "backbone.fc.bias"}
    held = {name: t.shape for name, t in ours.items() if not name.endswith("num_batches_tracked")}
    assert {name: shape for name, shape in held.items() if name not in classifier} == own
    assert held.keys() - own.keys() == classifier


@torch.no_grad()
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("depth", list(DEPTHS))
def test_equals_timm(depth: int, norm: str) -> None:
    timm = pytest.importorskip("timm")
    whole = randomise(timm.create_model(f"resnet{depth}"))
    features = timm.create_model(f"resnet{depth}", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    features.load_state_dict(whole.state_dict(), strict=False)
    state, scheme = to_m2f(whole.state_dict())
    assert scheme == "torchvision"
    x = torch.randn(1, 3, 65, 90)
    for found, expected in zip(loaded(depth, state, norm)(x).values(), features(x), strict=True):
        assert_near(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("depth", list(DEPTHS))
def test_equals_torchvision_by_either_name(depth: int) -> None:
    reference = randomise(getattr(torchvision.models, f"resnet{depth}")())
    ours, _ = to_m2f(reference.state_dict())
    detectron2 = {name.removeprefix("backbone."): tensor for name, tensor in from_m2f(ours, "official").items()}
    assert "res2.0.conv1.norm.running_mean" in detectron2
    again, scheme = to_m2f(detectron2)
    assert scheme == "detectron2"
    x = torch.randn(1, 3, 65, 90)
    for state in (ours, again):
        pooled = loaded(depth, state)(x)["res5"].mean((2, 3))
        assert_near(reference.fc(pooled), reference(x))


def test_detectron2_names_of_a_block_with_a_shortcut() -> None:
    names = (
        "res2.0.shortcut.norm.weight",
        "res2.0.shortcut.weight",
        "res2.0.conv1.weight",
        "res5.2.conv3.norm.running_var",
        "stem.conv1.weight",
        "stem.conv1.norm.bias",
        "stem.fc.bias",
    )
    ours, _ = to_m2f({name: torch.zeros(1) for name in names})
    assert list(ours) == [
        "backbone.layer1.0.downsample.1.weight",
        "backbone.layer1.0.downsample.0.weight",
        "backbone.layer1.0.conv1.weight",
        "backbone.layer4.2.bn3.running_var",
        "backbone.conv1.weight",
        "backbone.bn1.bias",
        "backbone.fc.bias",
    ]


def test_other_networks_keep_their_names() -> None:
    swin = {"backbone.layers.0.blocks.0.norm1.weight": torch.zeros(1), "backbone.conv1.weight": torch.zeros(1)}
    assert list(from_m2f(swin, "official")) == list(swin)


def test_caffe2_weights_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"MSRA/R-50\.pkl: it takes BGR images and has its strides in the 1x1"):
        to_m2f(published("detectron2_msra_r50"))
