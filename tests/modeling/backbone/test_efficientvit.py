"""EfficientViT against the official names, shapes and outputs, and its attention against the quadratic formula."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from m2f.config.defaults import get_cfg
from m2f.modeling.backbone.efficientvit import EfficientViT, LiteMLA, linear_attention
from m2f.modeling.build import BACKBONE_REGISTRY

NAMES = ("b0", "b1", "b2", "b3", "l0", "l1", "l2", "l3")


def _named(name: str) -> EfficientViT:
    cfg = get_cfg()
    cfg.model.backbone.efficientvit.name = name
    return BACKBONE_REGISTRY.build("efficientvit", cfg)


@pytest.mark.realdata
@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_the_official_ones(oracles: Path, name: str) -> None:
    expected = json.loads((oracles / "efficientvit_state_dict_shapes.json").read_text())
    with torch.device("meta"):
        backbone = _named(name)
    assert {key: list(tensor.shape) for key, tensor in backbone.state_dict().items()} == expected[name]
    shapes = [
        [1, shape.channels, 64 // shape.stride, 96 // shape.stride] for shape in backbone.feature_shapes().values()
    ]
    assert shapes == [expected[f"{name}/features"][f"stage{i}"] for i in (1, 2, 3, 4)]


@pytest.mark.realdata
def test_equals_the_official_outputs(oracles: Path) -> None:
    for path in sorted(oracles.glob("*.npz")):
        stored = np.load(path)
        config = json.loads(str(stored["config"]))
        if config["kind"] != "efficientvit":
            continue
        backbone = EfficientViT(**{key: value for key, value in config.items() if key != "kind"}).eval()
        weights = {key.removeprefix("weights/"): torch.from_numpy(stored[key]) for key in stored if "weights/" in key}
        backbone.load_state_dict(weights)
        with torch.no_grad():
            features = backbone(torch.from_numpy(stored["input"]))
        for i, feature in enumerate(features.values(), start=1):
            expected = torch.from_numpy(stored[f"features/stage{i}"])
            assert (feature - expected).abs().max() < 1e-5 * expected.abs().max(), (path.name, i)


def test_linear_attention_is_normalised_quadratic_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 4, 10, dtype=torch.float32)
    weights = q.relu().mT @ k.relu()  # (B, M, N, N)
    expected = (weights / weights.sum(-1, keepdim=True).clamp_min(1e-15)) @ v.mT
    torch.testing.assert_close(linear_attention(q, k, v), expected.mT, rtol=1e-4, atol=1e-5)


def test_linear_attention_of_no_weight_is_zero() -> None:
    q = -torch.ones(1, 1, 2, 3)
    assert torch.equal(linear_attention(q, q, torch.ones_like(q)), torch.zeros_like(q))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_attention_does_not_overflow_in_half_precision(dtype: torch.dtype) -> None:
    q = torch.full((1, 1, 16, 4096), 40.0, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_attention(q, q, q)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, q.float())


def test_attention_sees_the_whole_image() -> None:
    attention = LiteMLA(16, 8).eval()
    x = torch.randn(1, 16, 9, 13, requires_grad=True)
    attention(x)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().sum(0) > 0).all()


def test_epsilon_of_all_norms_is_that_of_the_published_weights() -> None:
    for name, eps in (("b0", 1e-5), ("l0", 1e-7)):
        with torch.device("meta"):
            backbone = _named(name)
        assert {module.eps for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)} == {eps}


def test_the_key_without_effect_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    cfg = get_cfg()
    cfg.model.backbone.efficientvit.pretrain_img_size = 224
    with caplog.at_level(logging.INFO), torch.device("meta"):
        BACKBONE_REGISTRY.build("efficientvit", cfg)
    assert "pretrain_img_size has no effect" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "x"}, "family is 'x'; it is b or l"),
        ({"widths": [8, 16]}, "five values"),
        ({"dim": 65}, "dim is 65"),
        ({"depths": [1, 0, 1, 1, 1]}, "at least one block"),
    ],
)
def test_impossible_sizes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientViT(**arguments)
