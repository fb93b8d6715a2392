"""The contract of a backbone: an image in, named feature maps out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

STAGES: tuple[str, ...] = ("res2", "res3", "res4", "res5")
STRIDES: dict[str, int] = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class FeatureShape(NamedTuple):
    """What a feature map looks like before there is an image."""

    channels: int
    stride: int  # image pixels per feature pixel


class Backbone(nn.Module):
    """An image to feature maps `res2` .. `res5`, finest first; only the requested ones are returned.

    Args:
        channels: channels of res2, res3, res4 and res5.
        out_features: names of the maps that leave the network, in any order.
        activation_checkpoint: recompute blocks in the backward pass instead of keeping their activations.

    Raises:
        ValueError: `out_features` is empty or names a stage that does not exist.
    """

    size_divisibility: int = 32

    def __init__(self, *, channels: Sequence[int], out_features: Sequence[str], activation_checkpoint: bool) -> None:
        super().__init__()
        unknown = [name for name in out_features if name not in STAGES]
        if unknown or not out_features:
            raise ValueError(f"out_features is {list(out_features)}; it needs at least one of {', '.join(STAGES)}")
        self.channels = tuple(channels)
        self.out_features = tuple(name for name in STAGES if name in out_features)
        self.activation_checkpoint = activation_checkpoint

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) normalised images, H and W of at least 32, to {name: (B, C, ~H/stride, ~W/stride)}."""

    def feature_shapes(self) -> dict[str, FeatureShape]:
        """Channels and stride of each map that `forward` returns, in the same order."""
        shapes = {name: FeatureShape(c, STRIDES[name]) for name, c in zip(STAGES, self.channels, strict=True)}
        return {name: shapes[name] for name in self.out_features}

    def run_block(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Call a block, recomputing its activations in the backward pass where that was asked for."""
        if self.activation_checkpoint and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return block(*inputs)


def requested_features(out_indices: Sequence[int], out_features: Sequence[str], section: str) -> list[str]:
    """The stages that both keys ask for, finest first.

    Args:
        out_indices: stage numbers, 0 = res2.
        out_features: stage names.
        section: dotted config section of the two keys, for the error.

    Raises:
        ValueError: a stage does not exist, or the two keys have none in common.
    """
    wrong = [index for index in out_indices if not 0 <= index < len(STAGES)]
    if wrong:
        raise ValueError(f"{section}.out_indices has {wrong}; a stage is one of 0, 1, 2, 3 (res2 .. res5)")
    wrong_names = [name for name in out_features if name not in STAGES]
    if wrong_names:
        raise ValueError(f"{section}.out_features has {wrong_names}; a stage is one of {', '.join(STAGES)}")
    chosen = [name for index, name in enumerate(STAGES) if index in out_indices and name in out_features]
    if not chosen:
        raise ValueError(
            f"{section}.out_indices {list(out_indices)} and out_features {list(out_features)} have no stage in common"
        )
    return chosen
