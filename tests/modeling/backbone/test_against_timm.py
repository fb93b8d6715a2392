"""Random weights carried over from timm: m2f's Swin and EfficientViT make the feature maps that timm's make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f.checkpoint.schemes import to_m2f
from m2f.config.variants import EFFICIENTVIT, SWIN, Variants
from m2f.modeling.backbone.backbone import Backbone
from m2f.modeling.backbone.efficientvit import EfficientViT
from m2f.modeling.backbone.swin import SwinTransformer

timm = pytest.importorskip("timm")


def randomised(network: nn.Module) -> nn.Module:
    """Weights that keep the scale of what goes through, and statistics that a network in use could have."""
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("relative_position_bias_table"):
            tensor.normal_()
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.2)
    return network.eval()


def sizes(variants: Variants, name: str) -> dict[str, Any]:
    return dict(zip(variants.fields, variants.rows[name], strict=True))


def carried_over(network: nn.Module, backbone: Backbone) -> tuple[Backbone, set[str]]:
    """The backbone with timm's weights, and which of its tensors stayed fresh; nothing of timm's is left over."""
    state, _ = to_m2f(network.state_dict())
    missing, unexpected = nn.ModuleDict({"backbone": backbone}).load_state_dict(state, strict=False)
    assert not unexpected
    return backbone.eval(), set(missing)


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size"), [("tiny", (224, 448)), ("small", (224, 224)), ("base", (224, 224))], ids=lambda value: str(value)
)
def test_swin(name: str, size: tuple[int, int]) -> None:
    """Where windows divide every map: elsewhere timm shifts before it pads, the authors' detection code after.

    timm's maps come before the norms, and without `always_partition` its last stage does not shift at all.
    """
    options = {"features_only": True, "strict_img_size": False, "always_partition": True}
    reference = randomised(timm.create_model(f"swin_{name}_patch4_window7_224", **options))
    backbone, fresh = carried_over(reference, SwinTransformer(**sizes(SWIN, name)))
    assert fresh == {f"backbone.norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    x = torch.randn(1, 3, *size)
    expected = [F.layer_norm(feature, feature.shape[-1:]).permute(0, 3, 1, 2) for feature in reference(x)]
    assert_near(list(backbone(x).values()), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (75, 93)], ids=str)
@pytest.mark.parametrize("name", ["b0", "b1", "l1"])
def test_efficientvit(name: str, size: tuple[int, int]) -> None:
    reference = randomised(timm.create_model(f"efficientvit_{name}", features_only=True))
    for module in reference.modules():
        if isinstance(module, timm.models.efficientvit_mit.LiteMLA):  # timm has 1e-5 here, the authors and m2f 1e-15
            module.eps = 1e-15
    backbone, fresh = carried_over(reference, EfficientViT(**sizes(EFFICIENTVIT, name)))
    assert not fresh
    x = torch.randn(1, 3, *size)
    assert_near(list(backbone(x).values()), reference(x))
