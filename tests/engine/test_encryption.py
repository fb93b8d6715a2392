"""A run with `encryption_key`: its files tell nobody anything, and every task goes on from them with the key alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from m2f import encryption
from m2f.checkpoint.checkpointer import load_file
from m2f.checkpoint.loading import read_state
from m2f.checkpoint.writing import Weights, write_weights
from m2f.config import load_spec
from m2f.data.build import entries, load_dataset
from m2f.encryption import is_encrypted, open_decrypted
from m2f.engine.convert import convert
from m2f.engine.run import main
from m2f.engine.trainer import DefaultTrainer
from m2f.modeling.build import build_model

pytest.importorskip("cryptography")
KEY = "a-key-that-nobody-has"
STEPS = ["train.iters_per_epoch=1", "train.num_epochs=2", "train.num_visualizations=0"]
UNSEEN = "dataset.val.name="
Run = Callable[..., int]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in no time; a file says itself how its key was derived."""
    monkeypatch.setattr(encryption, "_LOG_N", 1)


@pytest.fixture
def run(spec_file: Path) -> Run:
    def start(folder: Path, *words: str, key: str = KEY) -> int:
        secret = [f"encryption_key={key}"] if key else []
        return main(["-e", str(spec_file), *secret, f"results_dir={folder}", *STEPS, *words])

    return start


@pytest.fixture
def source(spec_file: Path, tmp_path: Path) -> Path:
    """Weights and spec, encrypted."""
    cfg = load_spec(spec_file)
    classes = load_dataset(entries(cfg, "val")[0]).metadata
    weights = Weights(build_model(cfg, classes).state_dict(), tuple(classes.names), classes, cfg)
    write_weights(weights, "m2f", tmp_path / "source.pth", key=KEY)
    return tmp_path / "source.pth"


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
    if isinstance(one, (dict, list, tuple)):
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_equal(one[key], other[key])
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_run_leaves_no_trace_of_its_key_and_goes_on_bit_for_bit(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, "train.best_metric=val_loss", "train.best_mode=min") == 0
    first = whole / "train" / "model_epoch_000.pth"
    again = ["train.best_metric=val_loss", "train.best_mode=min", f"train.resume_training_checkpoint_path={first}"]
    assert run(parts, *again) == 0
    name = "mask2former_model_latest.pth"
    one, other = (load_file(folder / "train" / name, KEY) for folder in (whole, parts))
    assert "encryption_key: ''" in one["spec"]
    assert one.pop("spec") != other.pop("spec")  # the folder
    assert_equal(one, other)

    checkpoints = [*whole.rglob("*.pth"), *parts.rglob("*.pth")]
    assert {path.name for path in checkpoints} >= {name, "mask2former_model_best.pth", "model_epoch_001.pth"}
    assert all(is_encrypted(path) for path in checkpoints)
    contents = [open_decrypted(path, KEY).read() for path in checkpoints]
    contents += [path.read_bytes() for folder in (whole, parts) for path in folder.rglob("*") if path.is_file()]
    contents += [text.encode() for text in capsys.readouterr()]
    assert len(contents) > 2 * len(checkpoints)
    assert not any(KEY.encode() in content for content in contents)
    assert b"encryption_key=<hidden>" in (whole / "train" / "log.txt").read_bytes()


def test_with_another_key_a_run_is_neither_evaluated_nor_resumed_nor_begun_anew(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "train"
    assert run(tmp_path / "run", UNSEEN, "train.max_iters=1") == 0
    assert run(tmp_path / "run", "--eval-only") == 0
    before = {path: path.read_bytes() for path in folder.glob("*.pth")}
    capsys.readouterr()
    latest = folder / "mask2former_model_latest.pth"
    for key, words in (("", " is encrypted; set encryption_key"), ("other", ": wrong encryption_key")):
        for task in ("--eval-only", UNSEEN):
            assert run(tmp_path / "run", task, key=key) == 2
            assert error_line(capsys).startswith(f"error: {latest}{words}")
    assert {path: path.read_bytes() for path in folder.glob("*.pth")} == before


def test_training_begins_with_encrypted_weights(source: Path, spec_file: Path) -> None:
    words = [f"train.pretrained_model_path={source}", f"encryption_key={KEY}"]
    trainer = DefaultTrainer(load_spec(spec_file, words))
    trainer.resume_or_load()
    assert_equal(dict(trainer.model.state_dict()), read_state(source, key=KEY)[0])


def test_without_the_package_nothing_is_trained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert run(tmp_path / "run", UNSEEN) == 2
    assert 'pip install "m2f[encryption]"' in error_line(capsys)
    assert not (tmp_path / "run" / "train" / "metrics.json").exists()


def test_a_conversion_keeps_the_key_changes_it_or_takes_it_off(source: Path, tmp_path: Path) -> None:
    words, weights = [f"encryption_key={KEY}"], read_state(source, key=KEY)[0]
    for name, asked, key in (("same", None, KEY), ("other", "new", "new"), ("plain", "", "")):
        target = tmp_path / f"{name}.pth"
        done = convert(source, "m2f", target, overrides=words, output_key=asked)
        assert (", encrypted," in done.written) == is_encrypted(target) == bool(key)
        state, info = read_state(target, key=key)
        assert_equal(state, weights)
        assert KEY not in info.rest["spec"]


def test_a_spec_brings_the_key_of_a_conversion(source: Path, spec_file: Path, tmp_path: Path) -> None:
    spec = tmp_path / "with_key.yaml"
    spec.write_text(yaml.safe_dump({"_BASE_": str(spec_file), "encryption_key": KEY}))
    convert(source, "m2f", tmp_path / "out.pth", spec=spec)
    assert_equal(read_state(tmp_path / "out.pth", key=KEY)[0], read_state(source, key=KEY)[0])


def test_weights_for_others_are_plain_on_demand_alone(source: Path, tmp_path: Path) -> None:
    words = [f"encryption_key={KEY}"]
    with pytest.raises(ValueError, match=r"official files are not encrypted.*an empty --output-key"):
        convert(source, "official", tmp_path / "out.pkl", overrides=words)
    done = convert(source, "official", tmp_path / "out.pkl", overrides=words, output_key="")
    assert "encrypted" not in done.written
    assert_equal(read_state(tmp_path / "out.pkl")[0], read_state(source, key=KEY)[0])


@pytest.mark.parametrize(
    ("words", "message"), [([], "set encryption_key"), (["encryption_key=other"], "wrong encryption_key")]
)
def test_a_conversion_without_the_right_key_writes_nothing(
    source: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(source, "m2f", tmp_path / "out.pth", overrides=words)
    assert not (tmp_path / "out.pth").exists()
