"""Any network of timm that has feature maps at strides 4, 8, 16 and 32, by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f.modeling.backbone.backbone import STAGES, Backbone
from m2f.modeling.build import BACKBONE_REGISTRY

_SECTION = "model.backbone.timm"
_STRIDES = (4, 8, 16, 32)
_PROBE = (64, 96)  # an image that a network of one size, or of one multiple, cannot take


@BACKBONE_REGISTRY.register("timm")
class TimmBackbone(Backbone):
    """A `features_only` network of timm with random weights; timm's parameter names stand below `network.`.

    Args:
        name: as `timm.create_model` takes it.
        drop_path_rate: stochastic depth, where the network has it.
        out_features: names of the maps to return.
        activation_checkpoint: recompute the network's blocks in the backward pass, as timm does; batch norms then
            count each batch twice in their running statistics.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm does not know the name or the network cannot do what is asked.
    """

    def __init__(
        self,
        *,
        name: str,
        drop_path_rate: float = 0.0,
        out_features: Sequence[str] = STAGES,
        activation_checkpoint: bool = False,
    ) -> None:
        levels, channels = _pyramid(name)
        super().__init__(channels=channels, out_features=out_features, activation_checkpoint=activation_checkpoint)
        wanted = [levels[STAGES.index(stage)] for stage in self.feature_shapes()]
        options = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        # Channels last: a training step of EfficientNet-Lite0 takes 0.7 of the time on a CPU.
        self.network = _create(name, out_indices=wanted, **options).to(memory_format=torch.channels_last)
        if activation_checkpoint:
            _recompute(name, self.network)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Constructor arguments from `model.backbone.timm`."""
        section = cfg.model.backbone.timm
        return {
            "name": section.name,
            "drop_path_rate": section.drop_path_rate,
            "out_features": section.out_features,
            "activation_checkpoint": cfg.train.activation_checkpoint or section.use_checkpoint,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {name: (B, C, H/stride, W/stride)}.

        Many networks take no size that their strides do not divide: others are padded with zeros, right and below, and
        sizes are those of the padded image.
        """
        bottom, right = (-x.shape[2] % self.size_divisibility, -x.shape[3] % self.size_divisibility)
        x = F.pad(x, (0, right, 0, bottom)).contiguous(memory_format=torch.channels_last)
        return dict(zip(self.feature_shapes(), _maps(self.network, x), strict=True))


def _maps(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The network's feature maps as (B, C, H, W), where some have their channels last."""
    maps: list[Tensor] = list(network(x))
    if getattr(network, "output_fmt", None) == "NHWC":
        maps = [feature.permute(0, 3, 1, 2) for feature in maps]
    return maps


def _pyramid(name: str) -> tuple[list[int], list[int]]:
    """Which of a network's feature maps have the four strides, by timm's number, and their channels.

    Raises:
        ValueError: it has no such maps, or cannot take an image of any size.
    """
    with torch.device("meta"):
        network = _create(name)
    info: Any = network.feature_info
    strides = list(info.reduction())
    if not set(_STRIDES) <= set(strides):
        raise ValueError(
            f"{_SECTION}.name: {name} has feature maps at strides {strides}; a pixel decoder needs 4, 8, 16 and 32"
        )
    shapes = _shapes_of_maps(name, network)
    places = [strides.index(stride) for stride in _STRIDES]
    for place, stride in zip(places, _STRIDES, strict=True):
        size, expected = shapes[place][1:], tuple(length // stride for length in _PROBE)
        if size != expected:
            raise ValueError(
                f"{_SECTION}.name: {name} gives a map of {size} at stride {stride} for an image of {_PROBE}; "
                f"a pixel decoder needs {expected}"
            )
    return [info.out_indices[place] for place in places], [shapes[place][0] for place in places]


def _shapes_of_maps(name: str, network: nn.Module) -> list[tuple[int, ...]]:
    """(C, H, W) of each map of a small image, found out without computing anything.

    Raises:
        ValueError: the network cannot take it.
    """
    try:
        with torch.no_grad():
            maps = _maps(network.eval(), torch.empty(1, 3, *_PROBE, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        said = f"; timm says: {str(error).splitlines()[0]}" if str(error) else ""
        raise ValueError(
            f"{_SECTION}.name: {name} cannot take an image of {_PROBE}, and a backbone must take any size{said}"
        ) from error
    return [tuple(feature.shape[1:]) for feature in maps]


def _create(name: str, **options: Any) -> nn.Module:
    try:
        import timm  # noqa: PLC0415 - optional
    except ModuleNotFoundError:
        raise ModuleNotFoundError("model.backbone.type: timm needs timm; pip install 'm2f[timm]'") from None
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:5])
        raise ValueError(
            f"{_SECTION}.name is {name!r}, which timm {timm.__version__} does not know"
            + (f"; near it are {near}" if near else "; timm.list_models() lists its names")
        )
    options = {"features_only": True, **options}
    try:  # Swin and its kin can take images of any size, but have to be told
        return timm.create_model(name, strict_img_size=False, **options)
    except TypeError:
        pass
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ValueError(f"{_SECTION}.drop_path_rate: {name} has no stochastic depth; set it to 0") from error


def _recompute(name: str, network: nn.Module) -> None:
    target: Any = network if hasattr(network, "set_grad_checkpointing") else network.get_submodule("model")
    try:
        target.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ValueError(
            f"{_SECTION}.name: timm cannot recompute the activations of {name}; set train.activation_checkpoint and "
            f"{_SECTION}.use_checkpoint to False"
        ) from error
