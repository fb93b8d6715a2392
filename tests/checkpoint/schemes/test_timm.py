"""Files of timm in the same network as m2f's backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.schemes import to_m2f
from m2f.checkpoint.schemes.timm import to_network
from m2f.modeling.backbone.timm_backbone import TimmBackbone

timm = pytest.importorskip("timm")

NETWORKS = (
    "convnext_atto",
    "resnet18",
    "regnety_004",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_100",
    "hgnetv2_b0",
    "swin_tiny_patch4_window7_224",  # channels last, and by default images of one size
    "edgenext_xx_small",
    "fastvit_t8",
    "pvt_v2_b0",
    "cspnext_s",  # everything below `model.`
    "dla34",  # its first map, which timm leaves out by default, has stride 1
)


def state(*names: str) -> dict[str, Tensor]:
    return {name: torch.full((1,), float(number)) for number, name in enumerate(names)}


def randomised(name: str) -> nn.Module:
    """No weight is 0 or 1, as many are at first, and statistics are those that a network in use could have."""
    network = timm.create_model(name)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim < 2:
            tensor.add_(0.2 * torch.rand_like(tensor))
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_timms_own_loader(name: str, tmp_path: Path) -> None:
    file = randomised(name).state_dict()
    backbone = TimmBackbone(name=name).eval()
    own = {f"backbone.{key}" for key in backbone.state_dict()}
    ours, scheme = to_m2f(file, own)
    assert scheme == "timm"
    assert len(ours) == len(file)
    assert own - ours.keys() == set()
    nn.ModuleDict({"backbone": backbone}).load_state_dict(ours, strict=False)

    torch.save(file, tmp_path / "weights.pth")
    options = {"strict_img_size": False} if name.startswith("swin") else {}
    source = {"file": str(tmp_path / "weights.pth")}
    reference = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, features_only=True, **options)
    x = torch.randn(1, 3, 64, 96)
    by_stride = dict(zip(reference.feature_info.reduction(), reference.eval()(x), strict=True))
    for (_, stride), feature in zip(backbone.feature_shapes().values(), backbone(x).values(), strict=True):
        expected = by_stride[stride].permute(0, 3, 1, 2) if name.startswith("swin") else by_stride[stride]
        assert feature.shape == expected.shape
        assert float((feature - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("prefix", ["", "model.", "backbone.", "module.", "module.model."])
def test_wrappers_and_joints_do_not_matter(prefix: str) -> None:
    own = ("backbone.network.stem_0.weight", "backbone.network.stages_0.blocks.0.gamma", "pixel_decoder.mask.weight")
    file = state(*(prefix + name for name in ("stem.0.weight", "stages.0.blocks.0.gamma", "head.fc.weight")))
    ours, scheme = to_m2f(file, own)
    assert scheme == "timm"
    assert list(map(float, ours.values())) == [0, 1, 2]
    *found, kept = ours
    assert found == list(own[:2])
    assert kept == f"backbone.network.{prefix.removeprefix('module.')}head.fc.weight"


@pytest.mark.parametrize("wrapper", ["model.", "body."])
def test_the_networks_own_wrapper_does_not_matter(wrapper: str) -> None:
    own = [f"backbone.network.{wrapper}{name}" for name in ("conv.weight", "norm.weight")]
    ours, _ = to_m2f(state("conv.weight", "norm.weight", "fc.weight"), own)
    assert list(ours) == [*own, "backbone.network.fc.weight"]


def test_what_the_network_lacks_stands_in_the_module_that_it_has() -> None:
    own = [f"backbone.network.stages_{stage}.blocks.0.gamma" for stage in range(3)]
    file = [f"stages.{stage}.blocks.0.gamma" for stage in range(3)]
    ours, _ = to_m2f(state(*file, "stages.1.blocks.1.gamma", "stages.3.blocks.0.gamma", "stages_1.norm.weight"), own)
    more = ["stages_1.blocks.1.gamma", "stages.3.blocks.0.gamma", "stages_1.norm.weight"]
    assert list(ours) == [*own, *(f"backbone.network.{name}" for name in more)]


def test_another_network_is_not_taken_for_it() -> None:
    resnet = state("conv1.weight", "layer1.0.conv1.weight", "bn1.weight")
    own = [f"backbone.network.{name}" for name in ("bn1.weight", "conv_stem.weight", "blocks.0.0.conv_dw.weight")]
    assert to_network(resnet, own) is None
    assert to_m2f(resnet, own)[1] == "torchvision"
    with pytest.raises(ValueError, match=r"unknown weight names .* timm's where model\.backbone\.type is timm"):
        to_m2f(state("stem.0.weight"), own)


def test_half_of_the_network_is_not_enough() -> None:
    own = [f"backbone.network.{name}" for name in ("a.weight", "b.weight", "c.weight", "d.weight")]
    assert to_network(state("a.weight", "b.weight"), own) is None
    assert to_network(state("a.weight", "b.weight", "c.weight"), own) is not None


def test_a_model_without_timm_is_none_of_its_business() -> None:
    own = ("backbone.conv1.weight", "backbone.layer1.0.conv1.weight")
    assert to_network(state("conv1.weight", "layer1.0.conv1.weight"), own) is None
    assert to_network(state("conv1.weight"), ()) is None


def test_m2fs_own_files_stay_what_they_are() -> None:
    network = [f"backbone.network.{name}" for name in ("conv_stem.weight", "blocks.0.0.conv_dw.weight")]
    for own in (network, [*network, "pixel_decoder.mask_features.weight"]):
        ours, scheme = to_m2f(state(*own), own)
        assert (list(ours), scheme) == (own, "m2f")


def test_names_that_only_differ_at_a_joint_are_refused() -> None:
    own = ["backbone.network.stages_0.weight"]
    with pytest.raises(ValueError, match=r"stages\.0\.weight and stages_0\.weight cannot be told apart"):
        to_m2f(state("stages.0.weight", "stages_0.weight"), own)
