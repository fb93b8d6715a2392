"""Parameter names of the official code, TAO and ImageNet backbones to m2f's, and back.

Pure functions on state dicts, driven by the names alone. m2f keeps the official names below its three parts
`backbone.`, `pixel_decoder.` and `transformer_decoder.`; ResNets have torchvision's names, EfficientViTs mit-han-lab's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import isqrt

import torch
from torch import Tensor

from m2f.layers.relative_position import relative_position_index

State = dict[str, Tensor]

# Buffers that the model derives by itself: Swin's index tables and masks, the criterion's class weights.
_DERIVED = re.compile(r"(relative_position_index|attn_mask)$|^criterion\.")

_PARTS = (
    ("sem_seg_head.pixel_decoder.", "pixel_decoder."),
    ("sem_seg_head.predictor.", "transformer_decoder."),
)

# Detectron2's ResNet names and torchvision's, below `backbone.`; each pair of patterns is used in both directions.
_RESNET_TO_TORCHVISION: tuple[tuple[str, str], ...] = (
    (r"^stem\.conv1\.norm\.", r"bn1."),
    (r"^stem\.conv1\.", r"conv1."),
    (r"^(layer\d\.\d+)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.0."),
    (r"^(layer\d\.\d+)\.conv(\d)\.norm\.", r"\1.bn\2."),
)
_RESNET_TO_DETECTRON2: tuple[tuple[str, str], ...] = (
    (r"^bn1\.", r"stem.conv1.norm."),
    (r"^conv1\.", r"stem.conv1."),
    (r"^(res\d\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    (r"^(res\d\.\d+)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(res\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
)


def detect(state: Iterable[str]) -> str:
    """Which naming scheme the names of a state dict follow.

    Args:
        state: a state dict, or its names.

    Returns:
        m2f, official, tao, or one of the backbone-only schemes torchvision, detectron2, swin, efficientvit.

    Note:
        A TAO model saved without Lightning's `model.` prefix and with a Swin backbone has exactly the official names;
        it is taken for an official one, whose no-object row is the last.

    Raises:
        ValueError: none of them.
    """
    names = [name.removeprefix("module.") for name in state]
    for scheme, pattern in _SCHEMES:
        if any(pattern.search(name) for name in names):
            return scheme
    raise ValueError(
        f"unknown weight names ({', '.join(names[:3]) or 'none at all'} ...); m2f reads {', '.join(_CONVERTERS)}"
    )


# The order matters: a scheme's pattern may occur in the schemes after it, not in those before.
_SCHEMES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("tao", re.compile(r"^model\.(backbone|sem_seg_head)\.|^backbone\.model\.")),
    ("official", re.compile(r"^sem_seg_head\.")),
    ("m2f", re.compile(r"^(pixel_decoder|transformer_decoder)\.")),
    ("detectron2", re.compile(r"^(backbone\.)?(stem\.conv1|res2\.0\.conv1)\.")),
    ("torchvision", re.compile(r"^(backbone\.)?layer1\.0\.conv1\.")),
    ("swin", re.compile(r"^(backbone\.)?patch_embed\.proj\.")),
    ("efficientvit", re.compile(r"^(backbone\.)?(input_stem|stages\.\d)\.op_list\.")),
    ("m2f", re.compile(r"^backbone\.")),  # a project's backbone
)


def to_m2f(state: Mapping[str, Tensor]) -> tuple[State, str]:
    """Convert a state dict of any scheme that `detect` knows; returns it with the scheme's name."""
    scheme = detect(state)
    return _CONVERTERS[scheme](state), scheme


def official_to_m2f(state: Mapping[str, Tensor]) -> State:
    """Official Mask2Former (Detectron2) names to m2f's; derived buffers are dropped.

    Old files are understood by their names: `static_query` is `query_feat`, and a head without a `pixel_decoder.` or
    `predictor.` segment is a pixel decoder.
    """
    return {_from_official(name): tensor for name, tensor in _kept(state)}


def m2f_to_official(state: Mapping[str, Tensor], no_object_weight: float = 0.1) -> State:
    """m2f's names to the official ones, with the derived buffers that official models save.

    Args:
        state: m2f's.
        no_object_weight: last entry of `criterion.empty_weight`.
    """
    official: State = {}
    for name, tensor in state.items():
        new = _to_official(name)
        official[new] = tensor
        if new.endswith("relative_position_bias_table"):
            window_size = (isqrt(tensor.shape[0]) + 1) // 2
            index = relative_position_index(window_size)
            official[new.replace("relative_position_bias_table", "relative_position_index")] = index
    head = official.get("sem_seg_head.predictor.class_embed.bias")
    if head is not None:
        weights = torch.ones(len(head))
        weights[-1] = no_object_weight
        official["criterion.empty_weight"] = weights
    return official


def tao_to_m2f(state: Mapping[str, Tensor]) -> State:
    """TAO's names to m2f's, and its class head's rows from no-object first to no-object last."""
    official = {
        re.sub(r"^model\.", "", name).replace("backbone.model.", "backbone.", 1): tensor
        for name, tensor in _kept(state, prefix="model.")
    }
    return {
        name: tensor.roll(-1, dims=0) if re.search(r"\.class_embed\.(weight|bias)$", name) else tensor
        for name, tensor in official_to_m2f(official).items()
    }


def backbone_to_m2f(state: Mapping[str, Tensor]) -> State:
    """A backbone's own weights (torchvision, Detectron2, Microsoft Swin, mit-han-lab), below `backbone.`.

    Names that no backbone has, such as a classifier's, are kept for the report of what was not used.
    """
    has_prefix = any(name.startswith("backbone.") for name, _ in _kept(state))
    prefix = "" if has_prefix else "backbone."
    return {_from_official(prefix + name): tensor for name, tensor in _kept(state)}


def _kept(state: Mapping[str, Tensor], prefix: str = "") -> list[tuple[str, Tensor]]:
    """Names without DDP's `module.`, derived buffers left out."""
    named = [(name.removeprefix("module."), tensor) for name, tensor in state.items()]
    return [(name, tensor) for name, tensor in named if not _DERIVED.search(name.removeprefix(prefix))]


def _from_official(name: str) -> str:
    if name.startswith("backbone."):
        return "backbone." + _resnet_to_torchvision(name.removeprefix("backbone."))
    name = name.replace("static_query.", "query_feat.")
    if re.match(r"sem_seg_head\.(?!pixel_decoder\.|predictor\.)", name):
        name = name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.", 1)
    return _first_match(name, _PARTS)


def _to_official(name: str) -> str:
    if name.startswith("backbone."):
        return "backbone." + _resnet_to_detectron2(name.removeprefix("backbone."))
    return _first_match(name, tuple((ours, official) for official, ours in _PARTS))


def _first_match(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    return next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), name)


def _resnet_to_torchvision(name: str) -> str:
    name = re.sub(r"^res([2-5])\.(?=\d)", lambda match: f"layer{int(match[1]) - 1}.", name)
    return _substitute(name, _RESNET_TO_TORCHVISION)


def _resnet_to_detectron2(name: str) -> str:
    name = re.sub(r"^layer([1-4])\.(?=\d)", lambda match: f"res{int(match[1]) + 1}.", name)
    return _substitute(name, _RESNET_TO_DETECTRON2)


def _substitute(name: str, table: Iterable[tuple[str, str]]) -> str:
    """The first pattern of the table that occurs replaces its match."""
    for pattern, replacement in table:
        changed, count = re.subn(pattern, replacement, name, count=1)
        if count:
            return changed
    return name


def _as_is(state: Mapping[str, Tensor]) -> State:
    return dict(_kept(state))


_CONVERTERS: dict[str, Callable[[Mapping[str, Tensor]], State]] = {
    "m2f": _as_is,
    "official": official_to_m2f,
    "tao": tao_to_m2f,
    "torchvision": backbone_to_m2f,
    "detectron2": backbone_to_m2f,
    "swin": backbone_to_m2f,
    "efficientvit": backbone_to_m2f,
}
