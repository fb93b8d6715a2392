"""Hugging Face's Swin and ResNet, alone and inside its Mask2Former.

Its files keep the names of transformers 4, whatever the version that wrote them; the modules of transformers 5 have
other names, which a bare `model.state_dict()` has.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

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
from m2f.checkpoint.schemes.swin import refuse_swin_v2, with_position_map
from m2f.checkpoint.schemes.two_way import Pairs, back, joined, split, there

_BLOCK, _OUR_BLOCK = "backbone.encoder.layers.*.blocks.*", "backbone.layers.*.blocks.*"
_POSITIONS = "backbone.absolute_pos_embed"
_SWIN: Pairs = (
    ("backbone.embeddings.patch_embeddings.projection", "backbone.patch_embed.proj"),
    ("backbone.embeddings.norm", "backbone.patch_embed.norm"),
    ("backbone.embeddings.position_embeddings", _POSITIONS),
    (f"{_BLOCK}.layernorm_before", f"{_OUR_BLOCK}.norm1"),
    (f"{_BLOCK}.layernorm_after", f"{_OUR_BLOCK}.norm2"),
    (f"{_BLOCK}.attention.output.dense", f"{_OUR_BLOCK}.attn.proj"),
    (f"{_BLOCK}.attention.self", f"{_OUR_BLOCK}.attn"),
    (f"{_BLOCK}.intermediate.dense", f"{_OUR_BLOCK}.mlp.fc1"),
    (f"{_BLOCK}.output.dense", f"{_OUR_BLOCK}.mlp.fc2"),
    ("backbone.encoder.layers.*.downsample", "backbone.layers.*.downsample"),
    *((f"backbone.hidden_states_norms.stage{stage + 1}", f"backbone.norm{stage}") for stage in range(4)),
)
# Other spellings of the left column: wrappers, transformers 5's modules, MaskFormer's norms.
_OTHER_SPELLINGS: Rules = (
    (r"^backbone\.(swin|model|resnet)\.", "backbone."),
    (r"^(backbone\.encoder\.layers\.\d+\.blocks\.\d+\.attention)\.q_proj\.", r"\1.self.query."),
    (r"^(backbone\.encoder\.layers\.\d+\.blocks\.\d+\.attention)\.k_proj\.", r"\1.self.key."),
    (r"^(backbone\.encoder\.layers\.\d+\.blocks\.\d+\.attention)\.v_proj\.", r"\1.self.value."),
    (r"^(backbone\.encoder\.layers\.\d+\.blocks\.\d+\.attention)\.o_proj\.", r"\1.output.dense."),
    (r"^(backbone\.encoder\.layers\.\d+\.blocks\.\d+\.attention)\.relative_position_bias\.", r"\1.self."),
    (r"^(backbone\.encoder\.layers\.\d+\.blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"^(backbone\.encoder\.layers\.\d+\.blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    *((rf"^backbone\.hidden_states_norms\.{stage}\.", f"backbone.hidden_states_norms.stage{stage + 1}.")
      for stage in range(4)),
)  # fmt: skip
_QKV, _PROJECTIONS = ".attn.qkv.", (".attn.query.", ".attn.key.", ".attn.value.")

_RESNET: Pairs = (
    ("backbone.embedder.embedder.convolution", "backbone.conv1"),
    ("backbone.embedder.embedder.normalization", "backbone.bn1"),
    *(
        (f"backbone.encoder.stages.{stage}.layers.*.{theirs}", f"backbone.layer{stage + 1}.*.{ours}")
        for stage in range(4)
        for theirs, ours in (
            ("shortcut.convolution", "downsample.0"),
            ("shortcut.normalization", "downsample.1"),
            *((f"layer.{i}.convolution", f"conv{i + 1}") for i in range(3)),
            *((f"layer.{i}.normalization", f"bn{i + 1}") for i in range(3)),
        )
    ),
)
_SWIN_BLOCK = r"^(backbone\.)?((swin|model)\.)?encoder\.layers\.\d+\.blocks\.\d+\.(attention|layernorm_before)\."
_RESNET_STEM = r"^(backbone\.)?(resnet\.)?embedder\.embedder\.convolution\."


@SCHEME_REGISTRY.register("huggingface_swin")
class HuggingFaceSwin(Scheme):
    """`SwinModel`, `SwinForImageClassification` or `SwinBackbone`.

    A classifier has one norm at its end, m2f one per feature map: the file's `layernorm` and `classifier` are kept for
    the report; a `SwinBackbone` has `hidden_states_norms`, which are m2f's.
    """

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Blocks of window attention."""
        return has(names, _SWIN_BLOCK)

    @staticmethod
    def to_m2f(state: State) -> State:
        """Everything below `backbone.`.

        Raises:
            ValueError: the weights are a Swin V2's, or incomplete.
        """
        return from_huggingface(below_backbone(without_derived(state)))


@SCHEME_REGISTRY.register("huggingface_resnet")
class HuggingFaceResNet(Scheme):
    """`ResNetModel`, `ResNetForImageClassification` or `ResNetBackbone`; the classifier is kept for the report."""

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """The stem."""
        return has(names, _RESNET_STEM)

    @staticmethod
    def to_m2f(state: State) -> State:
        """Everything below `backbone.`."""
        return from_huggingface(below_backbone(without_derived(state)))


def from_huggingface(state: State) -> State:
    """The names below `backbone.` as m2f has them.

    Raises:
        ValueError: a Swin V2, a projection without its siblings, or a position table that is not of a square.
    """
    refuse_swin_v2(state)
    named = renamed(renamed(state, _OTHER_SPELLINGS), there(_SWIN + _RESNET))
    return with_position_map(joined(named, _PROJECTIONS, _QKV))


def to_huggingface(state: State) -> State:
    """The names below `backbone.` as a file of Hugging Face has them.

    Raises:
        ValueError: the backbone is none of Hugging Face's.
    """
    _refuse_other_backbones(state)
    named = renamed(split(state, _QKV, _PROJECTIONS), back(_SWIN + _RESNET))
    _refuse_unknown_parts(named)
    if "backbone.embeddings.position_embeddings" in named:
        named["backbone.embeddings.position_embeddings"] = _as_rows(state[_POSITIONS])
    return {**named, **_last_norm(state), **_batch_counters(named)}


def _as_rows(table: Tensor) -> Tensor:
    """(1, C, side, side) to (1, side * side, C)."""
    return table.flatten(2).mT.contiguous()


def _last_norm(state: State) -> State:
    """The norm of a classifier that transformers 5's Swin has and its Mask2Former never asks."""
    if not has(state, r"^backbone\.patch_embed\."):
        return {}
    widths = [tensor.shape[0] for name, tensor in state.items() if name.endswith(".norm2.weight")]
    norm = "backbone.swin.layernorm"
    return {f"{norm}.weight": torch.ones(max(widths)), f"{norm}.bias": torch.zeros(max(widths))}


def _batch_counters(state: State) -> State:
    """What Hugging Face's batch norms count; frozen ones have no such tensor."""
    stems = [name.removesuffix("running_mean") for name in state if name.endswith(".running_mean")]
    return {
        f"{stem}num_batches_tracked": torch.tensor(0) for stem in stems if f"{stem}num_batches_tracked" not in state
    }


def _refuse_other_backbones(state: State) -> None:
    problem = ""
    if has(state, r"^backbone\.patch_embed\.proj\."):
        if "backbone.patch_embed.norm.weight" not in state:
            problem = "a Swin without a norm after its patches (model.backbone.swin.patch_norm: False)"
    elif has(state, r"^backbone\.layer1\.0\.conv1\."):
        if "backbone.bn1.running_mean" not in state:
            problem = "a ResNet with group norm (model.backbone.resnet.norm: GN)"
        elif _has_other_width(state):
            problem = "a ResNet whose 3x3 convolutions are not a quarter as wide as its blocks"
    else:
        first = next((name for name in state if name.startswith("backbone.")), "none")
        problem = f"another backbone than Swin or ResNet (first tensor: {first})"
    if problem:
        raise ValueError(f"Hugging Face's Mask2Former cannot hold this model: it has {problem}")


def _has_other_width(state: State) -> bool:
    inner, outer = state["backbone.layer1.0.conv1.weight"], state.get("backbone.layer1.0.conv3.weight")
    return outer is not None and 4 * inner.shape[0] != outer.shape[0]


def _refuse_unknown_parts(state: State) -> None:
    parts = r"^backbone\.(embeddings|encoder|embedder|hidden_states_norms)\."
    left = [name for name in state if name.startswith("backbone.") and not has([name], parts)]
    if left:
        raise ValueError(f"Hugging Face's Mask2Former cannot hold this model: it has no place for {left[0]}")
