"""Hugging Face's `Mask2FormerForUniversalSegmentation` with its Swin or ResNet backbone."""

from __future__ import annotations

from collections.abc import Collection

from m2f.checkpoint.schemes.huggingface_backbones import from_huggingface, to_huggingface
from m2f.checkpoint.schemes.official import EMPTY_WEIGHT, class_weights
from m2f.checkpoint.schemes.scheme import SCHEME_REGISTRY, Rules, Scheme, State, has, renamed, without_derived
from m2f.checkpoint.schemes.two_way import Pairs, back, joined, split, there

_ENCODER, _OUR_ENCODER = "pixel_level_module.decoder.encoder.layers.*", "pixel_decoder.transformer.encoder.layers.*"
_LAYER, _OURS = "transformer_module.decoder.layers.*", "transformer_decoder.transformer"
_DECODERS: Pairs = (
    ("pixel_level_module.decoder.level_embed", "pixel_decoder.transformer.level_embed"),
    ("pixel_level_module.decoder.input_projections", "pixel_decoder.input_proj"),
    ("pixel_level_module.decoder.mask_projection", "pixel_decoder.mask_features"),
    ("pixel_level_module.decoder.adapter_*.1", "pixel_decoder.adapter_*.norm"),
    ("pixel_level_module.decoder.adapter_*.0", "pixel_decoder.adapter_*"),
    ("pixel_level_module.decoder.layer_*.1", "pixel_decoder.layer_*.norm"),
    ("pixel_level_module.decoder.layer_*.0", "pixel_decoder.layer_*"),
    (f"{_ENCODER}.self_attn", f"{_OUR_ENCODER}.self_attn"),
    (f"{_ENCODER}.self_attn_layer_norm", f"{_OUR_ENCODER}.norm1"),
    (f"{_ENCODER}.fc1", f"{_OUR_ENCODER}.linear1"),
    (f"{_ENCODER}.fc2", f"{_OUR_ENCODER}.linear2"),
    (f"{_ENCODER}.final_layer_norm", f"{_OUR_ENCODER}.norm2"),
    ("transformer_module.queries_embedder", "transformer_decoder.query_embed"),
    ("transformer_module.queries_features", "transformer_decoder.query_feat"),
    ("transformer_module.level_embed", "transformer_decoder.level_embed"),
    ("transformer_module.input_projections", "transformer_decoder.input_proj"),
    ("transformer_module.decoder.layernorm", "transformer_decoder.decoder_norm"),
    (f"{_LAYER}.cross_attn", f"{_OURS}_cross_attention_layers.*.multihead_attn"),
    (f"{_LAYER}.cross_attn_layer_norm", f"{_OURS}_cross_attention_layers.*.norm"),
    (f"{_LAYER}.self_attn", f"{_OURS}_self_attention_layers.*.self_attn"),
    (f"{_LAYER}.self_attn_layer_norm", f"{_OURS}_self_attention_layers.*.norm"),
    (f"{_LAYER}.fc1", f"{_OURS}_ffn_layers.*.linear1"),
    (f"{_LAYER}.fc2", f"{_OURS}_ffn_layers.*.linear2"),
    (f"{_LAYER}.final_layer_norm", f"{_OURS}_ffn_layers.*.norm"),
    ("transformer_module.decoder.mask_predictor.mask_embedder.*.0", "transformer_decoder.mask_embed.layers.*"),
    ("class_predictor", "transformer_decoder.class_embed"),
)
# Hugging Face splits the projections of self-attention, but not those of cross-attention.
_WHOLE, _PARTS = ".self_attn.in_proj_", (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")
_WITHOUT_WRAPPER: Rules = (
    (r"^model\.(?=(pixel_level_module|transformer_module)\.)", ""),
    (r"^pixel_level_module\.encoder\.", "backbone."),
)
_WITH_WRAPPER: Rules = (
    (r"^backbone\.", "pixel_level_module.encoder."),
    (r"^(?=(pixel_level_module|transformer_module)\.)", "model."),
)
_UNUSED_NORM = r"^backbone\.layernorm\."
_RELATIVES = {
    "OneFormer": r"^model\.(task_encoder|text_mapper)\.|^transformer_module\.decoder\.query_transformer\.",
    "MaskFormer": r"^pixel_level_module\.decoder\.fpn\.|^transformer_module\.decoder\.layers\.\d+\.encoder_attn\.",
}


@SCHEME_REGISTRY.register("huggingface")
class HuggingFace(Scheme):
    """Below `model.pixel_level_module.` and `model.transformer_module.`, and `class_predictor`."""

    whole_model = True

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """One of the two modules, whose names MaskFormer and OneFormer share."""
        return has(names, r"^(model\.)?(pixel_level_module|transformer_module)\.")

    @staticmethod
    def to_m2f(state: State) -> State:
        """Projections joined; a Swin's last norm, which nothing asks, is dropped.

        Raises:
            ValueError: the weights are a MaskFormer's or a OneFormer's, incomplete, or for a model that m2f lacks.
        """
        named = renamed(without_derived(state), _WITHOUT_WRAPPER)
        _refuse_relatives(named)
        named = joined(renamed(from_huggingface(named), there(_DECODERS)), _PARTS, _WHOLE)
        _refuse_needless_projection(named)
        return {name: tensor for name, tensor in named.items() if not has([name], _UNUSED_NORM)}

    @staticmethod
    def from_m2f(state: State) -> State:
        """The names that `save_pretrained` writes, with the loss's class weights.

        Raises:
            ValueError: Hugging Face's model has no place for this one's parts; the message says which.
        """
        bare = without_derived(state)
        _refuse_other_decoders(bare)
        theirs = renamed(split(to_huggingface(bare), _WHOLE, _PARTS), back(_DECODERS))
        theirs = renamed(theirs, _WITH_WRAPPER)
        left = [name for name in theirs if not has([name], r"^(model|class_predictor)\.")]
        if left:
            raise ValueError(f"Hugging Face's Mask2Former cannot hold this model: it has no place for {left[0]}")
        return {**theirs, EMPTY_WEIGHT: class_weights(state, len(theirs["class_predictor.bias"]))}


def _refuse_relatives(state: State) -> None:
    for family, pattern in _RELATIVES.items():
        if has(state, pattern):
            raise ValueError(f"the weights of a {family}, not of a Mask2Former; m2f has no such model")


def _refuse_needless_projection(state: State) -> None:
    weight = state.get("transformer_decoder.input_proj.0.weight")
    if weight is not None and weight.ndim > 1 and weight.shape[0] == weight.shape[1]:
        raise ValueError(
            "model.transformer_module.input_projections.0.weight keeps its width (enforce_input_projection); m2f "
            "projects only where feature_size and hidden_dim differ"
        )


def _refuse_other_decoders(state: State) -> None:
    level_embed = state.get("pixel_decoder.transformer.level_embed")
    problem = ""
    if level_embed is None:
        problem = "another pixel decoder than MSDeformAttnPixelDecoder"
    elif len(level_embed) != 3:
        problem = f"an encoder of {len(level_embed)} levels (deformable_transformer_encoder_in_features), not of 3"
    elif "pixel_decoder.adapter_1.bias" in state or "pixel_decoder.adapter_1.norm.running_mean" in state:
        problem = "another norm than GN in its pixel decoder (model.sem_seg_head.norm)"
    elif "transformer_decoder.class_embed.bias" not in state:
        problem = "another transformer decoder than MultiScaleMaskedTransformerDecoder"
    if problem:
        raise ValueError(f"Hugging Face's Mask2Former cannot hold this model: it has {problem}")
