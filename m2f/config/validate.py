"""Whether the values of a merged tree make sense, alone and together; what one task needs is in `task_rules.py`."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

from m2f.config import rules
from m2f.config.node import DEFAULT, CfgNode, SpecError

logger = logging.getLogger(__name__)

_LABEL_FORMATS = ("coco", "coco_panoptic")  # formats without a label for unlabelled pixels


def validate(cfg: CfgNode) -> None:
    """Check what every task reads.

    Raises:
        SpecError: an impossible value, or two that exclude each other; the message names key, value and its source.
    """
    _check_numbers(cfg)
    _check_choices(cfg)
    check_ranges(cfg, rules.RANGES)
    _check_lists(cfg)
    _check_backbone(cfg)
    _check_widths(cfg)
    _check_losses(cfg)
    _check_dataset(cfg)
    _check_train(cfg)
    _note_without_effect(cfg)


def reconcile_devices(cfg: CfgNode) -> None:
    """Make `num_gpus` and `gpu_ids` of each task agree: the larger number wins.

    An impossible `num_gpus` stays, for `task_rules` to refuse.
    """
    for task in ("train", "evaluate", "inference"):
        node = cfg[task]
        if cfg.was_set(f"{task}.num_gpus") and node.num_gpus < 1:
            continue
        count = max(node.num_gpus, len(node.gpu_ids))
        ids = list(node.gpu_ids) if len(node.gpu_ids) == count else list(range(count))
        if (node.num_gpus, node.gpu_ids) != (count, ids):
            logger.info(
                "%s: num_gpus %d and gpu_ids %s do not agree; the larger wins: num_gpus %d, gpu_ids %s",
                *(task, node.num_gpus, node.gpu_ids, count, ids),
            )
        node.num_gpus, node.gpu_ids = count, ids


def fail(cfg: CfgNode, key: str, problem: str, *, others: Sequence[str] = (), shown: str | None = None) -> None:
    """Raise a SpecError about `key`; `others` are the keys that it disagrees with, one of which may be the one set."""
    source = next((cfg.source(k) for k in (key, *others) if cfg.was_set(k)), DEFAULT)
    raise SpecError(f"{source}: {key!r} is {shown or repr(cfg.leaf(key))}: {problem}")


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_numbers(cfg: CfgNode) -> None:
    for key, value in cfg.leaves():
        for item in _items(value):
            infinite_ok = key == "train.clip_grad_norm_type"  # the largest-element norm
            if isinstance(item, float) and (math.isnan(item) or (math.isinf(item) and not infinite_ok)):
                fail(cfg, key, "it must be a finite number")


def _check_choices(cfg: CfgNode) -> None:
    for key, choices in rules.CHOICES.items():
        for item in _items(cfg.leaf(key)):
            if item not in choices:
                shown = ", ".join(repr(choice) if choice == "" else str(choice) for choice in choices)
                fail(cfg, key, f"{item!r} is none of {shown}")


def check_ranges(cfg: CfgNode, ranges: dict[str, rules.Range]) -> None:
    """Refuse a number, or an element of a list, that its row in `ranges` does not allow."""
    for key, limits in ranges.items():
        for item in _items(cfg.leaf(key)):
            if item is not None and not limits.allows(item):
                fail(cfg, key, f"it must be {limits}")


def _check_lists(cfg: CfgNode) -> None:
    for key, lengths in rules.LENGTHS.items():
        if len(cfg.leaf(key)) not in lengths:
            fail(cfg, key, f"it must have {lengths[-1]} elements{rules.MEANINGS.get(key, '')}")
    for key in rules.INCREASING:
        if not _is_increasing(cfg.leaf(key)):
            fail(cfg, key, "each element must be larger than the one before")
    for key in rules.NOT_EMPTY:
        if len(cfg.leaf(key)) == 0:
            fail(cfg, key, "it must not be empty")
    unique = [f"{task}.gpu_ids" for task in ("train", "evaluate", "inference")]
    for key in (*unique, "evaluate.tasks", "inference.tasks", "evaluate.tta_scales", "inference.tta_scales"):
        if len(set(cfg.leaf(key))) < len(cfg.leaf(key)):
            fail(cfg, key, "an element is there twice")


def _is_increasing(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


def _check_backbone(cfg: CfgNode) -> None:
    swin = cfg.model.backbone.swin
    for stage, heads in enumerate(swin.num_heads):
        if swin.embed_dim * 2**stage % heads:
            width = swin.embed_dim * 2**stage
            problem = f"stage {stage} has {width} channels, no multiple of {heads}"
            fail(cfg, "model.backbone.swin.num_heads", problem, others=["model.backbone.swin.embed_dim"])
    if swin.ape and swin.pretrain_img_size % swin.patch_size:
        problem = f"it must be a multiple of patch_size, {swin.patch_size}, for the table of ape"
        others = ["model.backbone.swin.patch_size", "model.backbone.swin.ape"]
        fail(cfg, "model.backbone.swin.pretrain_img_size", problem, others=others)
    if cfg.model.backbone.type == "timm" and not cfg.model.backbone.timm.name:
        problem = "model.backbone.type is timm, so it must name a network, such as tf_efficientnet_lite0"
        fail(cfg, "model.backbone.timm.name", problem, others=["model.backbone.type"])
    for name in ("swin", "efficientvit", "resnet", "timm"):
        if cfg.model.backbone.type == name:
            _check_features(cfg, f"model.backbone.{name}")
            _check_strides(cfg, f"model.backbone.{name}")


def _check_features(cfg: CfgNode, section: str) -> None:
    """The encoder reads only feature maps that the backbone gives."""
    given, keys = _given_features(cfg, section)
    key = "model.sem_seg_head.deformable_transformer_encoder_in_features"
    missing = [name for name in cfg.leaf(key) if name not in given]
    if missing:
        fail(cfg, key, f"{', '.join(missing)} does not leave the backbone ({' and '.join(keys)})", others=keys)


def _check_strides(cfg: CfgNode, section: str) -> None:
    """Both pixel decoders start at a feature map of `common_stride` and need three maps of that stride or coarser."""
    given, keys = _given_features(cfg, section)
    patch_size = f"{section}.patch_size"
    others = [*keys, patch_size] if "patch_size" in cfg.leaf(section) else keys
    first = cfg.leaf(section).get("patch_size", 4)
    strides = [first * 2**stage for stage, name in enumerate(rules.STAGES) if name in given]
    key = "model.sem_seg_head.common_stride"
    if cfg.leaf(key) not in strides:
        fail(cfg, key, f"the feature maps of the backbone have the strides {strides}", others=others)
    if sum(stride >= cfg.leaf(key) for stride in strides) < 3:
        fail(cfg, key, "the decoder needs three feature maps of that stride or coarser", others=others)


def _given_features(cfg: CfgNode, section: str) -> tuple[set[str], list[str]]:
    """The feature maps that leave a backbone, and the keys that say so."""
    node = cfg.leaf(section)
    keys = [name for name in ("out_features", "out_indices") if name in node]
    by_place = {rules.STAGES[index] for index in node.get("out_indices", range(len(rules.STAGES)))}
    return set(node.out_features) & by_place, [f"{section}.{name}" for name in keys]


def _check_widths(cfg: CfgNode) -> None:
    heads = cfg.model.mask_former.nheads
    for key in ("model.sem_seg_head.convs_dim", "model.mask_former.hidden_dim"):
        if cfg.leaf(key) % heads:
            problem = f"it must be a multiple of model.mask_former.nheads, {heads}"
            fail(cfg, key, problem, others=["model.mask_former.nheads"])
        if cfg.leaf(key) % 4:
            fail(cfg, key, "it must be a multiple of 4, for the sines and cosines of two axes")
    if cfg.model.sem_seg_head.convs_dim % 32:
        fail(cfg, "model.sem_seg_head.convs_dim", "it must be a multiple of 32, the groups of its GroupNorm")


def _check_losses(cfg: CfgNode) -> None:
    former = cfg.model.mask_former
    if former.class_weight == former.mask_weight == former.dice_weight == 0:
        others = ["model.mask_former.mask_weight", "model.mask_former.dice_weight"]
        problem = "one of class_weight, mask_weight and dice_weight must be > 0"
        fail(cfg, "model.mask_former.class_weight", problem, others=others)


def _check_dataset(cfg: CfgNode) -> None:
    data, aug = cfg.dataset, cfg.dataset.augmentation
    if aug.lsj_min_scale > aug.lsj_max_scale:
        problem = f"it must be <= lsj_max_scale, {aug.lsj_max_scale}"
        others = ["dataset.augmentation.lsj_max_scale"]
        fail(cfg, "dataset.augmentation.lsj_min_scale", problem, others=others)
    splits = (data.train, data.val)
    if not data.zero_is_ignore and all(split.type in _LABEL_FORMATS and not split.name for split in splits):
        fail(cfg, "dataset.zero_is_ignore", "it is for the masks of type 'ade'; neither train nor val is of that type")


def _check_train(cfg: CfgNode) -> None:
    train = cfg.train
    if train.early_stop_patience and not train.best_metric:
        fail(cfg, "train.early_stop_patience", "it needs train.best_metric, as in panoptic/PQ")


def _note_without_effect(cfg: CfgNode) -> None:
    key = "model.backbone.efficientvit.pretrain_img_size"
    if cfg.model.backbone.type == "efficientvit" and cfg.was_set(key) and cfg.leaf(key) != 384:
        logger.info("%s has no effect: no weight of EfficientViT depends on the image size", key)
