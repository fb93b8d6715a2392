"""What stands in `config.json` and `preprocessor_config.json`, and which specs they cannot tell of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from m2f.checkpoint.huggingface_files import config_json, preprocessor_json
from m2f.config import CfgNode, get_cfg
from m2f.structures.metadata import Category, Metadata

METADATA = Metadata("three", (Category(7, "cat"), Category(9, "dog"), Category(11, "sky", False)), ignore_label=254)


def spec(update: dict[str, Any]) -> CfgNode:
    cfg = get_cfg()
    cfg.merge({"model": {"sem_seg_head": {"num_classes": 3}}}, "test")
    cfg.merge(update, "test")
    return cfg


def model(**sections: Any) -> CfgNode:
    return spec({"model": sections})


def test_a_default_model() -> None:
    config = config_json(model(), METADATA)
    assert json.loads(json.dumps(config)) == config
    backbone = config.pop("backbone_config")
    assert config == {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "use_pretrained_backbone": False,
        "feature_size": 256,
        "mask_feature_size": 256,
        "encoder_layers": 6,
        "encoder_feedforward_dim": 1024,
        "common_stride": 4,
        "hidden_dim": 256,
        "dim_feedforward": 2048,
        "decoder_layers": 10,
        "num_attention_heads": 8,
        "dropout": 0.0,
        "pre_norm": False,
        "num_queries": 100,
        "no_object_weight": 0.1,
        "class_weight": 2.0,
        "mask_weight": 5.0,
        "dice_weight": 5.0,
        "train_num_points": 12544,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
        "activation_function": "relu",
        "enforce_input_projection": False,
        "feature_strides": [4, 8, 16, 32],
        "use_auxiliary_loss": True,
        "ignore_value": 254,
        "id2label": {"0": "cat", "1": "dog", "2": "sky"},
        "label2id": {"cat": 0, "dog": 1, "sky": 2},
    }
    assert backbone == {
        "model_type": "swin",
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "image_size": 384,
        "patch_size": 4,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.3,
        "use_absolute_embeddings": False,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "num_channels": 3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


def test_the_numbers_are_those_of_the_spec() -> None:
    former = {"num_object_queries": 20, "dec_layers": 4, "no_object_weight": 0.3, "train_num_points": 112}
    head = {"mask_dim": 64, "common_stride": 8}
    swin = {"type": "custom", "embed_dim": 24, "patch_size": 2, "window_size": 5, "out_indices": [1, 2, 3]}
    config = config_json(
        model(mask_former=former, sem_seg_head=head, backbone={"type": "swin", "swin": swin}), METADATA
    )
    assert {key: config[key] for key in ("num_queries", "decoder_layers", "no_object_weight", "train_num_points")} == {
        "num_queries": 20,
        "decoder_layers": 4,
        "no_object_weight": 0.3,
        "train_num_points": 112,
    }
    assert (config["mask_feature_size"], config["common_stride"]) == (64, 8)
    assert config["feature_strides"] == [4, 8, 16]
    backbone = config["backbone_config"]
    assert (backbone["embed_dim"], backbone["patch_size"], backbone["window_size"]) == (24, 2, 5)
    assert backbone["out_features"] == ["stage2", "stage3", "stage4"]


@pytest.mark.parametrize("layers", [18, 34, 50, 101])
def test_resnets(layers: int) -> None:
    config = config_json(model(backbone={"type": "resnet", "resnet": {"type": f"resnet{layers}"}}), METADATA)
    backbone = config["backbone_config"]
    convolutions = {"basic": 2, "bottleneck": 3}[backbone["layer_type"]]
    assert 2 + convolutions * sum(backbone["depths"]) == layers
    assert backbone["hidden_sizes"] == [64 * 2**i if layers < 50 else 256 * 2**i for i in range(4)]
    assert (backbone["embedding_size"], backbone["downsample_in_bottleneck"]) == (64, False)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"backbone": {"type": "efficientvit"}}, "model.backbone.type"),
        ({"backbone": {"type": "timm"}}, "model.backbone.type"),
        ({"backbone": {"swin": {"qk_scale": 0.5}}}, "model.backbone.swin.qk_scale"),
        ({"backbone": {"swin": {"patch_norm": False}}}, "model.backbone.swin.patch_norm"),
        (
            {"backbone": {"type": "resnet", "resnet": {"type": "custom", "width": 32}}},
            "model.backbone.resnet.width",
        ),
        ({"backbone": {"type": "resnet", "resnet": {"norm": "GN"}}}, "model.backbone.resnet.norm"),
        ({"sem_seg_head": {"pixel_decoder": "FPNPixelDecoder"}}, "model.sem_seg_head.pixel_decoder"),
        ({"sem_seg_head": {"norm": "LN"}}, "model.sem_seg_head.norm"),
        ({"sem_seg_head": {"encoder_num_points": 8}}, "model.sem_seg_head.encoder_num_points"),
        ({"sem_seg_head": {"convs_dim": 80}}, "model.sem_seg_head.convs_dim"),
        (
            {"sem_seg_head": {"deformable_transformer_encoder_in_features": ["res2", "res3", "res4", "res5"]}},
            "deformable_transformer_encoder_in_features",
        ),
        (
            {
                "backbone": {"swin": {"out_features": ["res2", "res3", "res4"]}},
                "sem_seg_head": {"deformable_transformer_encoder_in_features": ["res2", "res3", "res4"]},
            },
            "deformable_transformer_encoder_in_features",
        ),
        ({"mask_former": {"transformer_decoder": "Mine"}}, "model.mask_former.transformer_decoder"),
        ({"meta_architecture": "Mine"}, "model.meta_architecture"),
    ],
)
def test_what_their_model_does_not_have_is_refused(sections: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}.* which Hugging Face's Mask2Former does not have: it "):
        config_json(model(**sections), METADATA)


def test_the_order_of_the_encoders_features_means_nothing() -> None:
    head = {"deformable_transformer_encoder_in_features": ["res5", "res3", "res4"]}
    assert config_json(model(sem_seg_head=head), METADATA)["feature_strides"] == [4, 8, 16, 32]


def test_the_processor() -> None:
    cfg = spec({"dataset": {"pixel_mean": [0.1, 0.2, 0.3], "augmentation": {"test_min_size": 512}}})
    assert preprocessor_json(cfg, METADATA) == {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 512, "longest_edge": 640},
        "size_divisor": 32,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.229, 0.224, 0.225],
        "ignore_index": 254,
        "do_reduce_labels": False,
        "num_labels": 3,
    }


def test_labels_are_reduced_where_masks_count_classes_from_1() -> None:
    def reduced(*ids: int) -> bool:
        metadata = Metadata("test", tuple(Category(i, str(i)) for i in ids))
        answer: bool = preprocessor_json(get_cfg(), metadata)["do_reduce_labels"]
        return answer

    assert reduced(1, 2, 3)
    assert not reduced(0, 1, 2)
    assert not reduced(1, 2, 4)


def test_a_fixed_size_of_images() -> None:
    augmentation = {"test_min_size": 100, "test_max_size": 150}
    cfg = spec({"dataset": {"test": {"target_size": [400, 200]}, "augmentation": augmentation}})
    assert preprocessor_json(cfg, METADATA)["size"] == {"height": 75, "width": 150}
    cfg.merge({"model": {"backbone": {"swin": {"ape": True, "pretrain_img_size": 224}}}}, "test")
    assert preprocessor_json(cfg, METADATA)["size"] == {"height": 224, "width": 224}
