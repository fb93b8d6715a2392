from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import yaml

from m2f.config import SpecError, diff_spec, dump_spec, get_cfg, import_projects, load_spec
from m2f.config.reader import SpecLoader

OWN_SPEC = """
results_dir: ./results/quickstart
data:
  type: coco_panoptic
  workers: 2
  train: {name: shapes_panoptic_train, batch_size: 4, num_workers: 1}
  val: {type: coco, name: shapes_instance_val}
train: {num_epochs: 50, optim: {lr: 1e-4, weight_decay: 0, milestones: [44, 48]}}
model:
  object_mask_threshold: 0.
  backbone: {type: efficientvit, efficientvit: {name: b0}}
  sem_seg_head: {num_classes: 5}
wandb: {enable: True, project: x}
gen_trt_engine: {tensorrt: {data_type: fp16}}
export: {gpu_id: 0}
inference:
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


@pytest.mark.realdata
def test_the_published_sample_loads_unedited(oracles):
    cfg = load_spec(oracles.parent / "spec" / "sample_spec.yaml", [])
    assert cfg.dataset.train.type == cfg.dataset.val.type == cfg.dataset.test.type == "coco_panoptic"
    assert cfg.model.object_mask_threshold == 0.0 and type(cfg.model.object_mask_threshold) is float
    assert cfg.dataset.val.target_size == [1024, 1024] and cfg.train.optim.lr == 1e-4
    assert cfg.train.precision == "fp16" and cfg.export.opset_version == 17
    assert cfg.dataset.contiguous_id is False and cfg.is_frozen()


def test_aliases_and_foreign_sections(write, caplog):
    with caplog.at_level(logging.INFO, logger="m2f"):
        cfg = load_spec(write(OWN_SPEC))
    assert [cfg.dataset[s].type for s in ("train", "val", "test")] == ["coco_panoptic", "coco", "coco_panoptic"]
    assert [cfg.dataset[s].num_workers for s in ("train", "val", "test")] == [1, 2, 2]
    assert cfg.train.optim.lr == 1e-4 and cfg.train.optim.weight_decay == 0.0
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    for key in ("wandb.enable", "wandb.project", "gen_trt_engine.tensorrt.data_type", "export.gpu_id"):
        assert key in warnings[0]
    notes = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert sum("'data' is read as 'dataset'" in n for n in notes) == 1
    assert sum("dataset.type" in n for n in notes) == 1 and sum("dataset.workers" in n for n in notes) == 1
    assert cfg.model.backbone.efficientvit.widths == [8, 16, 32, 64, 128]


def test_both_spellings_of_overrides_mix(write):
    words = ["train.optim.lr", "1e-3", "data.train.img_dir=/a=b", "train.optim.milestones=[44,48]"]
    words += [
        "evaluate.checkpoint",
        "model_epoch=049.pth",
        "dataset.type=coco",
        "train.gpu_ids=[0]",
        "train.verbose=True",
    ]
    with pytest.raises(SpecError, match="'data' and 'dataset'"):
        load_spec(write(OWN_SPEC), words)
    cfg = load_spec(write(OWN_SPEC), [word.replace("dataset.type", "data.type") for word in words])
    assert cfg.train.optim.lr == 1e-3 and cfg.dataset.train.img_dir == "/a=b"
    assert cfg.train.optim.milestones == [44, 48] and cfg.evaluate.checkpoint == "model_epoch=049.pth"
    assert [cfg.dataset[s].type for s in ("train", "val", "test")] == ["coco"] * 3 and cfg.train.verbose is True
    assert cfg.source("train.optim.lr") == "command line"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.optim.lr"], "command line: 'train.optim.lr' has no value"),
        (["train.optim.lr", "model.mode=semantic"], "command line: 'train.optim.lr' has no value"),
        (
            ["model.num_classes=3"],
            "command line: unknown key 'model.num_classes'; did you mean 'model.sem_seg_head.num_classes'",
        ),
        (["train.num-epochs=5"], "command line: unknown key 'train.num-epochs'; did you mean 'train.num_epochs'"),
        (["+model_name=x"], "command line: unknown key '\\+model_name'; did you mean 'model_name'.*value: 'x'"),
        (["train=3"], "command line: 'train' is a section"),
        (["train.optim.lr.x=3"], "command line: 'train.optim.lr' must be float, got a section"),
        (["train=3", "train.seed=3"], "command line: 'train.seed' is inside 'train'"),
        (["train..seed=3"], "is no dotted key"),
        (["=3"], "is no dotted key"),
        (["_BASE_=x.yaml"], "'_BASE_' works in files only"),
        (["train.optim.lr=-1"], "command line: 'train.optim.lr' is -1.0: it must be > 0"),
        (["train.optim.lr=fast"], "command line: 'train.optim.lr' must be float, got str 'fast'"),
        (["dataset.train=[]"], "'dataset.train' is a section"),
    ],
)
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(SpecError, match=f".*{message}"):
        load_spec(None, words)


def test_bases_merge_in_order_and_errors_name_the_guilty_file(write):
    write("train: {num_epochs: 3, seed: 5}\ndata: {type: coco}\n", "base/a.yaml")
    write("_BASE_: a.yaml\ntrain: {seed: 6, optim: {lr: 0.5}}\n", "base/b.yaml")
    write("model_name: second\n", "c.yaml")
    child = write("_BASE_: [base/b.yaml, c.yaml]\ntrain: {optim: {lr: 1}}\ndataset: {val: {type: ade}}\n")
    cfg = load_spec(child, ["train.seed", "7"])
    assert (cfg.train.num_epochs, cfg.train.seed, cfg.train.optim.lr, cfg.model_name) == (3, 7, 1.0, "second")
    assert (cfg.dataset.train.type, cfg.dataset.val.type) == ("coco", "ade")
    guilty = write("train: {num_epoch: 3}\n", "base/a.yaml")
    with pytest.raises(SpecError, match=rf"{guilty}: unknown key 'train.num_epoch'; did you mean 'train.num_epochs'"):
        load_spec(child)


def test_circles_and_missing_bases(write):
    first = write("_BASE_: two.yaml\n", "one.yaml")
    write("_BASE_: ./one.yaml\n", "two.yaml")
    with pytest.raises(SpecError, match="circle"):
        load_spec(first)
    with pytest.raises(SpecError, match=r"_BASE_ 'none.yaml' is not there"):
        load_spec(write("_BASE_: none.yaml\n"))
    with pytest.raises(SpecError, match="'_BASE_' must be a path or a list"):
        load_spec(write("_BASE_: 3\n"))


@pytest.mark.parametrize(
    "words", [[], ["train.optim.lr=1e-7", "model_name='1e-4'", "train.freeze=[backbone, '3']", "results_dir=runs #2"]]
)
def test_dump_reads_back_equal(write, words):
    cfg = load_spec(write(OWN_SPEC), words)
    again = load_spec(write(dump_spec(cfg), "dump/spec.yaml"))
    assert again == cfg and dump_spec(again) == dump_spec(cfg)
    with_diff = load_spec(write(diff_spec(cfg), "dump/diff.yaml"))
    with_diff.defrost()
    with_diff.dataset.workers = cfg.dataset.workers
    assert with_diff == cfg


def test_the_diff_of_the_defaults_is_empty():
    assert yaml.load(diff_spec(load_spec(None)), Loader=SpecLoader) == {}


PROJECT = """
from m2f.config import CfgNode
from .part import LOADED
LOADED.append(__name__)
def add_config(cfg):
    cfg.model.gate = CfgNode({"bias": 1.0, "names": []})
    cfg.declare("model.gate.names", str)
"""


@pytest.fixture
def project(write):
    write("LOADED = []\n", "proj/gate/part.py")
    package = write(PROJECT, "proj/gate/__init__.py").parent
    yield package
    for name in [n for n, m in sys.modules.items() if str(package) in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]


def test_a_project_adds_keys_and_is_imported_once(write, project, monkeypatch):
    spec = write("_PROJECTS_: [../]\nmodel: {gate: {bias: 2, names: [a]}}\n", "proj/gate/configs/a.yaml")
    other = write("_PROJECTS_: ['./gate', gate]\n_BASE_: gate/configs/a.yaml\n", "proj/b.yaml")
    cfg = load_spec(spec, ["model.gate.names=[b]"])
    assert cfg.model.gate.bias == 2.0 and cfg.model.gate.names == ["b"] and cfg.projects() == [str(project)]
    monkeypatch.syspath_prepend(project.parent)
    second = load_spec(other, ["_PROJECTS_=[gate]"])
    assert second.projects() == [str(project)]
    modules = import_projects([str(project), "gate", str(project / "__init__.py")])
    assert len({id(m) for m in modules}) == 1 and len(modules[0].LOADED) == 1
    again = load_spec(write(dump_spec(cfg), "elsewhere/spec.yaml"))
    assert again == cfg and again.projects() == cfg.projects()
    assert "gate" not in get_cfg().model
    with pytest.raises(SpecError, match=r"unknown key 'model.gate'"):
        load_spec(None, ["model.gate.bias=1"])
    assert set(yaml.load(diff_spec(cfg), Loader=SpecLoader)) == {"_PROJECTS_", "model"}


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ("./none", None, "there is no none in|there is no __init__.py"),
        ("no_such_module_at_all", None, "there is no module 'no_such_module_at_all'"),
        ("no_such.module", None, "cannot be imported"),
        ("./bad.py", "import no_such_thing\n", "cannot be imported: ModuleNotFoundError"),
        ("./bad.py", "def\n", "cannot be imported: SyntaxError"),
    ],
)
def test_projects_that_fail_are_named(write, entry, code, message):
    if code:
        write(code, "bad.py")
    spec = write(f"_PROJECTS_: {entry}\n")
    with pytest.raises(SpecError, match=message) as error:
        load_spec(spec)
    assert str(error.value).startswith(str(spec))


def test_nothing_is_written(write, tmp_path, monkeypatch):
    spec = write(OWN_SPEC)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    load_spec(spec)
    assert sorted(tmp_path.rglob("*")) == before


def test_nested_yaml_anchors_work(write):
    cfg = load_spec(write("train: &t {num_epochs: 3}\nevaluate: {<<: {checkpoint: a.pth}, batch_size: 2}\n"))
    assert cfg.train.num_epochs == 3 and cfg.evaluate.checkpoint == "a.pth" and cfg.evaluate.batch_size == 2
