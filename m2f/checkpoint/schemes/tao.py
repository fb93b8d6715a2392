"""NVIDIA TAO's Mask2Former: the official names below Lightning's `model.`, and no-object first."""

from __future__ import annotations

import re
from collections.abc import Collection

from m2f.checkpoint.schemes.official import Official, no_object_row
from m2f.checkpoint.schemes.scheme import SCHEME_REGISTRY, Rules, Scheme, State, has, renamed

_TO_OFFICIAL: Rules = (
    (r"^model\.", ""),
    (r"^backbone\.model\.", "backbone."),
)
_FROM_OFFICIAL: Rules = (
    (r"^(?!criterion\.)", "model."),
    (r"^model\.backbone\.", "model.backbone.model."),
)
# Not m2f's own class head, which a Lightning module may hold below `model.` too.
_BY_CLASS = re.compile(r"^sem_seg_head\.predictor\.class_embed\.(weight|bias)$|^criterion\.empty_weight$")
_EFFICIENTVIT = r"^backbone\.(input_stem|stages\.\d+)\.op_list\."


@SCHEME_REGISTRY.register("tao")
class Tao(Scheme):
    """Its class head and class weights have no-object in row 0; EfficientViTs stand below `backbone.model.`."""

    whole_model = True

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Lightning's prefix, or the one of an EfficientViT."""
        return has(names, r"^model\.(backbone|sem_seg_head)\.|^backbone\.model\.")

    @staticmethod
    def to_m2f(state: State) -> State:
        """No-object's row goes from the first place to the last, unless the loss's class weights say it is there."""
        official = renamed(state, _TO_OFFICIAL)
        is_last = no_object_row(official) == -1  # an official model inside Lightning
        return Official.to_m2f(official if is_last else _rolled(official, -1))

    @staticmethod
    def from_m2f(state: State) -> State:
        """No-object's row goes from the last place to the first."""
        official = _rolled(Official.from_m2f(state), 1)
        return renamed(official, _FROM_OFFICIAL if has(official, _EFFICIENTVIT) else _FROM_OFFICIAL[:1])


def _rolled(state: State, steps: int) -> State:
    """The rows of whatever has one row per class and no-object, moved in a circle."""
    by_class = {name for name, tensor in state.items() if _BY_CLASS.search(name) and tensor.ndim}
    return {name: tensor.roll(steps, dims=0) if name in by_class else tensor for name, tensor in state.items()}
