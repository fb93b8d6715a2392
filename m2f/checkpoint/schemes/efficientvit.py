"""EfficientViT backbones of mit-han-lab and of timm."""

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

_MIT = r"^(backbone\.)?(input_stem|stages\.\d)\.op_list\."
_TIMM = r"^(backbone\.)?stem[._]in_conv\.conv\."
_FUSED = r"^stages\.0\.blocks\.0\.main\.spatial_conv\."  # the first block of family l's res2

_STEM: Rules = (
    (r"^backbone\.", ""),
    (r"^(stem)_|^(stages)_(?=\d)", r"\1\2."),  # timm's features_only networks
    (r"^stem\.in_conv\.", "stem.op_list.0."),
    *((rf"^stem\.res{block}\.", f"stem.op_list.{block + 1}.") for block in range(4)),
)
_FAMILY_B: Rules = ((r"^stem\.", "input_stem."), (r"^(stages\.\d)\.blocks\.", r"\1.op_list."))
# Family l counts its stem as the first stage.
_FAMILY_L: Rules = (
    (r"^stem\.", "stages.0."),
    *((rf"^stages\.{stage}\.blocks\.", f"stages.{stage + 1}.op_list.") for stage in range(4)),
)


@SCHEME_REGISTRY.register("efficientvit")
class EfficientViT(Scheme):
    """mit-han-lab's names, which m2f's EfficientViT has too; timm's are others for the same network.

    A head's names are kept for the report.

    Note:
        timm sets 1e-5 where the authors and m2f set 1e-15 as the least sum of attention weights.
    """

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """A stage made of an `op_list`, or timm's stem."""
        return has(names, _MIT) or has(names, _TIMM)

    @staticmethod
    def to_m2f(state: State) -> State:
        """Everything below `backbone.`, under mit-han-lab's names."""
        kept = without_derived(state)
        return below_backbone(_from_timm(kept) if has(kept, _TIMM) else kept)


def _from_timm(state: State) -> State:
    named = renamed(state, _STEM)
    return renamed(named, _FAMILY_L if has(named, _FUSED) else _FAMILY_B)
