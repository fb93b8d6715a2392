"""The values that single keys may have, as tables of choices and ranges.

Registered names are not here: engine resolves them.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Range(NamedTuple):
    """Numbers from `low` to `high`; an end may be left out."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    allows_zero: bool = True

    def allows(self, value: float) -> bool:
        """Whether `value` lies inside."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and (self.allows_zero or value != 0)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        low = f"{'>' if self.low_open else '>='} {self.low:g}" if self.low > -math.inf else ""
        high = f"{'<' if self.high_open else '<='} {self.high:g}" if self.high < math.inf else ""
        zero = "" if self.allows_zero else "not 0"
        return " and ".join(part for part in (low, high, zero) if part) or "a number"


POSITIVE = Range(0, low_open=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
RATE = Range(0, 1, high_open=True)

STAGES = ("res2", "res3", "res4", "res5")
TASKS = ("semantic", "panoptic", "instance")

# A list's rule holds for each of its elements.
CHOICES: dict[str, tuple[object, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "model.mode": ("panoptic", "semantic", "instance"),
    "model.backbone.swin.out_indices": (0, 1, 2, 3),
    "model.backbone.swin.out_features": STAGES,
    "model.backbone.efficientvit.out_indices": (0, 1, 2, 3),
    "model.backbone.efficientvit.out_features": STAGES,
    "model.backbone.efficientvit.family": ("b", "l"),
    "model.backbone.resnet.depth": (18, 34, 50, 101),
    "model.backbone.resnet.norm": ("FrozenBN", "BN", "SyncBN", "GN"),
    "model.backbone.resnet.out_features": STAGES,
    "model.backbone.timm.out_features": STAGES,
    "model.sem_seg_head.norm": ("GN", "LN", "BN", "SyncBN", ""),
    "model.sem_seg_head.deformable_transformer_encoder_in_features": STAGES,
    "dataset.augmentation.policy": ("resize_crop", "lsj"),
    "train.checkpoint_interval_unit": ("epoch", "step"),
    "train.resume": ("auto", "never"),
    "train.precision": ("fp32", "fp16", "bf16"),
    "train.distributed_strategy": ("ddp", "ddp_sharded", "fsdp"),
    "train.clip_grad_type": ("full", "norm", "value"),
    "train.best_mode": ("max", "min"),
    "train.optim.monitor_name": ("val_loss", "train_loss"),
    "evaluate.tasks": TASKS,
    "inference.tasks": TASKS,
    "export.outputs": ("tao", "mask_logits", "panoptic_map"),
    "evaluate.coco_backend": ("auto", "hotcoco", "faster_coco_eval", "pycocotools"),
}

RANGES: dict[str, Range] = {
    "model.object_mask_threshold": SHARE,
    "model.overlap_threshold": SHARE,
    "model.test_topk_per_image": POSITIVE,
    "model.backbone.swin.embed_dim": POSITIVE,
    "model.backbone.swin.depths": POSITIVE,
    "model.backbone.swin.num_heads": POSITIVE,
    "model.backbone.swin.window_size": POSITIVE,
    "model.backbone.swin.pretrain_img_size": POSITIVE,
    "model.backbone.swin.patch_size": POSITIVE,
    "model.backbone.swin.mlp_ratio": POSITIVE,
    "model.backbone.swin.qk_scale": POSITIVE,
    "model.backbone.swin.drop_rate": RATE,
    "model.backbone.swin.attn_drop_rate": RATE,
    "model.backbone.swin.drop_path_rate": RATE,
    "model.backbone.efficientvit.pretrain_img_size": POSITIVE,
    "model.backbone.efficientvit.widths": POSITIVE,
    "model.backbone.efficientvit.depths": POSITIVE,
    "model.backbone.efficientvit.dim": POSITIVE,
    "model.backbone.efficientvit.bn_eps": POSITIVE,
    "model.backbone.resnet.stem_channels": POSITIVE,
    "model.backbone.resnet.res2_channels": POSITIVE,
    "model.backbone.resnet.width": POSITIVE,
    "model.backbone.timm.drop_path_rate": RATE,
    "model.sem_seg_head.num_classes": POSITIVE,
    "model.sem_seg_head.common_stride": POSITIVE,
    "model.sem_seg_head.transformer_enc_layers": NOT_NEGATIVE,
    "model.sem_seg_head.convs_dim": POSITIVE,
    "model.sem_seg_head.mask_dim": POSITIVE,
    "model.sem_seg_head.encoder_dim_feedforward": POSITIVE,
    "model.sem_seg_head.encoder_num_points": POSITIVE,
    "model.mask_former.dropout": RATE,
    "model.mask_former.nheads": POSITIVE,
    "model.mask_former.num_object_queries": POSITIVE,
    "model.mask_former.hidden_dim": POSITIVE,
    "model.mask_former.dim_feedforward": POSITIVE,
    "model.mask_former.dec_layers": POSITIVE,
    "model.mask_former.class_weight": NOT_NEGATIVE,
    "model.mask_former.mask_weight": NOT_NEGATIVE,
    "model.mask_former.dice_weight": NOT_NEGATIVE,
    "model.mask_former.no_object_weight": NOT_NEGATIVE,
    "model.mask_former.train_num_points": POSITIVE,
    "model.mask_former.oversample_ratio": Range(1),
    "model.mask_former.importance_sample_ratio": SHARE,
    "model.mask_former.size_divisibility": POSITIVE,
    "dataset.pixel_std": POSITIVE,
    "dataset.workers": NOT_NEGATIVE,
    "dataset.ignore_label": Range(0, 65535),
    "dataset.train.repeat_threshold": NOT_NEGATIVE,
    "dataset.train.max_images": NOT_NEGATIVE,
    "dataset.val.max_images": NOT_NEGATIVE,
    "dataset.augmentation.train_min_size": POSITIVE,
    "dataset.augmentation.train_max_size": POSITIVE,
    "dataset.augmentation.train_crop_size": POSITIVE,
    "dataset.augmentation.test_min_size": POSITIVE,
    "dataset.augmentation.test_max_size": POSITIVE,
    "dataset.augmentation.lsj_min_scale": POSITIVE,
    "dataset.augmentation.lsj_max_scale": POSITIVE,
    "dataset.augmentation.horizontal_flip": SHARE,
    "dataset.augmentation.vertical_flip": SHARE,
    "dataset.augmentation.crop_max_category_area": Range(0, 1, low_open=True),
    "train.seed": Range(high=2**32 - 1),
    "train.num_epochs": POSITIVE,
    "train.checkpoint_interval": POSITIVE,
    "train.validation_interval": POSITIVE,
    "train.clip_grad_norm": NOT_NEGATIVE,
    "train.clip_grad_norm_type": POSITIVE,
    "train.iters_per_epoch": POSITIVE,
    "train.max_iters": NOT_NEGATIVE,
    "train.accumulate_steps": POSITIVE,
    "train.log_interval": POSITIVE,
    "train.num_visualizations": NOT_NEGATIVE,
    "train.keep_checkpoints": NOT_NEGATIVE,
    "train.early_stop_patience": NOT_NEGATIVE,
    "train.optim.lr": POSITIVE,
    "train.optim.backbone_multiplier": NOT_NEGATIVE,
    "train.optim.momentum": RATE,
    # Note: the table says > 0.0; 0 is no decay, which both optimisers allow.
    "train.optim.weight_decay": NOT_NEGATIVE,
    "train.optim.gamma": POSITIVE,
    "train.optim.milestones": POSITIVE,
    "train.optim.step_size": POSITIVE,
    "train.optim.warmup_iters": NOT_NEGATIVE,
    "train.optim.warmup_factor": SHARE,
    "train.optim.poly_power": POSITIVE,
    "train.optim.patience": NOT_NEGATIVE,
    "train.optim.min_lr_factor": SHARE,
    "evaluate.max_dets": POSITIVE,
    **{f"dataset.{split}.batch_size": POSITIVE for split in ("train", "val", "test")},
    **{f"dataset.{split}.num_workers": NOT_NEGATIVE for split in ("train", "val", "test")},
    **{f"dataset.{split}.target_size": POSITIVE for split in ("train", "val", "test")},
}

LENGTHS: dict[str, tuple[int, ...]] = {
    "dataset.pixel_mean": (3,),
    "dataset.pixel_std": (3,),
    "dataset.augmentation.train_crop_size": (2,),
    "model.backbone.swin.depths": (4,),
    "model.backbone.swin.num_heads": (4,),
    "model.backbone.efficientvit.widths": (5,),
    "model.backbone.efficientvit.depths": (5,),
    **{f"dataset.{split}.target_size": (0, 2) for split in ("train", "val", "test")},
    **{f"{task}.tile_size": (0, 2) for task in ("evaluate", "inference")},
}

# What a list's elements mean, for errors about its length.
MEANINGS: dict[str, str] = {
    "dataset.augmentation.train_crop_size": " [height, width]",
    **{f"dataset.{split}.target_size": " [width, height], or empty" for split in ("train", "val", "test")},
    **{f"{task}.tile_size": " [height, width], or empty" for task in ("evaluate", "inference")},
}

INCREASING: tuple[str, ...] = (
    "train.optim.milestones",
    "evaluate.max_dets",
    "model.backbone.swin.out_indices",
    "model.backbone.efficientvit.out_indices",
)

NOT_EMPTY: tuple[str, ...] = (
    "model_name",
    "evaluate.max_dets",
    "model.backbone.swin.out_indices",
    "model.backbone.swin.out_features",
    "model.backbone.efficientvit.out_indices",
    "model.backbone.efficientvit.out_features",
    "model.backbone.resnet.out_features",
    "model.backbone.timm.out_features",
    "model.sem_seg_head.deformable_transformer_encoder_in_features",
)

# One task's own keys: checked when that task runs, so that they never stand in the way of another.
_DEVICES: dict[str, Range] = {"num_gpus": POSITIVE, "gpu_ids": NOT_NEGATIVE, "num_nodes": POSITIVE}
_BATCH = Range(-1, allows_zero=False)
_RUNNER: dict[str, Range] = {
    **_DEVICES,
    "batch_size": _BATCH,
    "tile_size": POSITIVE,
    "tile_overlap": Range(0, 0.9, low_open=True),
    "tta_scales": POSITIVE,
}
TASK_RANGES: dict[str, dict[str, Range]] = {
    "train": {f"train.{key}": limits for key, limits in _DEVICES.items()},
    "evaluate": {f"evaluate.{key}": limits for key, limits in _RUNNER.items()},
    "inference": {
        **{f"inference.{key}": limits for key, limits in _RUNNER.items()},
        "inference.score_threshold": SHARE,
        "inference.min_score": SHARE,
    },
    "export": {
        "export.opset_version": POSITIVE,
        "export.input_channel": Range(3, 3),
        "export.input_width": Range(64),
        "export.input_height": Range(64),
        "export.batch_size": _BATCH,
        "export.parity_count": POSITIVE,
        "export.parity_tolerance": POSITIVE,
    },
}
