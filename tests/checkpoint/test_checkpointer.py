"""Checkpoint files: whole at any moment, found by any of their names."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2f.checkpoint.checkpointer import PARTIAL_PREFIX, Checkpointer, load_file
from m2f.checkpoint.spelling import checkpoint_name, find_checkpoint


@pytest.fixture
def checkpointer(tmp_path: Path) -> Checkpointer:
    return Checkpointer(tmp_path / "run", "mask2former")


def state(number: int) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((1000,), float(number))},
        "iteration": number,
        "hooks": {"h": [None, "x", 0.5]},
    }


def names(checkpointer: Checkpointer) -> set[str]:
    return {path.name for path in checkpointer.directory.iterdir()}


def test_latest_is_the_newest_and_best_never_is(checkpointer: Checkpointer) -> None:
    assert checkpointer.latest() is None
    assert checkpointer.load_latest() is None
    for epoch in range(2):
        checkpointer.save(checkpoint_name(epoch), state(epoch))
    checkpointer.save_best(state(0))
    assert names(checkpointer) == {
        "model_epoch_000.pth",
        "model_epoch_001.pth",
        "mask2former_model_latest.pth",
        "mask2former_model_best.pth",
    }
    found = checkpointer.load_latest()
    assert found is not None
    assert found[0].name == "mask2former_model_latest.pth"
    assert found[1]["iteration"] == 1
    assert load_file(checkpointer.best_path)["iteration"] == 0


def test_saving_a_name_twice_moves_latest_too(checkpointer: Checkpointer) -> None:
    for number in (1, 2, 2):
        checkpointer.save("model_epoch_000.pth", state(number))
    assert load_file(checkpointer.latest_path)["iteration"] == 2
    assert names(checkpointer) == {"model_epoch_000.pth", "mask2former_model_latest.pth"}


def test_removing_a_checkpoint_leaves_latest_whole(checkpointer: Checkpointer) -> None:
    path = checkpointer.save("model_epoch_000.pth", state(0))
    checkpointer.remove(path.name)
    assert load_file(checkpointer.latest_path)["iteration"] == 0


def test_latest_is_a_copy_where_links_are_impossible(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    path = checkpointer.save("model_epoch_000.pth", state(3))
    assert not path.samefile(checkpointer.latest_path)
    assert load_file(checkpointer.latest_path)["iteration"] == 3


def test_a_folder_that_was_copied_still_works(checkpointer: Checkpointer, tmp_path: Path) -> None:
    checkpointer.save("model_epoch_000.pth", state(3))
    shutil.copytree(checkpointer.directory, tmp_path / "copy")
    shutil.rmtree(checkpointer.directory)
    found = Checkpointer(tmp_path / "copy", "mask2former").load_latest()
    assert found is not None
    assert found[1]["iteration"] == 3


@pytest.mark.parametrize("step", ["write", "sync", "replace"])
def test_a_crash_while_writing_leaves_the_previous_one(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    checkpointer.save("model_epoch_000.pth", state(1))

    def crash(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    targets = {"write": (torch, "save"), "sync": (os, "fsync"), "replace": (os, "replace")}
    with monkeypatch.context() as patch:
        patch.setattr(*targets[step], crash)
        with pytest.raises(OSError, match="disk is full"):
            checkpointer.save("model_epoch_000.pth", state(2))
    assert load_file(checkpointer.directory / "model_epoch_000.pth")["iteration"] == 1
    assert load_file(checkpointer.latest_path)["iteration"] == 1
    assert names(checkpointer) == {"model_epoch_000.pth", "mask2former_model_latest.pth"}


def test_half_written_files_are_removed_and_never_read(checkpointer: Checkpointer) -> None:
    checkpointer.save("model_epoch_000.pth", state(1))
    (checkpointer.directory / f"{PARTIAL_PREFIX}model_epoch_001.pth-123").write_bytes(b"half")
    found = checkpointer.load_latest()
    assert found is not None
    assert found[1]["iteration"] == 1
    checkpointer.remove_partial()
    assert names(checkpointer) == {"model_epoch_000.pth", "mask2former_model_latest.pth"}


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_damaged_files_are_passed_over_loudly(
    checkpointer: Checkpointer, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for number in range(3):
        checkpointer.save(checkpoint_name(number), state(number))
    for path in (checkpointer.latest_path, checkpointer.directory / "model_epoch_002.pth"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(
            {"truncated": content[: len(content) // 2], "empty": b"", "other": b"not a checkpoint"}[damage]
        )
    with caplog.at_level(logging.WARNING):
        found = checkpointer.load_latest()
    assert found is not None
    assert found[0].name == "model_epoch_001.pth"
    assert caplog.text.count("not a readable checkpoint") == 2


def test_without_the_latest_name_nothing_is_resumed(checkpointer: Checkpointer) -> None:
    path = checkpointer.save("model_epoch_000.pth", state(1))
    checkpointer.latest_path.unlink()
    assert checkpointer.load_latest() is None
    assert checkpointer.latest() == path  # to evaluate it is no risk


def test_nothing_but_damage_is_an_error(checkpointer: Checkpointer) -> None:
    checkpointer.save("model_epoch_000.pth", state(1))
    for path in checkpointer.directory.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of its 2 checkpoints can be read; .*train.resume: never"):
        checkpointer.load_latest()


def test_a_state_that_could_not_be_read_back_is_refused(checkpointer: Checkpointer) -> None:
    with pytest.raises(TypeError, match=r"state\['hooks'\]\['Best'\]\[1\] is a float64"):
        checkpointer.save("model_epoch_000.pth", {"hooks": {"Best": [0.5, np.float64(0.5)]}})
    assert not checkpointer.directory.exists()


def test_a_file_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_file(tmp_path / "model.pth")


@pytest.mark.parametrize("there", ["model_epoch=049.pth", "model_epoch_049.pth", "model_epoch_049_step_00500.pth"])
@pytest.mark.parametrize("asked", ["model_epoch=049.pth", "model_epoch_049.pth", "model_epoch_049_step_00500.pth"])
def test_spellings_stand_for_one_another(tmp_path: Path, there: str, asked: str) -> None:
    for other in ("model_epoch_048.pth", "model_epoch_050.pth", "mask2former_model_latest.pth"):
        (tmp_path / other).touch()
    (tmp_path / there).touch()
    assert find_checkpoint(tmp_path / asked) == tmp_path / there


def test_a_named_step_is_never_another_step(tmp_path: Path) -> None:
    for step in (400, 500):
        (tmp_path / checkpoint_name(49, step)).touch()
    assert find_checkpoint(tmp_path / "model_epoch=049.pth").name == "model_epoch_049_step_00500.pth"
    with pytest.raises(FileNotFoundError, match=r"holds model_epoch_049_step_00400\.pth, model_epoch_049_step_00500"):
        find_checkpoint(tmp_path / "model_epoch_049_step_00450.pth")


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model_epoch_001.pth").touch()
    assert find_checkpoint("~/model_epoch=001.pth") == tmp_path / "model_epoch_001.pth"


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no \.pth file"):
        find_checkpoint(tmp_path / "model.pth")
