"""The official Mask2Former (Detectron2): its `.pkl` model zoo and its `.pth` files."""

from __future__ import annotations

from collections.abc import Collection
from math import isqrt

import torch
from torch import Tensor

from m2f.checkpoint.schemes.resnet import from_detectron2, to_detectron2
from m2f.checkpoint.schemes.scheme import SCHEME_REGISTRY, Rules, Scheme, State, has, renamed, without_derived
from m2f.layers.relative_position import relative_position_index

_TO_M2F: Rules = (
    (r"\.static_query\.", ".query_feat."),  # so the zoo's files call it
    (r"^sem_seg_head\.predictor\.", "transformer_decoder."),
    (r"^sem_seg_head\.(pixel_decoder\.)?", "pixel_decoder."),  # the oldest files leave `pixel_decoder.` out
)
_FROM_M2F: Rules = (
    (r"^transformer_decoder\.", "sem_seg_head.predictor."),
    (r"^pixel_decoder\.", "sem_seg_head.pixel_decoder."),
)
EMPTY_WEIGHT = "criterion.empty_weight"
_NO_OBJECT_WEIGHT = 0.1
_TABLE, _INDEX = ".relative_position_bias_table", ".relative_position_index"


@SCHEME_REGISTRY.register("official")
class Official(Scheme):
    """Below `backbone.`, `sem_seg_head.pixel_decoder.` and `sem_seg_head.predictor.`; ResNets have Detectron2's names.

    Note:
        A TAO file without Lightning's prefix and with a Swin backbone has the same names; see `look_alike`.
    """

    whole_model = True

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """A segmentation head, and not TAO's wrapping of an EfficientViT."""
        return has(names, r"^sem_seg_head\.") and not has(names, r"^backbone\.model\.")

    @staticmethod
    def look_alike(state: State) -> str | None:
        """TAO, where no-object stands first."""
        return "tao" if no_object_row(state) == 0 else None

    @staticmethod
    def to_m2f(state: State) -> State:
        """Old names are understood by themselves, not by a version that the file claims."""
        return from_detectron2(renamed(without_derived(state), _TO_M2F))

    @staticmethod
    def from_m2f(state: State) -> State:
        """With the buffers that official models save: Swin's index tables and the loss's class weights."""
        official = renamed(to_detectron2(without_derived(state)), _FROM_M2F)
        official.update(_index_tables(official))
        bias = official.get("sem_seg_head.predictor.class_embed.bias")
        if bias is not None:
            official[EMPTY_WEIGHT] = class_weights(state, len(bias))
        return official


def no_object_row(state: State) -> int | None:
    """Where the loss's class weights have no-object's, the one that is not 1: row 0, row -1, or no telling."""
    weights = state[EMPTY_WEIGHT].flatten().tolist() if EMPTY_WEIGHT in state else []
    unlike = [row for row, weight in enumerate(weights) if weight != 1]
    if len(weights) < 2 or len(unlike) != 1:
        return None
    return {0: 0, len(weights) - 1: -1}.get(unlike[0])


def _index_tables(state: State) -> State:
    """Swin's (w*w, w*w) rows of each bias table of ((2w-1)^2, heads)."""
    windows = {name: (isqrt(len(table)) + 1) // 2 for name, table in state.items() if name.endswith(_TABLE)}
    return {name.replace(_TABLE, _INDEX): relative_position_index(window) for name, window in windows.items()}


def class_weights(state: State, rows: int) -> Tensor:
    """(K + 1,) class weights of the loss, no-object last: the state's own, or those of the published runs."""
    published = torch.ones(rows)
    published[-1] = _NO_OBJECT_WEIGHT
    return state.get(EMPTY_WEIGHT, published)
