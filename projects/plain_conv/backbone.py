"""Four stages of convolution, group norm and ReLU at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from m2f.modeling.backbone.backbone import STAGES, Backbone
from m2f.modeling.build import BACKBONE_REGISTRY


@BACKBONE_REGISTRY.register("plain_conv")
class PlainConv(Backbone):
    """A pyramid of 3x3 convolutions, without any connection around them.

    Args:
        widths: channels of res2, res3, res4 and res5.
        depth: convolutions of a stage after the one that halves the resolution.
        out_features: names of the maps that leave the network.
        activation_checkpoint: recompute stages in the backward pass.

    Raises:
        ValueError: there are not four widths, or one is no multiple of 8, the groups of the norms.
    """

    def __init__(
        self, *, widths: Sequence[int], depth: int, out_features: Sequence[str], activation_checkpoint: bool = False
    ) -> None:
        if len(widths) != len(STAGES) or any(width < 8 or width % 8 for width in widths):
            raise ValueError(f"model.backbone.plain_conv.widths is {list(widths)}; it needs four multiples of 8")
        super().__init__(channels=widths, out_features=out_features, activation_checkpoint=activation_checkpoint)
        self.stem = _block(3, widths[0], stride=2)
        self.stages = nn.ModuleList()
        for before, width in zip((widths[0], *widths[:-1]), widths[: self.num_stages], strict=False):
            blocks = [_block(before, width, stride=2), *(_block(width, width) for _ in range(depth))]
            self.stages.append(nn.Sequential(*blocks))

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Constructor arguments from a cfg."""
        section = cfg.model.backbone.plain_conv
        return {
            "widths": section.widths,
            "depth": section.depth,
            "out_features": section.out_features,
            "activation_checkpoint": cfg.train.activation_checkpoint,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {name: (B, C, H/stride, W/stride)}, sizes rounded up."""
        x = self.stem(x)
        features = {}
        for name, stage in zip(STAGES, self.stages, strict=False):  # stages end at the last requested map
            x = features[name] = self.run_block(stage, x)
        return {name: features[name] for name in self.feature_shapes()}


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.ReLU(inplace=True))
