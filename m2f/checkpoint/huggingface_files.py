"""The two files that stand beside a Hugging Face model: `config.json` and `preprocessor_config.json`.

Written from a spec and a dataset's metadata; `huggingface_spec.py` has the way back.
"""

from __future__ import annotations

from typing import Any

from m2f.config import CfgNode
from m2f.config.variants import CUSTOM, RESNET, SWIN, Variants
from m2f.structures.metadata import Metadata

STAGES = ("res2", "res3", "res4", "res5")
# Blocks of m2f's ResNets, by depth: Hugging Face's word for their kind, and how many there are in each stage.
RESNETS: dict[int, tuple[str, list[int]]] = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
}
# Hugging Face's keys and m2f's, with Hugging Face's defaults, which old files leave out.
MODEL_KEYS: dict[str, tuple[str, Any]] = {
    "feature_size": ("sem_seg_head.convs_dim", 256),
    "mask_feature_size": ("sem_seg_head.mask_dim", 256),
    "encoder_layers": ("sem_seg_head.transformer_enc_layers", 6),
    "encoder_feedforward_dim": ("sem_seg_head.encoder_dim_feedforward", 1024),
    "common_stride": ("sem_seg_head.common_stride", 4),
    "hidden_dim": ("mask_former.hidden_dim", 256),
    "dim_feedforward": ("mask_former.dim_feedforward", 2048),
    "decoder_layers": ("mask_former.dec_layers", 10),  # both count predictions
    "num_attention_heads": ("mask_former.nheads", 8),
    "dropout": ("mask_former.dropout", 0.0),
    "pre_norm": ("mask_former.pre_norm", False),
    "num_queries": ("mask_former.num_object_queries", 100),
    "no_object_weight": ("mask_former.no_object_weight", 0.1),
    "class_weight": ("mask_former.class_weight", 2.0),
    "mask_weight": ("mask_former.mask_weight", 5.0),
    "dice_weight": ("mask_former.dice_weight", 5.0),
    "train_num_points": ("mask_former.train_num_points", 12544),
    "oversample_ratio": ("mask_former.oversample_ratio", 3.0),
    "importance_sample_ratio": ("mask_former.importance_sample_ratio", 0.75),
}
SWIN_KEYS: dict[str, tuple[str, Any]] = {
    "embed_dim": ("embed_dim", 96),
    "depths": ("depths", [2, 2, 6, 2]),
    "num_heads": ("num_heads", [3, 6, 12, 24]),
    "window_size": ("window_size", 7),
    "image_size": ("pretrain_img_size", 224),
    "patch_size": ("patch_size", 4),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "qkv_bias": ("qkv_bias", True),
    "hidden_dropout_prob": ("drop_rate", 0.0),
    "attention_probs_dropout_prob": ("attn_drop_rate", 0.0),
    "drop_path_rate": ("drop_path_rate", 0.1),
    "use_absolute_embeddings": ("ape", False),
}
# What Hugging Face may vary and m2f does not, with the one value that both have.
FIXED: dict[str, Any] = {"activation_function": "relu"}
FIXED_SWIN: dict[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_channels": 3}
FIXED_RESNET: dict[str, Any] = {
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "num_channels": 3,
}


def config_json(cfg: CfgNode, metadata: Metadata) -> dict[str, Any]:
    """The content of `config.json`.

    Note:
        `use_auxiliary_loss` is True whatever `deep_supervision` says: with False, transformers' model does not run.
        Its `dropout` also acts in the transformer decoder and leaves out whole layers, in training.

    Raises:
        ValueError: Hugging Face's model cannot be configured so; the message names the key.
    """
    _refuse(cfg)
    backbone, stages = _backbone_json(cfg)
    first = backbone.get("patch_size", 4)
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": backbone,
        "use_pretrained_backbone": False,
        **{theirs: cfg.leaf(f"model.{ours}") for theirs, (ours, _) in MODEL_KEYS.items()},
        **FIXED,
        "enforce_input_projection": False,
        "feature_strides": [first * 2 ** STAGES.index(stage) for stage in stages],
        "use_auxiliary_loss": True,
        "ignore_value": metadata.ignore_label,
        "id2label": {str(label): name for label, name in enumerate(metadata.names)},
        "label2id": {name: label for label, name in enumerate(metadata.names)},
    }


def preprocessor_json(cfg: CfgNode, metadata: Metadata) -> dict[str, Any]:
    """The content of `preprocessor_config.json`, for `Mask2FormerImageProcessor`.

    Note: Hugging Face stretches images to multiples of `size_divisor` where m2f pads them with the mean colour.
    """
    # Label maps hold category ids; "reducing" them subtracts 1 and makes 0 void.
    reduce_labels = all(category.id == label + 1 for label, category in enumerate(metadata.categories))
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": _image_size(cfg),
        "size_divisor": cfg.model.mask_former.size_divisibility,
        "resample": 2,  # PIL's number for bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(cfg.dataset.pixel_mean),
        "image_std": list(cfg.dataset.pixel_std),
        "ignore_index": metadata.ignore_label,
        "do_reduce_labels": reduce_labels,
        "num_labels": metadata.num_classes,
    }


def _refuse(cfg: CfgNode) -> None:
    """What the names and shapes of a state dict do not tell."""
    model, head = cfg.model, cfg.model.sem_seg_head
    if model.backbone.type not in ("swin", "resnet"):
        _fail("model.backbone.type", model.backbone.type, "it holds swin and resnet")
    section = model.backbone[model.backbone.type]
    stages = _stages(section)
    for key, expected in (
        ("meta_architecture", "MaskFormer"),
        ("sem_seg_head.pixel_decoder", "MSDeformAttnPixelDecoder"),
        ("mask_former.transformer_decoder", "MultiScaleMaskedTransformerDecoder"),
        ("sem_seg_head.norm", "GN"),
        ("sem_seg_head.encoder_num_points", 4),
    ):
        if cfg.leaf(f"model.{key}") != expected:
            _fail(f"model.{key}", cfg.leaf(f"model.{key}"), f"it has {expected}")
    if head.convs_dim % 32:
        _fail("model.sem_seg_head.convs_dim", head.convs_dim, "it needs a multiple of 32")
    features = head.deformable_transformer_encoder_in_features
    if sorted(features) != stages[-3:] or "res5" not in stages:
        _fail("model.sem_seg_head.deformable_transformer_encoder_in_features", features, f"it has {list(STAGES[1:])}")


def _fail(key: str, value: Any, instead: str) -> None:
    raise ValueError(f"{key} is {value!r}, which Hugging Face's Mask2Former does not have: {instead}")


def _stages(section: CfgNode) -> list[str]:
    """The feature maps that leave a backbone, finest first."""
    indices = section.get("out_indices", range(len(STAGES)))
    return [stage for index, stage in enumerate(STAGES) if index in indices and stage in section.out_features]


def _sizes(section: CfgNode, variants: Variants) -> dict[str, Any]:
    """The sizes that a section names, or its own."""
    name = section[variants.key.rpartition(".")[2]]
    if name == CUSTOM:
        return {field: section[field] for field in variants.fields}
    return dict(zip(variants.fields, variants.rows[name], strict=True))


def _backbone_json(cfg: CfgNode) -> tuple[dict[str, Any], list[str]]:
    """`backbone_config`, and the stages that leave the backbone."""
    name = cfg.model.backbone.type
    section = cfg.model.backbone[name]
    stages = _stages(section)
    theirs = _swin_json(section) if name == "swin" else _resnet_json(section)
    out_features = [f"stage{STAGES.index(stage) + 1}" for stage in stages]
    return {"model_type": name, **theirs, "out_features": out_features}, stages


def _swin_json(section: CfgNode) -> dict[str, Any]:
    values = {**section, **_sizes(section, SWIN)}
    if section.qk_scale is not None:
        _fail("model.backbone.swin.qk_scale", section.qk_scale, "it has 1 / sqrt(head width), which null means")
    if not section.patch_norm:
        _fail("model.backbone.swin.patch_norm", section.patch_norm, "it has True")
    return {**{theirs: values[ours] for theirs, (ours, _) in SWIN_KEYS.items()}, **FIXED_SWIN}


def _resnet_json(section: CfgNode) -> dict[str, Any]:
    sizes = _sizes(section, RESNET)
    kind, depths = RESNETS[sizes["depth"]]
    if kind == "bottleneck" and 4 * sizes["width"] != sizes["res2_channels"]:
        _fail("model.backbone.resnet.width", sizes["width"], "it has a quarter of res2_channels")
    if section.norm == "GN":
        _fail("model.backbone.resnet.norm", section.norm, "it has BN, which also holds FrozenBN")
    return {
        "embedding_size": sizes["stem_channels"],
        "hidden_sizes": [sizes["res2_channels"] * 2**stage for stage in range(4)],
        "depths": depths,
        "layer_type": kind,
        **FIXED_RESNET,
    }


def _image_size(cfg: CfgNode) -> dict[str, int]:
    backbone, augmentation = cfg.model.backbone, cfg.dataset.augmentation
    if backbone.type == "swin" and backbone.swin.ape:  # Hugging Face never resizes the position table
        return {"height": backbone.swin.pretrain_img_size, "width": backbone.swin.pretrain_img_size}
    if cfg.dataset.test.target_size:
        width, height = cfg.dataset.test.target_size
        ratio = min(augmentation.test_min_size / min(height, width), augmentation.test_max_size / max(height, width))
        return {"height": round(height * ratio), "width": round(width * ratio)}
    return {"shortest_edge": augmentation.test_min_size, "longest_edge": augmentation.test_max_size}
