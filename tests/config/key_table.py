"""For every key of the configuration: another value, and what changes with it."""

from __future__ import annotations

from typing import NamedTuple

# Thin and quick; every row starts from here. `{shapes}`, `{mirrored}`, `{made}`, `{trained}`: folders, see `world`.
BASE = (
    *("device=cpu", "results_dir=out", "model.object_mask_threshold=0.1"),
    *("model.backbone.type=efficientvit", "model.backbone.efficientvit.name=custom"),
    *("model.backbone.efficientvit.family=b", "model.backbone.efficientvit.widths=[8, 8, 16, 16, 16]"),
    *("model.backbone.efficientvit.depths=[1, 1, 1, 1, 1]", "model.backbone.efficientvit.dim=8"),
    *("model.sem_seg_head.num_classes=7", "model.sem_seg_head.convs_dim=32", "model.sem_seg_head.mask_dim=16"),
    *("model.sem_seg_head.transformer_enc_layers=1", "model.sem_seg_head.encoder_dim_feedforward=32"),
    *("model.mask_former.hidden_dim=32", "model.mask_former.nheads=4", "model.mask_former.dim_feedforward=32"),
    *("model.mask_former.dec_layers=3", "model.mask_former.num_object_queries=6"),
    *("model.mask_former.train_num_points=64", "dataset.contiguous_id=True", "dataset.workers=0"),
    *("dataset.train.name=shapes_panoptic_train", "dataset.train.batch_size=2"),
    *("dataset.val.name=shapes_panoptic_val", "dataset.val.batch_size=2"),
    *("dataset.test.name=shapes_panoptic_val", "dataset.test.batch_size=2"),
    *("dataset.augmentation.train_min_size=[48, 64]", "dataset.augmentation.train_max_size=128"),
    *("dataset.augmentation.train_crop_size=[64, 64]", "dataset.augmentation.test_min_size=64"),
    *("dataset.augmentation.test_max_size=128", "train.num_epochs=2", "train.iters_per_epoch=1"),
    *("train.validation_interval=2", "train.log_interval=1", "train.num_visualizations=1"),
    *("train.activation_checkpoint=False", "train.optim.lr=1e-3"),
)


class Row(NamedTuple):
    key: str
    value: str
    observable: str  # a function of observables.py
    context: tuple[str, ...] = ()  # what the key needs to matter


TABLE: list[Row] = []


def rows(section: str, observable: str, values: dict[str, str], context: tuple[str, ...] = ()) -> None:
    """Rows of one observable: key -> value, with more context as in `value | key=value | key=value`."""
    for name, text in values.items():
        value, *more = (part.strip() for part in text.split("|"))
        TABLE.append(Row(f"{section}.{name}" if section else name, value, observable, (*context, *more)))


def _backbone(name: str, /, **sizes: str) -> tuple[str, ...]:
    section = f"model.backbone.{name}"
    return (f"model.backbone.type={name}", *(f"{section}.{key}={value}" for key, value in sizes.items()))


SWIN = _backbone(
    "swin",
    type="custom",
    embed_dim="8",
    depths="[1, 1, 1, 2]",
    num_heads="[1, 1, 2, 2]",
    window_size="4",
    drop_path_rate="0.0",
)
RESNET = _backbone("resnet", type="custom", depth="18", stem_channels="8", res2_channels="8", width="8")
TIMM = _backbone("timm", name="test_convnext")  # one of those that timm has for its own tests
FEWER_LEVELS = "model.sem_seg_head.deformable_transformer_encoder_in_features=[res4, res5]"

rows(
    "model",
    "answers",
    {
        "mode": "semantic",
        "object_mask_threshold": "0.9",
        "overlap_threshold": "0.0",
        "test_topk_per_image": "1 | model.mode=instance",
    },
)
rows("model", "losses", {"meta_architecture": "ProbeMaskFormer"})
rows("model.backbone", "losses", {"type": "resnet"}, RESNET[1:])
rows(
    "model.backbone.swin",
    "losses",
    {
        "type": "tiny",
        "embed_dim": "16",
        "depths": "[1, 1, 1, 1]",
        "num_heads": "[2, 2, 2, 2]",
        "window_size": "2",
        "pretrain_img_size": "64 | model.backbone.swin.pretrain_img_size=32 | model.backbone.swin.ape=True",
        "ape": "True | model.backbone.swin.pretrain_img_size=32",
        "patch_size": "8 | model.sem_seg_head.common_stride=8",
        "mlp_ratio": "2.0",
        "qkv_bias": "False",
        "qk_scale": "2.0",
        "drop_rate": "0.5",
        "attn_drop_rate": "0.5",
        "drop_path_rate": "0.9",
        "patch_norm": "False",
        "out_indices": f"[0, 2, 3] | {FEWER_LEVELS}",
        "out_features": f"[res2, res4, res5] | {FEWER_LEVELS}",
    },
    SWIN,
)
rows(
    "model.backbone.efficientvit",
    "losses",
    {
        "name": "b0",
        "family": "l",
        "widths": "[8, 16, 16, 16, 16]",
        "depths": "[1, 1, 1, 1, 2]",
        "dim": "4",
        "bn_eps": "0.5",
        "out_indices": f"[0, 2, 3] | {FEWER_LEVELS}",
        "out_features": f"[res2, res4, res5] | {FEWER_LEVELS}",
    },
)
rows("model.backbone.efficientvit", "said_while_building", {"pretrain_img_size": "224"})
rows(
    "model.backbone.resnet",
    "losses",
    {
        "type": "resnet18",
        "depth": "34",
        "stem_channels": "16",
        "res2_channels": "64 | model.backbone.resnet.depth=50 | model.backbone.resnet.res2_channels=32",
        "width": "16 | model.backbone.resnet.depth=50 | model.backbone.resnet.res2_channels=32",
        "norm": "BN",
        "out_features": f"[res2, res4, res5] | {FEWER_LEVELS}",
    },
    RESNET,
)
rows(
    "model.backbone.timm",
    "losses",
    {
        "name": "test_resnet",
        "drop_path_rate": "0.9",
        "out_features": f"[res2, res4, res5] | {FEWER_LEVELS}",
    },
    TIMM,
)
rows("model.backbone.swin", "recomputation", {"use_checkpoint": "True"}, SWIN)
rows("model.backbone.efficientvit", "recomputation", {"use_checkpoint": "True"})
rows("model.backbone.resnet", "recomputation", {"use_checkpoint": "True"}, RESNET)
rows("model.backbone.timm", "recomputation", {"use_checkpoint": "True"}, TIMM)
rows("train", "recomputation", {"activation_checkpoint": "True"})
rows("train", "losses", {"freeze": "[backbone]"})
rows(
    "model.sem_seg_head",
    "losses",
    {
        "num_classes": "8",
        "norm": "LN",
        "common_stride": "8",
        "transformer_enc_layers": "2",
        "convs_dim": "64",
        "mask_dim": "32",
        "deformable_transformer_encoder_in_features": "[res4, res5]",
        "pixel_decoder": "FPNPixelDecoder",
        "encoder_dim_feedforward": "64",
        "encoder_num_points": "2",
    },
)
rows(
    "model.mask_former",
    "losses",
    {
        "dropout": "0.5",
        "nheads": "2",
        "num_object_queries": "4",
        "hidden_dim": "64",
        "dim_feedforward": "64",
        "dec_layers": "2",
        "pre_norm": "True",
        "class_weight": "1.0",
        "mask_weight": "1.0",
        "dice_weight": "1.0",
        "no_object_weight": "1.0",
        "deep_supervision": "False",
        "train_num_points": "32",
        "oversample_ratio": "1.5",
        "importance_sample_ratio": "0.25",
        "transformer_decoder": "ProbeDecoder",
        "criterion": "ProbeCriterion",
        "size_divisibility": "96",
        "ignore_void": "False",
    },
)
rows("dataset", "losses", {"pixel_mean": "[0.0, 0.0, 0.0]", "pixel_std": "[1.0, 1.0, 1.0]"})

# Where a split's files are; where there are paths, the name is a name only.
for split in ("train", "val", "test"):
    section, here = f"dataset.{split}", "train" if split == "train" else "val"
    in_root = (f"{section}.root_dir={{shapes}}", "evaluate.tasks=[semantic]")
    images = f"{section}.img_dir=images/{here}"
    panoptic, instances = (f"annotations/{kind}_{here}.json" for kind in ("panoptic", "instances"))
    pairs = f"annotations/semantic_{here}.jsonl"
    rows(
        section,
        f"{split}_data",
        {
            "type": f"coco | {section}.instance_json={instances}",
            "panoptic_json": f"{{mirrored}}/{panoptic}",
            "panoptic_dir": f"{{mirrored}}/panoptic_{here}",
            "img_dir": f"{{mirrored}}/images/{here}",
        },
        (
            *(f"{section}.type=coco_panoptic", f"{section}.panoptic_json={panoptic}"),
            *(f"{section}.panoptic_dir=panoptic_{here}", images, *in_root),
        ),
    )
    rows(
        section,
        f"{split}_data",
        {"instance_json": f"{{mirrored}}/{instances}"},
        (f"{section}.type=coco", f"{section}.instance_json={instances}", images, *in_root),
    )
    rows(
        section,
        f"{split}_data",
        {"annot_file": f"{{mirrored}}/{pairs}", "root_dir": "{mirrored}"},
        (f"{section}.type=ade", f"{section}.annot_file={pairs}", *in_root),
    )
    rows(
        section,
        f"{split}_data",
        {"mask_dir": f"{{mirrored}}/semantic_{here}"},
        (f"{section}.type=ade", f"{section}.mask_dir=semantic_{here}", images, *in_root),
    )
    rows(
        section,
        f"{split}_data",
        {
            "name": f"shapes_instance_{here}",
            "batch_size": "1",
            "target_size": "[64, 32]",
            "mapper": "where_loaded",
            "num_workers": f"1 | {section}.mapper=where_loaded",
        },
        ("evaluate.tasks=[semantic]",),
    )
rows("dataset.train", "train_data", {"max_images": "1", "sampler": "RepeatFactorSampler"})
rows("dataset.val", "val_data", {"max_images": "1"})
MADE = ("dataset.train.type=coco", "dataset.train.instance_json={made}/instances.json")
MADE += ("dataset.train.img_dir={made}/images", "dataset.train.sampler=RepeatFactorSampler")
rows("dataset", "train_data", {"contiguous_id": "False", "train.filter_empty": "True"}, MADE)
rows("dataset", "train_data", {"train.repeat_threshold": "9.0"}, MADE)
PAIRS = ("dataset.val.type=ade", "dataset.val.annot_file=pairs.jsonl", "dataset.val.root_dir={made}")
PAIRS += ("evaluate.tasks=[semantic]",)
rows(
    "dataset",
    "val_data",
    {
        "label_map": "{made}/label_map.json",
        "zero_is_ignore": "False",
        "ignore_label": "254",
        "root_dir": "{mirrored} | dataset.root_dir={shapes} | dataset.val.root_dir= "
        "| dataset.val.annot_file=annotations/semantic_val.jsonl",
    },
    PAIRS,
)
rows("dataset", "train_data", {"workers": "1 | dataset.train.mapper=where_loaded"})
rows("dataset", "pinning", {"pin_memory": "False | device=auto"})
rows(
    "dataset.augmentation",
    "train_data",
    {
        "train_min_size": "[32, 40]",
        "train_max_size": "50",
        "train_crop_size": "[32, 48]",
        "policy": "lsj",
        "lsj_min_scale": "1.5 | dataset.augmentation.policy=lsj",
        "lsj_max_scale": "0.5 | dataset.augmentation.policy=lsj",
        "horizontal_flip": "0.0",
        "vertical_flip": "1.0",
        "color_jitter": "False",
        "crop_max_category_area": "0.1 | dataset.augmentation.train_crop_size=[32, 32]",
    },
)
rows("dataset.augmentation", "val_data", {"test_min_size": "48", "test_max_size": "50"})

rows("", "run", {"model_name": "renamed", "results_dir": "out/elsewhere"})
rows("", "device", {"device": "cuda"})
rows("train", "devices", {"gpu_ids": "[1]"}, ("device=cuda",))
rows("evaluate", "devices", {"gpu_ids": "[1]"}, ("device=cuda",))
rows("inference", "devices", {"gpu_ids": "[1]"}, ("device=cuda",))
rows("train", "cudnn", {"cudnn.benchmark": "True", "cudnn.deterministic": "False"})
rows(
    "train",
    "start",
    {
        "resume_training_checkpoint_path": "{trained}/model_epoch_000.pth",
        "pretrained_model_path": "{trained}/model_epoch_000.pth",
        "resume": "never | train.results_dir={trained}",
    },
)
rows("model.backbone", "start", {"pretrained_weights": "{trained}/model_epoch_000.pth"})
rows(
    "train",
    "run",
    {
        "seed": "1",
        "num_epochs": "1",
        "iters_per_epoch": "2",
        "max_iters": "1",
        "accumulate_steps": "2",
        "checkpoint_interval": "2",
        "checkpoint_interval_unit": "step",
        "validation_interval": "1",
        "results_dir": "out/elsewhere",
        "precision": "bf16",
        "is_dry_run": "True",
        "hooks": "[ProbeHook]",
        "log_interval": "2",
        "num_visualizations": "2",
        "keep_checkpoints": "1",
        "best_metric": "semantic/pACC | evaluate.tasks=[semantic]",
        "best_mode": "min | train.best_metric=val_loss | train.validation_interval=1",
        "early_stop_patience": "1 | train.best_metric=val_loss | train.validation_interval=1 | train.num_epochs=4",
    },
)
rows(
    "train",
    "trajectory",
    {
        "clip_grad_type": "value",
        "clip_grad_norm": "0.0",
        "clip_grad_norm_type": "1.0",
        "optim.type": "AdamW",
        "optim.lr": "2e-3",
        "optim.backbone_multiplier": "1.0",
        "optim.momentum": "0.5",
        "optim.weight_decay": "0.1",
        "optim.lr_scheduler": "Cosine",
        "optim.milestones": "[2]",
        "optim.gamma": "0.5",
        "optim.monitor_name": "train_loss | train.optim.lr_scheduler=AutoReduce",
        "optim.step_size": "1 | train.optim.lr_scheduler=StepLR",
        "optim.warmup_iters": "5",
        "optim.warmup_factor": "0.5 | train.optim.warmup_iters=5",
        "optim.poly_power": "2.0 | train.optim.lr_scheduler=Warmuppoly",
        "optim.patience": "5 | train.optim.lr_scheduler=AutoReduce",
        "optim.min_lr_factor": "0.5 | train.optim.lr_scheduler=Cosine",
        "verbose": "True",
    },
    ("train.optim.type=SGD", "train.optim.milestones=[4]", "train.iters_per_epoch=2", "train.num_epochs=6"),
)
rows("evaluate", "val_data", {"batch_size": "1", "tasks": "[semantic]"})
rows(
    "evaluate",
    "evaluation",
    {
        "checkpoint": "{trained}/model_epoch_001.pth",
        "results_dir": "out/elsewhere",
        "datasets": "[shapes_panoptic_train]",
        "max_dets": "[1, 5] | evaluate.tasks=[instance]",
        "evaluators": "[ProbeEvaluator]",
        "save_visualizations": "False",
        "save_predictions": "True",
        "predictions": "[{trained}/predictions/shapes_panoptic_val]",
        "expected_results": "[[panoptic/PQ, -1, 0.5]]",
        "trt_engine": "{trained}/model.engine | evaluate.checkpoint=",
    },
    ("evaluate.checkpoint={trained}/model_epoch_000.pth",),
)
ANSWERS = {
    "tile_size": "[48, 48]",
    "tile_overlap": "0.5 | {task}.tile_size=[48, 48]",
    "tta_flip": "True",
    "tta_scales": "[0.5, 1.0]",
}
for task in ("evaluate", "inference"):
    rows(
        task,
        "evaluation" if task == "evaluate" else "inference",
        {key: value.replace("{task}", task) for key, value in ANSWERS.items()},
        (f"{task}.checkpoint={{trained}}/model_epoch_000.pth", f"{task}.tasks=[semantic]"),
    )
rows(
    "inference",
    "inference",
    {
        "checkpoint": "{trained}/model_epoch_001.pth",
        "trt_engine": "{trained}/model.engine | inference.checkpoint=",
        "results_dir": "out/elsewhere",
        "batch_size": "1 | dataset.augmentation.test_max_size=80",
        "input": "[{made}/images]",
        "tasks": "[semantic]",
        "score_threshold": "0.0 | inference.tasks=[instance]",
        "min_score": "0.9 | inference.tasks=[instance]",
        "save_overlays": "False",
        "save_predictions": "False",
        "skip_done": "True | inference.results_dir={trained}/inference",
    },
    ("inference.checkpoint={trained}/model_epoch_000.pth",),
)
rows(
    "export",
    "export",
    {
        "checkpoint": "{trained}/model_epoch_001.pth",
        "onnx_file": "out/elsewhere.onnx",
        "results_dir": "out/elsewhere",
        "on_cpu": "False",
        "opset_version": "18",
        "input_width": "96",
        "input_height": "96",
        "batch_size": "2",
        "verbose": "True",
        "outputs": "panoptic_map",
        "normalize_in_graph": "True",
        "dynamic_size": "True",
        "fp16": "True | export.parity_tolerance=1.0",
        "parity_images": "[{made}/images/a.png]",
        "parity_count": "1",
        "parity_tolerance": "1e-30",
    },
    ("export.checkpoint={trained}/model_epoch_000.pth", "export.input_height=64", "export.input_width=64"),
)
rows("", "encryption", {"encryption_key": "secret"})
rows("evaluate", "libraries", {"coco_backend": "faster_coco_eval"}, ("evaluate.coco_backend=pycocotools",))

# Once more, in other circumstances.
BY_NAME = ("dataset.val.name=shapes_semantic_val", "evaluate.tasks=[semantic]")
rows("dataset", "val_data", {"ignore_label": "254", "label_map": "{mirrored}/label_map.json"}, BY_NAME)
rows("dataset", "val_data", {"val.max_images": "1", "val.target_size": "[32, 64]"}, BY_NAME)
rows("dataset", "train_data", {"contiguous_id": "False"}, ("model.sem_seg_head.num_classes=9",))
rows(
    "dataset",
    "train_data",
    {"train.filter_empty": "True", "train.max_images": "1"},
    (
        *("dataset.train.type=coco_panoptic", "dataset.train.panoptic_json={made}/panoptic.json"),
        *("dataset.train.panoptic_dir={made}/panoptic", "dataset.train.img_dir={made}/images"),
        "dataset.train.mapper=where_loaded",
    ),
)
rows(
    "dataset",
    "train_data",
    {
        "augmentation.horizontal_flip": "1.0",
        "augmentation.vertical_flip": "0.5",
        "augmentation.train_crop_size": "[32, 48]",
        "train.target_size": "[64, 32]",
    },
    ("dataset.augmentation.policy=lsj",),
)
rows("dataset.augmentation", "train_data", {"train_min_size": "[32]"}, ("dataset.augmentation.train_min_size=[64]",))
rows("train", "recomputation", {"activation_checkpoint": "True"}, SWIN)
rows("train", "recomputation", {"activation_checkpoint": "True"}, RESNET)
# Of the encoder alone: the backbone recomputes on both sides.
rows("train", "recomputation", {"activation_checkpoint": "True"}, ("model.backbone.efficientvit.use_checkpoint=True",))
FPN = ("model.sem_seg_head.pixel_decoder=FPNPixelDecoder",)
rows("model.sem_seg_head", "losses", {"norm": "", "common_stride": "8", "convs_dim": "64", "mask_dim": "32"}, FPN)
for schedule in ("MultiStep", "StepLR", "Warmuppoly", "WarmupPoly", "Cosine", "AutoReduce"):
    values = {"verbose": "True", "optim.warmup_iters": "5"}
    values |= {"optim.gamma": "0.5"} if schedule in ("MultiStep", "StepLR", "AutoReduce") else {}
    values |= {"optim.min_lr_factor": "0.5"} if schedule not in ("MultiStep", "StepLR") else {}
    values |= {"num_epochs": "9"} if schedule in ("Warmuppoly", "WarmupPoly", "Cosine") else {}
    context = (f"train.optim.lr_scheduler={schedule}", "train.optim.step_size=2", "train.optim.milestones=[2]")
    rows("train", "trajectory", values, (*context, "train.iters_per_epoch=2", "train.num_epochs=6"))
CLIP_EACH = ("train.clip_grad_type=norm", "train.optim.type=SGD")
rows("train", "trajectory", {"clip_grad_norm": "1.0", "clip_grad_norm_type": "1.0"}, CLIP_EACH)
rows("train", "trajectory", {"clip_grad_norm": "1.0"}, ("train.clip_grad_type=value", "train.optim.type=SGD"))
rows("train", "trajectory", {"optim.momentum": "0.5", "optim.weight_decay": "1.0"}, ("train.optim.type=AdamW",))
rows("train", "run", {"precision": "fp16"})
TRAINED = ("evaluate.checkpoint={trained}/model_epoch_000.pth", "evaluate.batch_size=1")
rows("train", "evaluation", {"is_dry_run": "True", "num_visualizations": "2"}, TRAINED)
rows("model", "evaluation", {"mode": "semantic"}, TRAINED)
rows("model", "evaluation", {"mode": "instance"}, TRAINED)

# Keys that a task needs and m2f cannot honour: key -> the task that refuses the value, by the name of the key.
REFUSED: dict[str, tuple[str, str]] = {
    "train.num_gpus": ("train", "2"),
    "train.num_nodes": ("train", "2"),
    "train.distributed_strategy": ("train", "fsdp"),
    "evaluate.num_gpus": ("evaluate", "2"),
    "evaluate.num_nodes": ("evaluate", "2"),
    "inference.num_gpus": ("inference", "2"),
    "inference.num_nodes": ("inference", "2"),
    "export.input_channel": ("export", "1"),
}

# Read by `m2f/config` alone: key -> the keys that take its value.
INSIDE: dict[str, tuple[str, ...]] = {
    "dataset.workers": tuple(f"dataset.{split}.num_workers" for split in ("train", "val", "test"))
}

# Read by a run on a GPU only.
ON_DEVICES = ("train.gpu_ids", "evaluate.gpu_ids", "inference.gpu_ids")
