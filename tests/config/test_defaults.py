"""The published tables' Default columns, and the three values that the model table gives, written out by hand."""

from __future__ import annotations

import pytest

from m2f.config import get_cfg, load_spec

PUBLISHED = {
    "model.object_mask_threshold": 0.4,
    "model.overlap_threshold": 0.8,
    "model.test_topk_per_image": 100,
    "train.num_gpus": 1,
    "train.gpu_ids": [0],
    "train.seed": 1234,
    "train.num_epochs": 10,
    "train.checkpoint_interval": 1,
    "train.validation_interval": 1,
    "train.clip_grad_type": "full",
    "train.clip_grad_norm": 0.1,
    "train.precision": "fp32",
    "train.distributed_strategy": "ddp",
    "train.activation_checkpoint": True,
    "train.num_nodes": 1,
    "train.freeze": [],
    "train.verbose": False,
    "train.optim.lr": 2e-4,
    "train.optim.momentum": 0.9,
    "train.optim.weight_decay": 1e-4,
    "train.optim.lr_scheduler": "MultiStep",
    "train.optim.gamma": 0.1,
    "train.optim.milestones": [11],
    "train.optim.monitor_name": "val_loss",
    "train.optim.type": "AdamW",
    "evaluate.num_gpus": 1,
    "evaluate.gpu_ids": [0],
    "inference.num_gpus": 1,
    "inference.gpu_ids": [0],
    "export.on_cpu": True,
    "export.opset_version": 12,
    "export.input_channel": 3,
    "export.input_width": 960,
    "export.input_height": 544,
    "export.batch_size": -1,
    # without a default in the tables: TAO's code
    "encryption_key": "",
    "results_dir": "",
    "model.mode": "panoptic",
    "model.backbone.type": "swin",
    "model.backbone.swin.type": "tiny",
    "model.backbone.swin.window_size": 7,
    "model.backbone.swin.drop_path_rate": 0.3,
    "model.backbone.efficientvit.name": "l0",
    "model.backbone.efficientvit.out_indices": [0, 1, 2, 3],
    "model.sem_seg_head.num_classes": 200,
    "model.mask_former.dec_layers": 10,
    "model.mask_former.no_object_weight": 0.1,
    "dataset.pixel_mean": [0.485, 0.456, 0.406],
    "dataset.pixel_std": [0.229, 0.224, 0.225],
    "dataset.contiguous_id": False,
    "dataset.train.type": "ade",
    "dataset.augmentation.train_min_size": [640],
    "dataset.augmentation.train_max_size": 2560,
    "dataset.augmentation.train_crop_size": [640, 640],
    "dataset.augmentation.test_min_size": 640,
    "dataset.augmentation.test_max_size": 640,
    "train.optim.backbone_multiplier": 0.1,
    "train.clip_grad_norm_type": 2.0,
}

# Every key of the published tables, those without a default included.
DOCUMENTED = [
    *PUBLISHED,
    "model.backbone.pretrained_weights",
    *(f"model.backbone.swin.{key}" for key in ("pretrain_img_size", "out_indices", "out_features", "ape")),
    *(f"model.backbone.efficientvit.{key}" for key in ("pretrain_img_size", "out_indices", "out_features")),
    "model.sem_seg_head.norm",
    "model.mask_former.num_object_queries",
    *(f"dataset.{key}" for key in ("label_map", "workers")),
    *(
        f"dataset.{split}.{key}"
        for split in ("train", "val", "test")
        for key in (
            "type",
            "panoptic_json",
            "img_dir",
            "panoptic_dir",
            "root_dir",
            "annot_file",
            "batch_size",
            "num_workers",
        )
    ),
    *(
        f"train.{key}"
        for key in ("resume_training_checkpoint_path", "results_dir", "pretrained_model_path", "iters_per_epoch")
    ),
    *(f"{task}.{key}" for task in ("evaluate", "inference") for key in ("checkpoint", "trt_engine", "results_dir")),
    *(f"export.{key}" for key in ("checkpoint", "onnx_file")),
]


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_default(key):
    for cfg in (get_cfg(), load_spec(None)):
        assert cfg.leaf(key) == PUBLISHED[key]
        assert type(cfg.leaf(key)) is type(PUBLISHED[key])


@pytest.mark.parametrize("key", DOCUMENTED)
def test_documented_key_exists(key):
    get_cfg().leaf(key)


def test_defaults_are_lower_case_and_consistent():
    cfg = load_spec(None)
    assert cfg == get_cfg(), "the defaults contradict a named size or each other"
    assert all(key == key.lower() for key, _ in cfg.leaves())
