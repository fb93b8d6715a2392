"""EfficientNets of the `efficientnet_pytorch` family, for timm's network of the same name."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch

from m2f.checkpoint.schemes.scheme import SCHEME_REGISTRY, Rules, Scheme, State, rename, under, without_derived

_BLOCK = re.compile(r"^_blocks\.(\d+)\.(.+)$")
_OUTSIDE: Rules = (
    (r"^_bn1\.", "bn2."),
    (r"^_bn0\.", "bn1."),
    (r"^_fc\.", "classifier."),
    (r"^_(?=conv_(stem|head)\.)", ""),
)
_ATTENTION: Rules = ((r"^_se_reduce\.", "se.conv_reduce."), (r"^_se_expand\.", "se.conv_expand."))
# A block's norms are numbered from its first convolution on, which is the depthwise one where nothing is expanded.
_EXPANDING: Rules = (
    *((r"^_bn2\.", "bn3."), (r"^_bn1\.", "bn2."), (r"^_bn0\.", "bn1.")),
    *((r"^_expand_conv\.", "conv_pw."), (r"^_depthwise_conv\.", "conv_dw."), (r"^_project_conv\.", "conv_pwl.")),
    *_ATTENTION,
)
_SEPARABLE: Rules = ((r"^_depthwise_conv\.", "conv_dw."), (r"^_project_conv\.", "conv_pw."), *_ATTENTION, (r"^_", ""))


@SCHEME_REGISTRY.register("efficientnet")
class EfficientNet(Scheme):
    """`_conv_stem`, `_blocks.0._depthwise_conv`: one list of blocks, where timm has one per stage.

    The names fit `model.backbone.type: timm`; head and classifier are kept for the report.

    Note:
        These networks pad as TensorFlow does and have eps 1e-3 in their batch norms: in timm those are the networks
        named `tf_efficientnet_...`. An `efficientnet_...` takes the weights and gives other answers.
    """

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """The first convolutions."""
        return {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= set(names)

    @staticmethod
    def to_m2f(state: State) -> State:
        """Everything below `backbone.network.`, under timm's names."""
        places = _places(state)
        return under(without_derived(state), lambda name: f"backbone.network.{_renamed(name, state, places)}")


def _places(state: State) -> list[str]:
    """`stage.index` of each block: no two neighbouring stages of an EfficientNet, b0 to l2, are equally wide."""
    places: list[str] = []
    stage, index, width = -1, 0, torch.Size()
    while (name := f"_blocks.{len(places)}._project_conv.weight") in state:
        stage, index = (stage, index + 1) if state[name].shape[:1] == width else (stage + 1, 0)
        width = state[name].shape[:1]
        places.append(f"{stage}.{index}")
    return places


def _renamed(name: str, state: State, places: list[str]) -> str:
    block = _BLOCK.match(name)
    if block is None or int(block[1]) >= len(places):
        return rename(name, _OUTSIDE)
    rules = _EXPANDING if f"_blocks.{block[1]}._expand_conv.weight" in state else _SEPARABLE
    return f"blocks.{places[int(block[1])]}.{rename(block[2], rules)}"
