"""ResNet of torchvision's blocks under torchvision's names, with Detectron2's choice of widths and norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from m2f.config.variants import RESNET
from m2f.modeling.backbone.backbone import STAGES, Backbone, published_sizes
from m2f.modeling.build import BACKBONE_REGISTRY

_SECTION = "model.backbone.resnet"
_BLOCKS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


@BACKBONE_REGISTRY.register("resnet")
class ResNet(Backbone):
    """Residual network; bottlenecks have their stride in the 3x3 convolution, as torchvision's and the official runs.

    Args:
        depth: 18, 34, 50 or 101.
        stem_channels: channels of the 7x7 convolution.
        res2_channels: output channels of res2, doubled at each stage.
        width: channels of the 3x3 convolution of res2's blocks, doubled at each stage; basic blocks (18, 34) have
            `res2_channels` there.
        norm: FrozenBN (fixed statistics and scale), BN, SyncBN or GN (32 groups).
        out_features: names of the maps to return.
        activation_checkpoint: recompute blocks in the backward pass.

    Raises:
        ValueError: a size does not exist or does not fit the depth or the norm.

    Source: arXiv:1512.03385.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        stem_channels: int = 64,
        res2_channels: int = 256,
        width: int = 64,
        norm: str = "FrozenBN",
        out_features: Sequence[str] = STAGES,
        activation_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            channels=[res2_channels * 2**i for i in range(4)],
            out_features=out_features,
            activation_checkpoint=activation_checkpoint,
        )
        _check_sizes(depth, stem_channels, res2_channels, width)
        norm_layer = _norm_layer(norm)
        self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = stem_channels
        for stage in range(self.num_stages):
            sizes = (channels, res2_channels * 2**stage, width * 2**stage)
            self.add_module(f"layer{stage + 1}", _stage(depth, stage, sizes, norm_layer))
            channels = res2_channels * 2**stage
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Constructor arguments from `model.backbone.resnet`."""
        section = cfg.model.backbone.resnet
        return {
            **published_sizes(section, RESNET),
            "norm": section.norm,
            "out_features": section.out_features,
            "activation_checkpoint": cfg.train.activation_checkpoint or section.use_checkpoint,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {name: (B, C, H/stride, W/stride)}, sizes rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = {}
        for stage, name in enumerate(STAGES[: self.num_stages]):
            for block in self.get_submodule(f"layer{stage + 1}").children():
                x = self.run_block(block, x)
            features[name] = x
        return {name: features[name] for name in self.feature_shapes()}


def _stage(
    depth: int, stage: int, sizes: tuple[int, int, int], norm_layer: Callable[[int], nn.Module]
) -> nn.Sequential:
    """The blocks of one stage; `sizes` are its input, output and inner channels."""
    block, counts = _BLOCKS[depth]
    inputs, outputs, width = sizes
    stride = 1 if stage == 0 else 2
    planes = outputs // block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm_layer(outputs))
    base_width = 64 if block is BasicBlock else 64 * width / planes  # torchvision: width = planes * base_width / 64
    first = block(inputs, planes, stride, shortcut, base_width=base_width, norm_layer=norm_layer)
    rest = [block(outputs, planes, base_width=base_width, norm_layer=norm_layer) for _ in range(counts[stage] - 1)]
    return nn.Sequential(first, *rest)


def _check_sizes(depth: int, stem_channels: int, res2_channels: int, width: int) -> None:
    if depth not in _BLOCKS:
        raise ValueError(f"{_SECTION}.depth is {depth}; it is one of {', '.join(map(str, _BLOCKS))}")
    if min(stem_channels, res2_channels, width) < 1:
        raise ValueError(f"{_SECTION}: stem_channels, res2_channels and width are at least 1")
    block, _ = _BLOCKS[depth]
    if block is BasicBlock and width != res2_channels:
        raise ValueError(
            f"{_SECTION}.width is {width}, but depth {depth} has basic blocks, whose two convolutions both have "
            f"res2_channels = {res2_channels} channels; make the two keys equal"
        )
    if res2_channels % block.expansion:
        raise ValueError(f"{_SECTION}.res2_channels is {res2_channels}; depth {depth} needs a multiple of 4")


def _norm_layer(norm: str) -> Callable[[int], nn.Module]:
    norms: dict[str, Callable[[int], nn.Module]] = {
        "FrozenBN": FrozenBatchNorm2d,
        "BN": nn.BatchNorm2d,
        "SyncBN": nn.SyncBatchNorm,
        "GN": _group_norm,
    }
    if norm not in norms:
        raise ValueError(f"{_SECTION}.norm is {norm!r}; it is one of {', '.join(norms)}")
    return norms[norm]


def _group_norm(channels: int) -> nn.GroupNorm:
    if channels % 32:
        raise ValueError(f"{_SECTION}.norm GN has 32 groups, which do not divide a layer of {channels} channels")
    return nn.GroupNorm(32, channels)
