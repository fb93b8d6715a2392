"""ResNet against torchvision and the official outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from m2f.checkpoint.schemes import to_m2f
from m2f.modeling.backbone.resnet import ResNet


@pytest.mark.parametrize(("depth", "res2_channels"), [(18, 64), (34, 64), (50, 256), (101, 256)])
def test_torchvision_weights_load_unchanged(depth: int, res2_channels: int) -> None:
    with torch.device("meta"):
        reference = getattr(torchvision.models, f"resnet{depth}")()
        backbone = ResNet(depth=depth, res2_channels=res2_channels, norm="BN")
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items() if not name.startswith("fc.")}
    assert {name: tensor.shape for name, tensor in backbone.state_dict().items()} == shapes


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_equals_torchvision(norm: str) -> None:
    reference = torchvision.models.resnet18().eval()
    for name, buffer in reference.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    backbone = ResNet(depth=18, res2_channels=64, norm=norm).eval()
    missing, unexpected = backbone.load_state_dict(reference.state_dict(), strict=False)
    assert not missing
    assert {name for name in unexpected if "num_batches" not in name} == {"fc.weight", "fc.bias"}
    x = torch.randn(1, 3, 65, 90)
    with torch.no_grad():
        logits = reference.fc(backbone(x)["res5"].mean((2, 3)))
        torch.testing.assert_close(logits, reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.realdata
def test_equals_the_official_resnet(oracles: Path) -> None:
    for path in sorted(oracles.glob("*.npz")):
        stored = np.load(path)
        config = json.loads(str(stored["config"]))
        if config["kind"] != "mask2former" or config["backbone"] != "resnet":
            continue
        resnet = config["resnet"]
        backbone = ResNet(
            depth=resnet["DEPTH"],
            stem_channels=resnet["STEM_OUT_CHANNELS"],
            res2_channels=resnet["RES2_OUT_CHANNELS"],
            width=resnet["WIDTH_PER_GROUP"],
            norm=resnet["NORM"],
        ).eval()
        weights = {key.removeprefix("weights/"): torch.from_numpy(stored[key]) for key in stored if "weights/" in key}
        state, _ = to_m2f(weights)
        backbone.load_state_dict(
            {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
        )
        with torch.no_grad():
            features = backbone(torch.from_numpy(stored["padded"]))
        for name, feature in features.items():
            expected = torch.from_numpy(stored[f"backbone/{name}"])
            assert (feature - expected).abs().max() < 1e-5 * expected.abs().max(), (path.name, name)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("FrozenBN", FrozenBatchNorm2d), ("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm), ("GN", nn.GroupNorm)],
)
def test_norms(norm: str, kind: type[nn.Module]) -> None:
    backbone = ResNet(depth=18, stem_channels=32, res2_channels=32, width=32, norm=norm).train()
    norms = [module for name, module in backbone.named_modules() if "bn" in name or name.endswith("downsample.1")]
    assert len(norms) == 20
    assert all(isinstance(module, kind) and module.eps == 1e-5 for module in norms)
    assert any(p.requires_grad for m in norms for p in m.parameters()) is (norm != "FrozenBN")
    backbone(torch.randn(2, 3, 32, 32))["res5"].sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 42}, "depth is 42; it is one of 18, 34, 50, 101"),
        ({"norm": "LN"}, "norm is 'LN'; it is one of FrozenBN"),
        ({"norm": "GN", "stem_channels": 8}, "32 groups"),
        ({"depth": 18}, "make the two keys equal"),
        ({"res2_channels": 30}, "multiple of 4"),
        ({"width": 0}, "at least 1"),
    ],
)
def test_impossible_sizes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)
