"""The contract of a backbone: an image in, named feature maps out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from m2f.config.variants import CUSTOM, Variants

STAGES: tuple[str, ...] = ("res2", "res3", "res4", "res5")


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
        first_stride: stride of res2; each later stage doubles it.

    Raises:
        ValueError: `out_features` is empty or names a stage that does not exist.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        out_features: Sequence[str],
        activation_checkpoint: bool = False,
        first_stride: int = 4,
    ) -> None:
        super().__init__()
        if not out_features or any(name not in STAGES for name in out_features):
            raise ValueError(f"out_features is {list(out_features)}; it needs at least one of {', '.join(STAGES)}")
        shapes = {
            name: FeatureShape(c, first_stride * 2**i) for i, (name, c) in enumerate(zip(STAGES, channels, strict=True))
        }
        self._shapes = {name: shape for name, shape in shapes.items() if name in out_features}
        self.activation_checkpoint = activation_checkpoint
        self.size_divisibility = first_stride * 8  # whole pixels in every map; other sizes work too

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) normalised images, H and W of at least 32, to {name: (B, C, ~H/stride, ~W/stride)}."""

    def feature_shapes(self) -> dict[str, FeatureShape]:
        """Channels and stride of each map that `forward` returns, in the same order."""
        return dict(self._shapes)

    @property
    def num_stages(self) -> int:
        """Stages that must be built: those up to the last requested map."""
        return max(STAGES.index(name) for name in self._shapes) + 1

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Call a block, recomputing its activations in the backward pass where that was asked for."""
        if not (self.activation_checkpoint and self.training):
            return block(*inputs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _batch_statistics_kept(block)

        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _batch_statistics_kept(block: nn.Module) -> Iterator[None]:
    """Recomputing a block must not count its batch a second time in the running statistics."""
    kept = [(m, m.momentum, m.num_batches_tracked) for m in block.modules() if isinstance(m, _BatchNorm)]
    for norm, _, _ in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter


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
    unknown = [name for name in out_features if name not in STAGES]
    if unknown:
        raise ValueError(f"{section}.out_features has {unknown}; a stage is one of {', '.join(STAGES)}")
    chosen = [name for index, name in enumerate(STAGES) if index in out_indices and name in out_features]
    if not chosen:
        raise ValueError(
            f"{section}.out_indices {list(out_indices)} and out_features {list(out_features)} have no stage in common"
        )
    return chosen


def published_sizes(section: Any, variants: Variants) -> dict[str, Any]:
    """The sizes of the network that a config section names, or the section's own where that name is `custom`.

    Raises:
        ValueError: the name is unknown.
    """
    name_key = variants.key.rpartition(".")[2]
    name = section[name_key]
    if name == CUSTOM:
        return {field: section[field] for field in variants.fields}
    if name not in variants.rows:
        raise ValueError(f"{variants.key} is {name!r}; it is one of {', '.join([*variants.rows, CUSTOM])}")
    return dict(zip(variants.fields, variants.rows[name], strict=True))
