"""No key is dead: each is read outside `m2f/config` by real runs, and something that has a name changes with it.

`key_table.py` has another value for every key and the observable that shows it; `observables.py` has the observables.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, ImageOps

import m2f
from m2f.config import CfgNode, SpecError, check_task, get_cfg, load_spec
from m2f.config.reader import read_value
from m2f.data.build import entries
from m2f.data.datasets.shapes import FOLDER, write_shapes
from m2f.engine.jobs import JOBS
from m2f.engine.run import main
from m2f.engine.trainer import DefaultTrainer

PACKAGE = Path(m2f.__file__).parent


def _load(path: Path) -> ModuleType:
    """A module of the tests, which are no package under pytest's importlib mode."""
    name = f"m2f_tests_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
observables, probes, recording, table = (
    _load(HERE / f"{name}.py") for name in ("observables", "probes", "recording", "key_table")
)
KEYS = [key for key, _ in get_cfg().leaves()]
CONTEXTS = sorted({(row.observable, row.context) for row in table.TABLE})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Folders that a row may name: the embedded data, the same mirrored with short lists, tiny sets, a trained run."""
    root = tmp_path_factory.mktemp("world")
    folders = {"shapes": root / FOLDER, **{name: root / name for name in ("mirrored", "made", "trained")}}
    write_shapes(folders["shapes"], {"train": 4, "val": 2})
    write_shapes(folders["mirrored"], {"train": 4, "val": 2})
    write_shapes(root / "short", {"train": 1, "val": 1})
    shutil.copytree(root / "short" / "annotations", folders["mirrored"] / "annotations", dirs_exist_ok=True)
    for path in folders["mirrored"].rglob("*.png"):
        ImageOps.mirror(Image.open(path)).save(path)
    label_map = folders["mirrored"] / "label_map.json"
    label_map.write_text(label_map.read_text().replace("disc", "coin"))
    builders = _load(HERE.parent / "data" / "builders.py")
    builders.write_instances(folders["made"])
    builders.write_panoptic(folders["made"])
    builders.write_pairs(folders["made"])
    with pytest.MonkeyPatch.context() as patch, probes.registered():
        patch.setenv("M2F_DATASETS", str(root))
        patch.chdir(root)
        trained = [*table.BASE, f"train.results_dir={folders['trained']}"]
        trainer = DefaultTrainer(load_spec(None, trained))
        trainer.train()
        _answer(trained, folders["trained"])
        yield folders
    _undo_logging()


def _answer(words: list[str], folder: Path) -> None:
    """Leave saved predictions and an inference beside a trained run."""
    settings = (f"evaluate.results_dir={folder}", "evaluate.save_predictions=True", "inference.tasks=[panoptic]")
    cfg = load_spec(None, [*words, *settings, f"inference.results_dir={folder / 'inference'}"])
    for task in ("evaluate", "inference"):
        job = JOBS[task](cfg, DefaultTrainer)
        job.prepare()
        job.run()


def _undo_logging() -> None:
    """Take back what the command did to m2f's logger; tests that come later listen to it."""
    root = logging.getLogger("m2f")
    root.propagate = True
    root.setLevel(logging.NOTSET)
    for handler in [h for h in root.handlers if type(h) in (logging.StreamHandler, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


Spec = Callable[..., CfgNode]


@pytest.fixture(scope="module")
def spec(world: dict[str, Path]) -> Spec:
    """The table's base and a context as a file, and a change of it on the command line."""

    def load(context: Sequence[str] = (), *change: str) -> CfgNode:
        file = Path("spec.yaml")
        file.write_text(yaml.safe_dump(_nested(word.format(**world) for word in (*table.BASE, *context))))
        return load_spec(file, [word.format(**world) for word in change])

    return load


def _nested(words: Iterable[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = read_value(key, value)
    return tree


@pytest.fixture(scope="module")
def seen() -> dict[tuple[str, tuple[str, ...]], Any]:
    """What was seen of the unchanged contexts."""
    return {}


def _observe(name: str, cfg: CfgNode) -> Any:
    torch.manual_seed(0)
    return getattr(observables, name)(cfg)


def _outside(readers: set[str]) -> list[str]:
    return [reader for reader in readers if PACKAGE in Path(reader).parents]


# Every key is somewhere.


def test_every_key_has_a_row_or_a_refusal() -> None:
    shown = {row.key for row in table.TABLE}
    assert [key for key in KEYS if key not in {*shown, *table.REFUSED}] == []
    assert sorted({*shown, *table.REFUSED} - set(KEYS)) == []
    assert not shown & set(table.REFUSED)


# What is seen changes with the key, and with nothing else.


def _require_packages(context: Sequence[str]) -> None:
    if "model.backbone.type=timm" in context:
        pytest.importorskip("timm")


@pytest.mark.parametrize("row", table.TABLE, ids=lambda row: row.key)
def test_something_changes_with(row: Any, spec: Spec, seen: dict[Any, Any]) -> None:
    _require_packages(row.context)
    place = row.observable, row.context
    if place not in seen:
        seen[place] = _observe(row.observable, spec(row.context))
    changed = recording.record(spec(row.context, f"{row.key}={row.value}"))
    assert _observe(row.observable, changed) != seen[place]
    if row.key not in table.INSIDE:
        assert _outside(changed.reads[row.key])


@pytest.mark.parametrize(("observable", "context"), CONTEXTS, ids=lambda part: part if isinstance(part, str) else "")
def test_nothing_changes_with_a_strangers_key(
    observable: str, context: tuple[str, ...], spec: Spec, seen: dict[Any, Any]
) -> None:
    """So that an observable which is never twice the same cannot pass for one that shows a key."""
    _require_packages(context)
    place = observable, context
    if place not in seen:
        seen[place] = _observe(observable, spec(context))
    stranger = "inference.min_score=0.5" if observable == "export" else "export.parity_count=9"
    assert _observe(observable, spec(context, stranger)) == seen[place]


# What cannot be honoured is refused by name.


@pytest.mark.parametrize("key", table.REFUSED)
def test_what_cannot_be_honoured_is_refused(key: str, spec: Spec) -> None:
    task, value = table.REFUSED[key]
    check_task(spec(), task)
    with pytest.raises(SpecError, match=f"'{key}' is "):
        check_task(spec((), f"{key}={value}"), task)


@pytest.mark.parametrize("key", table.INSIDE)
def test_a_key_that_config_reads_becomes_others(key: str, spec: Spec) -> None:
    before, after = dict(spec().leaves()), dict(spec((), f"{key}=1").leaves())
    assert {name for name in KEYS if before[name] != after[name]} == {key, *table.INSIDE[key]}


# Real runs read everything else.

RUNS: dict[str, tuple[str, ...]] = {
    "panoptic": ("model.backbone.type=efficientvit", "evaluate.tasks=[panoptic, semantic, instance]"),
    "panoptic from paths": (
        *("dataset.train.type=coco_panoptic", "dataset.train.panoptic_json=annotations/panoptic_train.json"),
        *("dataset.train.img_dir=images/train", "dataset.train.panoptic_dir=panoptic_train", "dataset.val.name="),
        *("dataset.root_dir={shapes}", "model.sem_seg_head.pixel_decoder=FPNPixelDecoder"),
        *("train.optim.lr_scheduler=Cosine", "train.resume=never", *table.TIMM),
    ),
    "instance": (
        *("model.mode=instance", *table.RESNET, "train.optim.type=SGD", "train.optim.lr_scheduler=AutoReduce"),
        *("dataset.augmentation.policy=lsj", "dataset.train.sampler=RepeatFactorSampler"),
        *("dataset.train.name=shapes_instance_train", "dataset.val.name=shapes_instance_val"),
        *("model.sem_seg_head.num_classes=4", "train.best_metric=val_loss", "train.accumulate_steps=2"),
        *("train.pretrained_model_path=", "train.clip_grad_type=norm", "train.precision=bf16"),
    ),
    "semantic": (
        *("model.mode=semantic", *table.SWIN, "model.backbone.swin.ape=True", "train.optim.lr_scheduler=StepLR"),
        *("dataset.train.type=ade", "dataset.train.img_dir=images/train", "dataset.train.mask_dir=semantic_train"),
        *("dataset.val.type=ade", "dataset.val.annot_file=annotations/semantic_val.jsonl"),
        *("dataset.train.root_dir={shapes}", "dataset.val.root_dir={shapes}"),
    ),
    "warm-up": ("train.optim.lr_scheduler=WarmupPoly", "train.optim.warmup_iters=2"),
    "evaluation": ("--eval-only", "evaluate.checkpoint={trained}/model_epoch_000.pth"),
}
CHECKPOINT = "{task}.checkpoint={{trained}}/model_epoch_000.pth"
JOB_RUNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("evaluate", ("evaluate.tile_size=[48, 48]",)),
    ("inference", ("inference.tta_flip=True",)),
    ("inference", ("inference.tile_size=[48, 48]", "dataset.test.name=", "dataset.test.img_dir={shapes}/images/val")),
    ("export", ("export.input_height=64", "export.input_width=64")),
)


def _runs_reads(words: tuple[str, ...], world: dict[str, Path]) -> dict[str, set[str]]:
    """Who read which key while the command ran."""
    recorded = []

    class Recorded(DefaultTrainer):
        def __init__(self, cfg: CfgNode, task: Any) -> None:
            recorded.append(recording.record(cfg))
            super().__init__(recorded[0], task)

    arguments = [word.format(**world) for word in (*table.BASE, *words)]
    assert main(arguments, Recorded) == 0
    observables.emptied(Path("out"))
    return dict(recorded[0].reads)


def test_real_runs_read_every_key(world: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    read: set[str] = set()
    for words in RUNS.values():
        reads = _runs_reads(words, world)
        read |= {key for key, readers in reads.items() if _outside(readers)}
    for task, words in JOB_RUNS:
        given = [word.format(**world) for word in (*table.BASE, CHECKPOINT.format(task=task), *words)]
        cfg = recording.record(load_spec(None, given))
        job = JOBS[task](cfg, DefaultTrainer)
        job.prepare()
        job.run()
        observables.emptied(Path("out"))
        read |= {key for key, readers in cfg.reads.items() if _outside(readers)}
    exempt = {*table.REFUSED, *table.INSIDE, *table.ON_DEVICES}
    assert [key for key in KEYS if key not in read] == [key for key in KEYS if key in exempt]


# Two keys that need more than a row.


def test_no_key_hides_behind_a_method() -> None:
    """`cfg.train.freeze` is the method of every section; that key, TAO's, is read as `cfg.train["freeze"]`."""
    names = {(key, name) for key in KEYS for name in key.split(".")}
    assert {key for key, name in names if hasattr(CfgNode, name) or hasattr(CfgNode(), name)} == {"train.freeze"}
    assert load_spec(None, ["train.freeze=[backbone]"]).train["freeze"] == ["backbone"]


def test_a_root_on_the_command_line_may_be_relative(spec: Spec, world: dict[str, Path]) -> None:
    words = ["dataset.val.type=ade", "dataset.val.annot_file=annotations/semantic_val.jsonl"]
    cfg = spec((), f"dataset.root_dir={FOLDER}", *words, "dataset.val.mask_dir=semantic_val")
    (entry,) = entries(cfg, "val")
    assert (entry.root_dir, entry.image_dir, entry.mask_dir) == (FOLDER, "", f"{FOLDER}/semantic_val")
    assert entry.existing("annotations") == str(world["shapes"] / "annotations" / "semantic_val.jsonl")
    (entry,) = entries(spec((), f"dataset.root_dir={FOLDER}", *words, "dataset.val.root_dir=elsewhere"), "val")
    assert (entry.root_dir, entry.annotations) == ("elsewhere", "elsewhere/annotations/semantic_val.jsonl")
    with pytest.raises(FileNotFoundError, match=r"dataset\.val\.annot_file: no such file: elsewhere/annotations"):
        entry.existing("annotations")
    (entry,) = entries(spec((), "dataset.root_dir=nowhere", *words), "val")
    with pytest.raises(FileNotFoundError, match=r"^dataset\.root_dir: no such folder: nowhere$"):
        entry.existing("root_dir")
