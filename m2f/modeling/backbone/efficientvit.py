"""EfficientViT, both families, under mit-han-lab's parameter names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from m2f.config.variants import EFFICIENTVIT
from m2f.modeling.backbone.backbone import STAGES, Backbone, published_sizes, requested_features
from m2f.modeling.build import BACKBONE_REGISTRY

logger = logging.getLogger(__name__)

_SECTION = "model.backbone.efficientvit"


@BACKBONE_REGISTRY.register("efficientvit")
class EfficientViT(Backbone):
    """Convolutions at fine resolutions, ReLU linear attention at coarse ones.

    Family b has attention in res4 and res5, family l in res5 only.

    Args:
        family: "b" or "l".
        widths: channels of the stem (stride 2) and of res2 .. res5.
        depths: blocks of the stem and of res2 .. res5, counted as the authors do.
        dim: width of an attention head.
        bn_eps: epsilon of the batch norms; the authors' trained l-weights were made with 1e-7.
        out_features: names of the maps to return.
        activation_checkpoint: recompute blocks in the backward pass.

    Raises:
        ValueError: the family is unknown or a size is missing or impossible.

    Source: arXiv:2205.14756.
    """

    def __init__(
        self,
        *,
        family: str = "b",
        widths: Sequence[int] = (8, 16, 32, 64, 128),
        depths: Sequence[int] = (1, 2, 2, 2, 2),
        dim: int = 16,
        bn_eps: float = 1e-5,
        out_features: Sequence[str] = STAGES,
        activation_checkpoint: bool = False,
    ) -> None:
        _check_sizes(family, widths, depths, dim)
        super().__init__(channels=widths[1:], out_features=out_features, activation_checkpoint=activation_checkpoint)
        build = _family_b if family == "b" else _family_l
        stages = [OpSequence(blocks) for blocks in build(widths, depths, dim)[: self.num_stages + 1]]
        self.family = family
        if family == "b":
            self.input_stem = stages.pop(0)  # family l counts its stem as the first stage
        self.stages = nn.ModuleList(stages)
        self._init_weights(bn_eps)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Constructor arguments from `model.backbone.efficientvit`."""
        section = cfg.model.backbone.efficientvit
        if section.pretrain_img_size != 384:
            logger.info("%s.pretrain_img_size has no effect: no weight depends on the image's size", _SECTION)
        return {
            **published_sizes(section, EFFICIENTVIT),
            "out_features": requested_features(section.out_indices, section.out_features, _SECTION),
            "activation_checkpoint": cfg.train.activation_checkpoint or section.use_checkpoint,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {name: (B, C, H/stride, W/stride)}, sizes rounded up."""
        stages = [self.input_stem, *self.stages] if self.family == "b" else self.stages
        features = {}
        for name, stage in zip(("stem", *STAGES), stages, strict=False):  # stages end at the last requested map
            for block in stage.op_list:
                x = self.run_block(block, x)
            features[name] = x
        return {name: features[name] for name in self.feature_shapes()}

    def _init_weights(self, bn_eps: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.eps = bn_eps


Activation = Callable[[], nn.Module]
_HARDSWISH: Activation = partial(nn.Hardswish, inplace=True)
_GELU: Activation = partial(nn.GELU, approximate="tanh")


def _family_b(widths: Sequence[int], depths: Sequence[int], dim: int) -> list[list[nn.Module]]:
    """Blocks of the stem and of res2 .. res5."""
    act, w = _HARDSWISH, widths
    stem = [ConvLayer(3, w[0], stride=2, act=act), *[Branch(DSConv(w[0], act)) for _ in range(depths[0])]]
    stages: list[list[nn.Module]] = [stem]
    for i in (1, 2):
        first = Branch(MBConv(w[i - 1], w[i], act, expand=4, stride=2), is_residual=False)
        stages.append([first, *[Branch(MBConv(w[i], w[i], act, expand=4)) for _ in range(depths[i] - 1)]])
    for i in (3, 4):
        first = Branch(MBConv(w[i - 1], w[i], act, expand=4, stride=2, fewer_norm=True), is_residual=False)
        stages.append([first, *[AttentionBlock(w[i], dim, act, expand=4) for _ in range(depths[i])]])
    return stages


def _family_l(widths: Sequence[int], depths: Sequence[int], dim: int) -> list[list[nn.Module]]:
    """Blocks of the stem and of res2 .. res5."""
    act, w = _GELU, widths
    stem = [ConvLayer(3, w[0], stride=2, act=act), *[Branch(ResBlock(w[0], act)) for _ in range(depths[0])]]
    stages: list[list[nn.Module]] = [stem]
    for i in (1, 2):
        first = Branch(FusedMBConv(w[i - 1], w[i], act, expand=16, stride=2), is_residual=False)
        stages.append([first, *[Branch(FusedMBConv(w[i], w[i], act, expand=4)) for _ in range(depths[i])]])
    first = Branch(MBConv(w[2], w[3], act, expand=16, stride=2, fewer_norm=True), is_residual=False)
    stages.append([first, *[Branch(MBConv(w[3], w[3], act, expand=4, fewer_norm=True)) for _ in range(depths[3])]])
    first = Branch(MBConv(w[3], w[4], act, expand=24, stride=2, fewer_norm=True), is_residual=False)
    stages.append([first, *[AttentionBlock(w[4], dim, act, expand=6) for _ in range(depths[4])]])
    return stages


class OpSequence(nn.Module):
    """The blocks of a stage, under the name that the published weights have for them."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(blocks)


class ConvLayer(nn.Sequential):
    """Convolution that keeps the size up to its stride, then a batch norm and an activation where asked for."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        has_bias: bool = False,
        has_norm: bool = True,
        act: Activation | None = None,
    ) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=has_bias))
        if has_norm:
            self.add_module("norm", nn.BatchNorm2d(outputs))
        if act is not None:
            self.add_module("act", act())


class Branch(nn.Module):
    """A branch, plus what came in unless it changes the shape."""

    def __init__(self, main: nn.Module, *, is_residual: bool = True) -> None:
        super().__init__()
        self.main = main
        self.is_residual = is_residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the branch's shape."""
        out: Tensor = self.main(x)
        return x + out if self.is_residual else out


class DSConv(nn.Sequential):
    """Depthwise 3x3, then 1x1."""

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__()
        self.add_module("depth_conv", ConvLayer(channels, channels, groups=channels, act=act))
        self.add_module("point_conv", ConvLayer(channels, channels, 1))


class ResBlock(nn.Sequential):
    """Two 3x3 convolutions."""

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__()
        self.add_module("conv1", ConvLayer(channels, channels, act=act))
        self.add_module("conv2", ConvLayer(channels, channels))


class FusedMBConv(nn.Sequential):
    """3x3 to `expand` times the channels, then 1x1 back."""

    def __init__(self, inputs: int, outputs: int, act: Activation, *, expand: int, stride: int = 1) -> None:
        super().__init__()
        self.add_module("spatial_conv", ConvLayer(inputs, inputs * expand, stride=stride, act=act))
        self.add_module("point_conv", ConvLayer(inputs * expand, outputs, 1))


class MBConv(nn.Sequential):
    """1x1 to `expand` times the channels, depthwise 3x3, 1x1 back; `fewer_norm` has biases for the first two norms."""

    def __init__(
        self, inputs: int, outputs: int, act: Activation, *, expand: int, stride: int = 1, fewer_norm: bool = False
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        layer = partial(ConvLayer, has_bias=fewer_norm, has_norm=not fewer_norm, act=act)
        self.add_module("inverted_conv", layer(inputs, hidden, 1))
        self.add_module("depth_conv", layer(hidden, hidden, stride=stride, groups=hidden))
        self.add_module("point_conv", ConvLayer(hidden, outputs, 1))


class AttentionBlock(nn.Sequential):
    """Linear attention for context, then an inverted bottleneck for detail."""

    def __init__(self, channels: int, dim: int, act: Activation, *, expand: int) -> None:
        super().__init__()
        self.add_module("context_module", Branch(LiteMLA(channels, dim)))
        self.add_module("local_module", Branch(MBConv(channels, channels, act, expand=expand, fewer_norm=True)))


class LiteMLA(nn.Module):
    """Multi-scale linear attention: as many extra heads as there are, on queries, keys and values averaged over 5x5.

    Args:
        channels: C.
        dim: width of a head; there are C // dim heads per scale.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        heads = channels // dim
        width = 3 * heads * dim
        self.qkv = ConvLayer(channels, width, 1, has_norm=False)
        depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        pointwise = nn.Conv2d(width, width, 1, groups=3 * heads, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(depthwise, pointwise)])
        self.proj = ConvLayer(2 * heads * dim, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        qkv = self.qkv(x)
        scales = torch.cat([qkv, *[scale(qkv) for scale in self.aggreg]], dim=1)
        batch, _, height, width = x.shape
        heads = scales.view(batch, -1, 3 * self.dim, height * width)  # each head has its query, key and value together
        attended = linear_attention(*heads.chunk(3, dim=2)).reshape(batch, -1, height, width)
        out: Tensor = self.proj(attended.to(qkv.dtype))
        return out


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention whose weights are relu(q) . relu(k) over their sum, in time linear in the number of positions.

    Args:
        q: (B, M, d, N) at N positions.
        k: same.
        v: same.

    Returns:
        (B, M, d, N) float32, whatever autocast says: the sums over positions overflow float16. Zero where all weights
        of a position are zero.

    Source: arXiv:2205.14756, section 3.1.
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = q.float().relu(), k.float().relu(), v.float()
        summed = (v @ k.transpose(2, 3)) @ q
        total = k.sum(dim=-1, keepdim=True).transpose(2, 3) @ q  # (B, M, 1, N)
        return summed / (total + 1e-15)


def _check_sizes(family: str, widths: Sequence[int], depths: Sequence[int], dim: int) -> None:
    if family not in ("b", "l"):
        raise ValueError(f"{_SECTION}.family is {family!r}; it is b or l")
    if len(widths) != 5 or len(depths) != 5:
        raise ValueError(
            f"{_SECTION}: widths {list(widths)} and depths {list(depths)} need five values (stem, res2 .. res5)"
        )
    attentive = widths[3:] if family == "b" else widths[4:]
    if dim < 1 or min(attentive) < dim:
        raise ValueError(f"{_SECTION}.dim is {dim}; a head must fit into the stages with attention, {list(attentive)}")
    if family == "b" and min(depths[1:3]) < 1:
        raise ValueError(f"{_SECTION}.depths is {list(depths)}; res2 and res3 of family b have at least one block")
