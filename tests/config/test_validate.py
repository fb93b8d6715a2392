from __future__ import annotations

import logging
import re

import pytest

from m2f.config import SpecError, check_task, get_cfg, load_spec
from m2f.config.rules import CHOICES, LENGTHS, RANGES, TASK_RANGES
from m2f.config.variants import ALL


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.mode=boxes"], "'model.mode' is 'boxes': 'boxes' is none of panoptic, semantic, instance"),
        (["train.precision=fp8"], "'train.precision'"),
        (["train.clip_grad_norm=-0.1"], "'train.clip_grad_norm' is -0.1: it must be >= 0"),
        (["model.overlap_threshold=1.5"], "it must be >= 0 and <= 1"),
        (["train.optim.milestones=[48,44]"], "'train.optim.milestones'.*larger than the one before"),
        (["train.optim.milestones=[44,44]"], "'train.optim.milestones'"),
        (["dataset.val.target_size=[640]"], r"'dataset.val.target_size'.*2 elements \[width, height\]"),
        (["dataset.augmentation.train_crop_size=[640]"], r"\[height, width\]"),
        (["dataset.pixel_std=[0.2,0.2,0]"], "'dataset.pixel_std'.*> 0"),
        (["dataset.pixel_mean=[0.5]"], "3 elements"),
        (["model.mask_former.nheads=7"], "multiple of model.mask_former.nheads, 7"),
        (["model.mask_former.hidden_dim=100"], "'model.mask_former.hidden_dim'"),
        (["model.sem_seg_head.convs_dim=48"], "multiple of 32"),
        (["model.backbone.swin.out_features=[res2,res9]"], "'res9' is none of res2"),
        (["model.backbone.swin.out_indices=[0,1,2]"], "in_features.*res5 does not leave the backbone"),
        (
            [
                "model.backbone.type=timm",
                "model.backbone.timm.name=a",
                "model.backbone.timm.out_features=[res2,res3,res4]",
            ],
            r"res5 does not leave the backbone \(model.backbone.timm.out_features\)",
        ),
        (["model.sem_seg_head.common_stride=6"], r"common_stride' is 6: .*strides \[4, 8, 16, 32\]"),
        (["model.sem_seg_head.common_stride=16"], "three feature maps"),
        (["model.backbone.type=resnet", "model.backbone.resnet.out_features=[res3,res4,res5]"], "common_stride' is 4"),
        (["model.backbone.swin.out_indices=[0,4]"], "4 is none of"),
        (["model.backbone.swin.embed_dim=128"], "but model.backbone.swin.type: tiny means 96; .*custom"),
        (["model.backbone.swin.type=enormous"], "one of tiny, small, base, large, huge, custom"),
        (["model.backbone.efficientvit.name=b9"], "one of b0, b1"),
        (["model.backbone.resnet.type=resnet50", "model.backbone.resnet.depth=18"], "means 50"),
        (["model.backbone.swin.type=custom", "model.backbone.swin.num_heads=[5,6,12,24]"], "no multiple of 5"),
        (["dataset.type=coco", "dataset.zero_is_ignore=False"], "'dataset.zero_is_ignore'.*'ade'"),
        (["train.early_stop_patience=3"], "needs train.best_metric"),
        (["train.optim.lr=.nan"], "finite"),
        (["train.optim.lr=.inf"], "finite"),
        (["evaluate.max_dets=[]"], "must not be empty"),
        (["evaluate.tasks=[panoptic,panoptic]"], "twice"),
        (["dataset.augmentation.lsj_min_scale=3."], "lsj_max_scale"),
        (
            ["model.mask_former.class_weight=0", "model.mask_former.mask_weight=0", "model.mask_former.dice_weight=0"],
            "> 0",
        ),
    ],
)
def test_impossible_values_are_refused(words, message):
    with pytest.raises(SpecError, match=message) as error:
        load_spec(None, words)
    assert str(error.value).startswith("command line: ") and "\n" not in str(error.value)


def test_every_rule_names_a_key_of_the_tree():
    cfg = get_cfg()
    for table in (CHOICES, RANGES, LENGTHS, *TASK_RANGES.values()):
        for key in table:
            cfg.leaf(key)


@pytest.mark.parametrize(
    "key", [k for k, v in get_cfg().leaves() if isinstance(v, (int, float)) and not isinstance(v, bool)]
)
def test_every_number_is_limited(key):
    limited = {key for table in (RANGES, CHOICES, *TASK_RANGES.values()) for key in table}
    assert key in limited


@pytest.mark.parametrize(("variants", "name"), [(v, name) for v in ALL for name in v.rows])
def test_a_named_size_fills_its_row_and_a_later_name_overrules_a_saved_row(variants, name, tmp_path):
    section = variants.key.rpartition(".")[0]
    cfg = load_spec(None, [f"{variants.key}={name}"])
    assert tuple(cfg.leaf(f"{section}.{field}") for field in variants.fields) == variants.rows[name]
    spec = tmp_path / "saved.yaml"
    row = {f: v for f, v in zip(variants.fields, variants.rows[name], strict=True)}
    backbone = section.rpartition(".")[2]
    spec.write_text(f"model: {{backbone: {{{backbone}: {row | {variants.key.rpartition('.')[2]: name}}}}}}\n")
    other = next(n for n in variants.rows if n != name)
    assert load_spec(spec).leaf(f"{section}.{variants.fields[0]}") == variants.rows[name][0]
    changed = load_spec(spec, [f"{variants.key}={other}"])
    assert tuple(changed.leaf(f"{section}.{field}") for field in variants.fields) == variants.rows[other]


def test_custom_frees_the_row():
    cfg = load_spec(None, ["model.backbone.swin.type=custom", "model.backbone.swin.embed_dim=24"])
    assert cfg.model.backbone.swin.embed_dim == 24


@pytest.mark.parametrize(
    ("words", "count", "ids"),
    [
        (["train.gpu_ids=[0,1]"], 2, [0, 1]),
        (["train.num_gpus=3"], 3, [0, 1, 2]),
        (["train.num_gpus=1", "train.gpu_ids=[2,3]"], 2, [2, 3]),
        (["train.gpu_ids=[5]"], 1, [5]),
        (["train.gpu_ids=[]"], 1, [0]),
        (["train.num_gpus=3", "train.gpu_ids=[4,5]"], 3, [0, 1, 2]),
    ],
)
def test_the_larger_number_of_gpus_wins(words, count, ids, caplog):
    with caplog.at_level(logging.INFO, logger="m2f"):
        cfg = load_spec(None, words)
    assert (cfg.train.num_gpus, cfg.train.gpu_ids) == (count, ids)
    assert ("larger wins" in caplog.text) == (words != ["train.gpu_ids=[5]"])


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("train", ["train.num_gpus=2"], "'train.num_gpus' is 2"),
        ("train", ["train.gpu_ids=[0,1]"], "'train.num_gpus' is 2"),
        ("train", ["train.num_nodes=2"], "'train.num_nodes' is 2"),
        ("train", ["train.distributed_strategy=fsdp"], "'train.distributed_strategy' is 'fsdp'"),
        ("train", ["train.num_gpus=0", "train.gpu_ids=[]"], "it must be > 0"),
        ("train", ["train.num_gpus=0"], "'train.num_gpus' is 0: it must be > 0"),
        ("train", ["train.best_metric=panoptic/PQ", "model.mode=semantic"], "'train.best_metric'.*semantic only"),
        ("train", ["train.best_metric=semantic/mIoU", "evaluate.tasks=[instance]"], "evaluates instance only"),
        ("evaluate", ["evaluate.trt_engine=a.engine", "evaluate.checkpoint=a.pth"], "'evaluate.trt_engine'.*keep one"),
        ("evaluate", ["evaluate.tile_size=[64, 64]", "evaluate.tta_flip=True"], "exclude each other"),
        ("evaluate", ["evaluate.tile_overlap=1.0"], "it must be > 0 and <= 0.9"),
        ("evaluate", ["evaluate.expected_results=[[panoptic/PQ, 1]]"], "is not .metric, value, tolerance"),
        ("evaluate", ["evaluate.expected_results=[[panoptic/PQ, 1, -1]]"], "is not .metric, value, tolerance"),
        ("inference", ["inference.tile_size=[64, 64]", "inference.tta_scales=[0.5]"], "exclude each other"),
        ("inference", ["inference.tta_scales=[0.0]"], "it must be > 0"),
        ("inference", ["inference.save_overlays=False", "inference.save_predictions=False"], "nothing would be kept"),
        ("inference", ["inference.score_threshold=2.0"], "it must be >= 0 and <= 1"),
        ("evaluate", ["evaluate.num_gpus=2"], "'evaluate.num_gpus' is 2"),
        ("evaluate", ["evaluate.batch_size=0"], "'evaluate.batch_size' is 0: it must be >= -1 and not 0"),
        ("export", ["export.opset_version=0"], "'export.opset_version' is 0"),
        ("export", ["export.input_channel=1"], "'export.input_channel' is 1: it must be 3"),
        ("export", ["export.input_width=100"], "'export.input_width' is 100: it must be a multiple of 32, such as 96"),
        ("export", ["export.input_height=32"], "'export.input_height' is 32: it must be >= 64"),
        ("export", ["export.outputs=panoptic_map", "model.mode=instance"], "'export.outputs'.*only panoptic"),
    ],
)
def test_a_task_refuses_what_it_cannot_honour_and_no_other_task_minds(task, words, message):
    cfg = load_spec(None, words)
    with pytest.raises(SpecError, match=message) as error:
        check_task(cfg, task)
    assert str(error.value).startswith("command line: ")
    check_task(cfg, "evaluate" if task == "train" else "train")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_loss_that_should_rise_is_said(mode, caplog):
    with caplog.at_level(logging.WARNING, logger="m2f"):
        check_task(load_spec(None, ["train.best_metric=val_loss", f"train.best_mode={mode}"]), "train")
    assert ("HIGHEST val_loss" in caplog.text) == (mode == "max")


def test_an_unknown_task_is_our_mistake():
    with pytest.raises(ValueError, match="unknown task 'fly'"):
        check_task(load_spec(None), "fly")


def test_a_key_without_effect_is_mentioned(caplog):
    words = ["model.backbone.type=efficientvit", "model.backbone.efficientvit.pretrain_img_size=224"]
    with caplog.at_level(logging.INFO, logger="m2f"):
        load_spec(None, words)
    assert re.search("pretrain_img_size has no effect", caplog.text)
