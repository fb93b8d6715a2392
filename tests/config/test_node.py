from __future__ import annotations

import copy
import pickle

import pytest

from m2f.config import CfgNode, SpecError, get_cfg


def merged(update: dict, source: str = "my.yaml") -> CfgNode:
    cfg = get_cfg()
    cfg.merge(update, source)
    return cfg


def test_int_becomes_float_but_float_never_int():
    cfg = merged({"train": {"optim": {"weight_decay": 0}}})
    assert cfg.train.optim.weight_decay == 0.0 and type(cfg.train.optim.weight_decay) is float
    with pytest.raises(SpecError, match=r"my.yaml: 'train.num_epochs' must be int, got float 10.0"):
        merged({"train": {"num_epochs": 10.0}})


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"train": {"num_epochs": True}}, "'train.num_epochs' must be int, got bool True"),
        ({"train": {"verbose": 1}}, "'train.verbose' must be bool, got int 1"),
        ({"train": {"optim": {"lr": "1e-4"}}}, "'train.optim.lr' must be float, got str '1e-4'"),
        ({"train": {"optim": {"lr": None}}}, "'train.optim.lr' must be float, got null"),
        (
            {"train": {"optim": {"milestones": [11, 12.5]}}},
            r"'train.optim.milestones\[1\]' must be int, got float 12.5",
        ),
        ({"train": {"freeze": None}}, r"'train.freeze' must be a list of str, got null; write \[\]"),
        ({"train": {"freeze": [3]}}, r"'train.freeze\[0\]' must be str, got int 3"),
        ({"train": {"gpu_ids": 0}}, r"'train.gpu_ids' must be a list of int, got int 0; write \[0\]"),
        ({"dataset": {"val": {"target_size": ["a"]}}}, r"'dataset.val.target_size\[0\]' must be int, got str 'a'"),
        ({"train": {"optim": {"lr": [1]}}}, "'train.optim.lr' must be float, got a list"),
        ({"train": {"optim": {"lr": {"a": 1}}}}, "'train.optim.lr' must be float, got a section"),
        ({"train": 3}, "'train' is a section with keys .*num_epochs.*; got int 3"),
        ({"model_name": 12}, "'model_name' must be str, got int 12; put it in quotes"),
        ({"train": {"iters_per_epoch": "many"}}, "'train.iters_per_epoch' must be int, got str 'many'"),
    ],
)
def test_wrong_types_name_source_key_and_both_types(update, message):
    with pytest.raises(SpecError, match=f"^my.yaml: {message}"):
        merged(update)


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("model.num_classes", "model.sem_seg_head.num_classes"),
        ("train.lr", "train.optim.lr"),
        ("modle", "model"),
        ("train.optim.lr_schedular", "train.optim.lr_scheduler"),
        ("trian", "train"),
        ("model.pretrained_weights", "model.backbone.pretrained_weights"),
        ("model.num_clases", "model.sem_seg_head.num_classes"),
        ("dataset.batch_size", "dataset.train.batch_size"),
    ],
)
def test_unknown_key_names_the_nearest(key, right):
    update: dict = {}
    inner = update
    *sections, name = key.split(".")
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = 1
    with pytest.raises(SpecError) as error:
        merged(update)
    assert str(error.value) == f"my.yaml: unknown key {key!r}; did you mean {right!r}? (its value: 1)"


def test_null_and_empty_mean_unset_for_text_and_none_for_optional_numbers():
    assert merged({"results_dir": None}).results_dir == ""
    assert merged({"train": {"iters_per_epoch": None}}).train.iters_per_epoch is None
    cfg = merged({"train": {"iters_per_epoch": 7}})
    cfg.merge({"train": {"iters_per_epoch": None}}, "command line")
    assert cfg.train.iters_per_epoch is None
    assert merged({"inference": None}).inference == get_cfg().inference


def test_a_list_keeps_its_element_type_when_it_was_emptied_before():
    cfg = merged({"train": {"optim": {"milestones": []}}})
    with pytest.raises(SpecError, match="must be int, got str"):
        cfg.merge({"train": {"optim": {"milestones": ["x"]}}}, "command line")
    cfg.merge({"train": {"optim": {"milestones": [3]}}}, "command line")
    assert cfg.train.optim.milestones == [3]
    assert cfg.source("train.optim.milestones") == "command line"


def test_every_default_has_a_type():
    for key, value in get_cfg().leaves():
        tree: dict = {}
        inner = tree
        *sections, name = key.split(".")
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = copy.deepcopy(value)
        assert merged(tree).leaf(key) == value


def test_an_untyped_key_of_a_project_must_be_declared():
    cfg = get_cfg()
    cfg.model.mine = CfgNode({"number": None})
    with pytest.raises(TypeError, match=r"cfg.declare"):
        cfg.merge({"model": {"mine": {"number": 3}}}, "my.yaml")
    cfg.declare("model.mine.number", int)
    cfg.merge({"model": {"mine": {"number": 3}}}, "my.yaml")
    assert cfg.model.mine.number == 3


def test_frozen_trees_refuse_both_ways_of_writing():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.train.num_epochs = 3
    with pytest.raises(AttributeError, match="frozen"):
        cfg.train["num_epochs"] = 3
    with pytest.raises(AttributeError):
        cfg.merge({"train": {"num_epochs": 3}}, "my.yaml")


@pytest.mark.parametrize("how", [copy.deepcopy, lambda cfg: pickle.loads(pickle.dumps(cfg))])
def test_copies_are_equal_and_independent(how):
    cfg = merged({"train": {"num_epochs": 3}})
    cfg.freeze()
    twin = how(cfg)
    assert twin == cfg and twin.is_frozen() and twin.source("train.num_epochs") == "my.yaml"
    twin.train.optim.milestones.append(5)
    assert cfg.train.optim.milestones == [11]
