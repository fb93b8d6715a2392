"""OpenMMLab: Mask2Formers of mmdetection 2.x and 3.x and of mmsegmentation, and Swin backbones in their names.

What stands where, read in the sources of mmdetection 2.28.2 and 3.3.0 and mmsegmentation 1.2.2 and confirmed by their
outputs: levels count from the coarsest (`input_convs.0` and the rows 0 of `level_encoding` and `level_embed` are those
of res5), FPN steps from the finest (`lateral_convs.0` is that of res2). A decoder layer is cross-attention, then
self-attention, then feed-forward; `norms.0`, `norms.1` and `norms.2` follow them in this order, and version 2 numbers
its `attentions` in it. No-object is the last class, as in m2f.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor

from m2f.checkpoint.schemes.scheme import SCHEME_REGISTRY, Rules, Scheme, State, has, renamed, without_derived
from m2f.checkpoint.schemes.swin import Swin

_HEAD = r"^(?:panoptic|decode)_head\."
_LAYER = r"^(pixel_decoder\.transformer\.encoder\.layers\.\d+)\."
_PIXEL_DECODER: Rules = (
    (rf"{_HEAD}pixel_decoder\.", "pixel_decoder."),
    (r"^pixel_decoder\.encoder\.", "pixel_decoder.transformer.encoder."),
    (r"^pixel_decoder\.level_encoding\.weight$", "pixel_decoder.transformer.level_embed"),
    (r"^pixel_decoder\.input_convs\.(\d+)\.conv\.", r"pixel_decoder.input_proj.\1.0."),
    (r"^pixel_decoder\.input_convs\.(\d+)\.gn\.", r"pixel_decoder.input_proj.\1.1."),
    *((rf"^pixel_decoder\.lateral_convs\.{step - 1}\.", f"pixel_decoder.adapter_{step}.") for step in (1, 2)),
    *((rf"^pixel_decoder\.output_convs\.{step - 1}\.", f"pixel_decoder.layer_{step}.") for step in (1, 2)),
    (r"^(pixel_decoder\.(?:adapter|layer)_\d)\.conv\.", r"\1."),
    (r"^(pixel_decoder\.(?:adapter|layer)_\d)\.(?:gn|bn)\.", r"\1.norm."),
    (r"^pixel_decoder\.mask_feature\.", "pixel_decoder.mask_features."),
    (rf"{_LAYER}attentions\.0\.", r"\1.self_attn."),
    (rf"{_LAYER}(?:ffns\.0|ffn)\.layers\.0\.0\.", r"\1.linear1."),
    (rf"{_LAYER}(?:ffns\.0|ffn)\.layers\.1\.", r"\1.linear2."),
    (rf"{_LAYER}norms\.0\.", r"\1.norm1."),
    (rf"{_LAYER}norms\.1\.", r"\1.norm2."),
)

_LAYERS = r"^transformer_decoder\.layers\.(\d+)\."
_CROSS = r"transformer_decoder.transformer_cross_attention_layers.\1."
_SELF = r"transformer_decoder.transformer_self_attention_layers.\1."
_FEED_FORWARD = r"transformer_decoder.transformer_ffn_layers.\1."
_TRANSFORMER_DECODER: Rules = (
    (rf"{_HEAD}(?:transformer_decoder\.)?", "transformer_decoder."),
    (rf"{_LAYERS}(?:attentions\.0|cross_attn)\.attn\.", f"{_CROSS}multihead_attn."),
    (rf"{_LAYERS}(?:attentions\.1|self_attn)\.attn\.", f"{_SELF}self_attn."),
    (rf"{_LAYERS}(?:ffns\.0|ffn)\.layers\.0\.0\.", f"{_FEED_FORWARD}linear1."),
    (rf"{_LAYERS}(?:ffns\.0|ffn)\.layers\.1\.", f"{_FEED_FORWARD}linear2."),
    (rf"{_LAYERS}norms\.0\.", f"{_CROSS}norm."),
    (rf"{_LAYERS}norms\.1\.", f"{_SELF}norm."),
    (rf"{_LAYERS}norms\.2\.", f"{_FEED_FORWARD}norm."),
    (r"^transformer_decoder\.post_norm\.", "transformer_decoder.decoder_norm."),
    (r"^transformer_decoder\.decoder_input_projs\.", "transformer_decoder.input_proj."),
    (r"^transformer_decoder\.cls_embed\.", "transformer_decoder.class_embed."),
    *(  # the ReLUs between the linear layers are numbered too
        (rf"^transformer_decoder\.mask_embed\.{2 * i}\.", f"transformer_decoder.mask_embed.layers.{i}.")
        for i in range(3)
    ),
)

_SWIN: Rules = (  # to Microsoft's names
    (r"^((?:backbone\.)?)patch_embed\.projection\.", r"\1patch_embed.proj."),
    (r"^((?:backbone\.)?)stages\.(?=\d)", r"\1layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"(\.blocks\.\d+)\.ffn\.layers\.0\.0\.", r"\1.mlp.fc1."),
    (r"(\.blocks\.\d+)\.ffn\.layers\.1\.", r"\1.mlp.fc2."),
)
_WINDOW_ATTENTION = r"\.attn\.w_msa\."
_MERGED = re.compile(r"\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)$")


@SCHEME_REGISTRY.register("mmdetection")
class MMDetection(Scheme):
    """`panoptic_head` (mmdetection) or `decode_head` (mmsegmentation), and `backbone`.

    A ResNet has torchvision's names there, a Swin its own, with another order of channels where pixels are merged.
    """

    whole_model = True

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """One of the two heads with its decoders, or Swin's window attention."""
        return has(names, rf"{_HEAD}(pixel|transformer)_decoder\.") or has(names, _WINDOW_ATTENTION)

    @staticmethod
    def to_m2f(state: State) -> State:
        """Both generations' names; none of them changes a value but those of a Swin's pixel merging.

        Raises:
            ValueError: two names mean the same tensor, or pixel merging has an impossible number of channels.
        """
        ours = renamed(without_derived(state), _PIXEL_DECODER + _TRANSFORMER_DECODER)
        if not has(ours, _WINDOW_ATTENTION):
            return ours
        prefix = "backbone." if has(ours, r"^backbone\.") else ""
        swin = {name: tensor for name, tensor in ours.items() if name.startswith(prefix)}
        others = {name: tensor for name, tensor in ours.items() if name not in swin}
        return {**Swin.to_m2f(_microsoft(swin)), **others}


def _microsoft(state: State) -> State:
    """A Swin under Microsoft's names, with the channels of its merged pixels in Microsoft's order."""
    merged = {name: tensor for name, tensor in state.items() if _MERGED.search(name)}
    for name, tensor in merged.items():
        if tensor.ndim == 0 or tensor.shape[-1] % 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; 2 x 2 merged pixels have a multiple of 4 channels"
            )
    ordered = {name: microsoft_merging_order(tensor) for name, tensor in merged.items()}
    return renamed({**state, **ordered}, _SWIN)


def microsoft_merging_order(merged: Tensor) -> Tensor:
    """Reorder the channels of 2 x 2 merged pixels from mm's order to Microsoft's.

    mm merges by `torch.nn.Unfold`: channels outside, then row and column within the square. Microsoft concatenates four
    slices of the map, at (row, column) = (0, 0), (1, 0), (0, 1), (1, 1): column, then row, then channels.

    Args:
        merged: (..., 4C).

    Returns:
        (..., 4C).
    """
    return merged.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
