"""ResNet backbones under torchvision's names (timm's are the same) and Detectron2's."""

from __future__ import annotations

from collections.abc import Collection

from m2f.checkpoint.schemes.scheme import (
    SCHEME_REGISTRY,
    Rules,
    Scheme,
    State,
    below_backbone,
    has,
    renamed,
    without_derived,
)

_TO_TORCHVISION: Rules = (
    (r"^backbone\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.stem\.(?=(conv1|fc)\.)", "backbone."),
    (r"^(backbone\.res\d\.\d+)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"^(backbone\.res\d\.\d+)\.shortcut\.", r"\1.downsample.0."),
    (r"^(backbone\.res\d\.\d+)\.conv(\d)\.norm\.", r"\1.bn\2."),
    *((rf"^backbone\.res{stage + 1}\.(?=\d)", f"backbone.layer{stage}.") for stage in range(1, 5)),
)
_TO_DETECTRON2: Rules = (
    (r"^backbone\.conv1\.", "backbone.stem.conv1."),
    (r"^backbone\.bn1\.", "backbone.stem.conv1.norm."),
    (r"^(backbone\.layer\d\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    (r"^(backbone\.layer\d\.\d+)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(backbone\.layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
    *((rf"^backbone\.layer{stage}\.(?=\d)", f"backbone.res{stage + 1}.") for stage in range(1, 5)),
)
_TORCHVISION = r"^(backbone\.)?layer1\.0\.conv1\."
_DETECTRON2 = r"^(backbone\.)?res2\.0\.conv1\."
_CAFFE2 = r"^res2_0_branch2a_w$"


@SCHEME_REGISTRY.register("torchvision")
class Torchvision(Scheme):
    """`conv1`, `bn1`, `layer1.0.conv1`; the classifier `fc` is kept for the report."""

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """The first block's first convolution."""
        return has(names, _TORCHVISION)

    @staticmethod
    def to_m2f(state: State) -> State:
        """Everything below `backbone.`."""
        return below_backbone(without_derived(state))


@SCHEME_REGISTRY.register("detectron2")
class Detectron2(Scheme):
    """`stem.conv1`, `res2.0.conv1`, as in the `R-50.pkl` that Detectron2 converts from torchvision's weights."""

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """The first block's first convolution, under today's name or Caffe2's."""
        return has(names, _DETECTRON2) or has(names, _CAFFE2)

    @staticmethod
    def to_m2f(state: State) -> State:
        """Torchvision's names.

        Raises:
            ValueError: the file is in Caffe2's names: another network.
        """
        if has(state, _CAFFE2):
            raise ValueError(
                "a ResNet in Caffe2's names (res2_0_branch2a_w ...), such as Detectron2's MSRA/R-50.pkl: it takes BGR "
                "images and has its strides in the 1x1 convolutions, m2f's ResNet takes RGB and has them in the 3x3, "
                "so it would answer differently; use weights that come from torchvision"
            )
        return from_detectron2(below_backbone(without_derived(state)))


def from_detectron2(state: State) -> State:
    """The names below `backbone.` as torchvision writes them, if they are those of Detectron2's ResNet."""
    return renamed(state, _TO_TORCHVISION) if has(state, _DETECTRON2) else state


def to_detectron2(state: State) -> State:
    """The names below `backbone.` as Detectron2 writes them, if they are a ResNet's."""
    return renamed(state, _TO_DETECTRON2) if has(state, _TORCHVISION) else state
