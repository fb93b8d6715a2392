"""From a Hugging Face configuration to the spec of the same model."""

from __future__ import annotations

from typing import Any

import pytest

from m2f.checkpoint.huggingface_files import config_json, preprocessor_json
from m2f.checkpoint.huggingface_spec import spec_from_config
from m2f.config import CfgNode, get_cfg
from m2f.structures.metadata import Category, Metadata

METADATA = Metadata("two", (Category(1, "cat"), Category(2, "dog")))


def merged(overrides: dict[str, Any]) -> CfgNode:
    cfg = get_cfg()
    cfg.merge(overrides, "config.json")
    return cfg


def theirs(backbone: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """As little as a configuration may have."""
    return {"model_type": "mask2former", "backbone_config": {"model_type": "swin", **(backbone or {})}, **changes}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"backbone": {"type": "swin", "swin": {"type": "large", "window_size": 12, "drop_path_rate": 0.1}}},
        {"backbone": {"type": "swin", "swin": {"type": "custom", "embed_dim": 12, "ape": True, "qkv_bias": False}}},
        {"backbone": {"type": "resnet", "resnet": {"type": "resnet101"}}},
        {"backbone": {"type": "resnet", "resnet": {"type": "custom", "depth": 18, "res2_channels": 32, "width": 32}}},
        {"mask_former": {"hidden_dim": 128, "dec_layers": 4, "pre_norm": True, "class_weight": 1.5}},
        {"sem_seg_head": {"convs_dim": 64, "mask_dim": 32, "transformer_enc_layers": 2, "common_stride": 8}},
    ],
)
def test_there_and_back(sections: dict[str, Any]) -> None:
    ours = merged({"model": {"sem_seg_head": {"num_classes": 2}}})
    ours.merge({"model": sections}, "test")
    config, preprocessor = config_json(ours, METADATA), preprocessor_json(ours, METADATA)
    again = merged(spec_from_config(config, preprocessor))
    assert config_json(again, METADATA) == config
    assert preprocessor_json(again, METADATA) == preprocessor


def test_what_a_configuration_leaves_out_has_their_defaults() -> None:
    cfg = merged(spec_from_config(theirs()))
    assert config_json(cfg, METADATA)["backbone_config"] == {
        "model_type": "swin",
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "image_size": 224,
        "patch_size": 4,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.1,
        "use_absolute_embeddings": False,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "num_channels": 3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    assert cfg.model.sem_seg_head.num_classes == 2
    assert cfg.model.mask_former.num_object_queries == 100


def test_sizes_of_images() -> None:
    mean = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], "ignore_index": None}
    edges = merged(spec_from_config(theirs(), {**mean, "size": {"shortest_edge": 800, "longest_edge": 1333}}))
    assert edges.dataset.pixel_mean == [0.5, 0.5, 0.5]
    assert edges.dataset.ignore_label == 255
    assert (edges.dataset.augmentation.test_min_size, edges.dataset.augmentation.test_max_size) == (800, 1333)
    fixed = merged(spec_from_config(theirs(), {**mean, "size": {"height": 384, "width": 512}}))
    assert fixed.dataset.val.target_size == fixed.dataset.test.target_size == [512, 384]
    assert preprocessor_json(fixed, METADATA)["size"] == {"height": 384, "width": 512}
    assert "dataset" not in spec_from_config(theirs())


def test_squares_may_be_written_as_pairs() -> None:
    section = spec_from_config(theirs({"patch_size": [4, 4], "image_size": [96, 96]}))["model"]["backbone"]["swin"]
    assert (section["patch_size"], section["pretrain_img_size"]) == (4, 96)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "maskformer"}, "model_type is 'maskformer'; it must be 'mask2former'"),
        ({"model_type": "mask2former", "backbone": "microsoft/swin-tiny"}, "no backbone_config"),
        (theirs({"model_type": "focalnet"}), "'focalnet'; m2f reads swin and resnet"),
        (theirs({"hidden_act": "relu"}), "backbone_config: hidden_act is 'relu'; m2f's models have 'gelu'"),
        (theirs({"layer_norm_eps": 1e-6}), "layer_norm_eps is 1e-06"),
        (theirs({"out_features": ["stage1", "stage2"]}), "must end with stage4"),
        (theirs({"image_size": [96, 64]}), "squares"),
        (theirs(activation_function="gelu"), "activation_function is 'gelu'; m2f's models have 'relu'"),
        (theirs(enforce_input_projection=True), "enforce_input_projection"),
        (theirs({"patch_size": 2}), r"feature_strides is \[4, 8, 16, 32\]; those of the backbone are \[2, 4, 8, 16\]"),
        (theirs({"model_type": "resnet", "depths": [3, 8, 36, 3]}), r"\[3, 8, 36, 3\]; m2f has the ResNets of 18, 34"),
        (theirs({"model_type": "resnet", "hidden_sizes": [256, 512, 1024, 1024]}), "each is twice the one before"),
        (theirs({"model_type": "resnet", "downsample_in_bottleneck": True}), "downsample_in_bottleneck is True"),
    ],
)
def test_models_that_m2f_does_not_have_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_from_config(config)


def test_a_projection_between_different_widths_needs_no_enforcing() -> None:
    assert spec_from_config(theirs(enforce_input_projection=True, hidden_dim=128))


@pytest.mark.parametrize(
    "config", [theirs(id2label=None), theirs({"depths": 3, "model_type": "resnet"}), theirs({"patch_size": None})]
)
def test_values_of_wrong_types_are_one_clear_error(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="values of wrong types"):
        spec_from_config(config)
