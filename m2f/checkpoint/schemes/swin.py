"""Swin backbones of Microsoft and of timm."""

from __future__ import annotations

from collections.abc import Collection
from math import isqrt

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

_RULES: Rules = (
    (r"^backbone\.", ""),
    (r"^layers_(?=\d)", "layers."),  # timm's features_only networks
)
_POSITIONS = "backbone.absolute_pos_embed"
_ONLY_IN_V2 = r"\.(attn|attention\.self)\.(logit_scale|cpb_mlp\.|continuous_position_bias_mlp\.|tau$)"


@SCHEME_REGISTRY.register("swin")
class Swin(Scheme):
    """Microsoft's names, which m2f's Swin has too; timm's differ in where a stage has its downsampling.

    A classifier has one norm at its end, m2f one per feature map: the file's `norm` and `head` are kept for the report.
    """

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """A patch embedding and window attention."""
        return has(names, r"^(backbone\.)?patch_embed\.proj\.") and has(names, r"^(backbone\.)?layers[._]0\.blocks\.")

    @staticmethod
    def to_m2f(state: State) -> State:
        """Everything below `backbone.`, without index tables and masks.

        Raises:
            ValueError: the weights are a Swin V2's, or the position table is not that of square images.
        """
        refuse_swin_v2(state)
        named = below_backbone(_downsampling_last(renamed(without_derived(state), _RULES)))
        return with_position_map(named)


def _downsampling_last(state: State) -> State:
    """Downsampling at the end of the stage before: timm has it at the start of a stage, so never in the first."""
    if has(state, r"^layers\.0\.downsample\."):
        return state
    rules = tuple((rf"^layers\.{stage}\.downsample\.", f"layers.{stage - 1}.downsample.") for stage in (1, 2, 3))
    return renamed(state, rules)


def refuse_swin_v2(state: State) -> None:
    """Raise ValueError where Microsoft's, timm's or Hugging Face's names are those of a Swin V2."""
    if has(state, _ONLY_IN_V2):
        raise ValueError(
            "a Swin V2, whose attention is another one than that of m2f's Swin; use model.backbone.type: timm with "
            "its name there, such as swinv2_tiny_window8_256"
        )


def with_position_map(state: State) -> State:
    """Absolute positions as m2f and detection networks have them, (1, C, side, side); classifiers' are (1, N, C).

    Raises:
        ValueError: N is no square.
    """
    table = state.get(_POSITIONS)
    if table is None or table.ndim != 3:
        return state
    side = isqrt(table.shape[1])
    if side**2 != table.shape[1]:
        raise ValueError(f"{_POSITIONS} has {table.shape[1]} positions; a square number was expected")
    return {**state, _POSITIONS: table.mT.unflatten(2, (side, side)).contiguous()}
