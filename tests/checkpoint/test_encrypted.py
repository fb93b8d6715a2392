"""Encrypted checkpoints keep every promise of plain ones, and a wrong key is never taken for damage."""

from __future__ import annotations

import io
import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from m2f import encryption
from m2f.checkpoint.checkpointer import Checkpointer, load_file
from m2f.checkpoint.loading import load_weights, read_state
from m2f.checkpoint.spelling import checkpoint_name
from m2f.checkpoint.writing import HOMES, Weights, write_weights
from m2f.encryption import WrongKeyError, is_encrypted, write_encrypted

pytest.importorskip("cryptography")
KEY = "a key that nobody has"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in no time; a file says itself how its key was derived."""
    monkeypatch.setattr(encryption, "_LOG_N", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def checkpointer(folder: Path) -> Checkpointer:
    return Checkpointer(folder, "mask2former", KEY)


def state(number: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((1000,), float(number))}, "iteration": number}


def iteration(found: tuple[Path, dict[str, Any]] | None) -> int:
    assert found is not None
    return found[1]["iteration"]


def damage(path: Path) -> None:
    """Change a byte in the middle of one name of a file, not of the others that are linked to it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_latest_best_and_numbered_are_encrypted_and_come_back(checkpointer: Checkpointer, folder: Path) -> None:
    for number in range(2):
        checkpointer.save(checkpoint_name(number), state(number))
    checkpointer.save_best(state(0))
    assert len(list(folder.iterdir())) == 4
    assert all(is_encrypted(path) for path in folder.iterdir())
    assert checkpointer.latest_path.samefile(folder / "model_epoch_001.pth")
    assert iteration(checkpointer.load_latest()) == 1
    assert load_file(checkpointer.best_path, KEY)["iteration"] == 0
    assert torch.equal(load_file(folder / "model_epoch=001.pth", KEY)["model"]["weight"], torch.ones(1000))


@pytest.mark.parametrize("key", ["", "another key"])
def test_another_key_is_an_error_and_no_older_checkpoint_is_taken(
    folder: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    Checkpointer(folder, "mask2former").save(checkpoint_name(0), state(0))
    Checkpointer(folder, "mask2former", "another key").save(checkpoint_name(1), state(1))
    Checkpointer(folder, "mask2former", KEY).save(checkpoint_name(2), state(2))
    with pytest.raises(WrongKeyError, match=r"mask2former_model_latest\.pth.* encryption_key"):
        Checkpointer(folder, "mask2former", key).load_latest()
    assert caplog.text == ""


def test_damage_is_passed_over_loudly(
    checkpointer: Checkpointer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        checkpointer.save(checkpoint_name(number), state(number))
    for path in (checkpointer.latest_path, folder / "model_epoch_002.pth"):
        damage(path)
    with caplog.at_level(logging.WARNING):
        assert iteration(checkpointer.load_latest()) == 1
    assert caplog.text.count("the encryption_key is right, but the file is damaged or cut off; FALLING BACK") == 2


def test_a_run_may_begin_to_encrypt(checkpointer: Checkpointer, folder: Path) -> None:
    Checkpointer(folder, "mask2former").save(checkpoint_name(0), state(0))
    assert iteration(checkpointer.load_latest()) == 0
    checkpointer.save(checkpoint_name(1), state(1))
    assert [is_encrypted(folder / checkpoint_name(number)) for number in range(2)] == [False, True]
    assert iteration(checkpointer.load_latest()) == 1


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_previous_one(
    checkpointer: Checkpointer, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    checkpointer.save("model_epoch_000.pth", state(1))

    def crash(*_: Any) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, crash)
        with pytest.raises(OSError, match="disk is gone"):
            checkpointer.save("model_epoch_000.pth", state(2))
    assert iteration(checkpointer.load_latest()) == 1
    assert len(list(folder.iterdir())) == 2


def test_a_full_disk_leaves_the_previous_one(checkpointer: Checkpointer, folder: Path) -> None:
    checkpointer.save("model_epoch_000.pth", state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpointer.save("model_epoch_000.pth", {"model": {"weight": torch.zeros(10**6)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert iteration(checkpointer.load_latest()) == 1
    assert len(list(folder.iterdir())) == 2


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("read", [load_file, read_state])
@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (saved({"model": _Code()}), r"code of a file is never run"),
        (saved([1]), r"holds a list, not a dict"),
        (saved({"model": {"a": torch.ones(3)}})[:-40], r"model\.pth: not a readable checkpoint: "),
        (b"", r"it is empty"),
        (b'{"weights": 1}', r"it is JSON"),
        (bytes(8) + b"{}", r"torch.save did not write what is encrypted in it|of no known kind"),
    ],
)
def test_what_is_inside_is_read_as_carefully_as_what_is_plain(
    tmp_path: Path, read: Callable[..., Any], inside: bytes, message: str
) -> None:
    write_encrypted(tmp_path / "model.pth", inside, KEY)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "model.pth", key=KEY)


def model() -> nn.Module:
    return nn.ModuleDict({part: nn.Linear(2, 2) for part in ("backbone", "pixel_decoder", "transformer_decoder")})


def test_weights_are_read_with_the_key_and_plain_ones_with_any(tmp_path: Path) -> None:
    source, target = model(), model()
    for key in (KEY, ""):
        path = tmp_path / f"{bool(key)}.pth"
        write_weights(Weights(source.state_dict()), "m2f", path, key=key)
        assert is_encrypted(path) == bool(key)
        report = load_weights(target, path, key=KEY)
        assert report.fresh == ()
        assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())
    before = target.state_dict()["backbone.weight"].clone()
    with pytest.raises(ValueError, match=r"True\.pth is encrypted; set encryption_key"):
        load_weights(target, tmp_path / "True.pth", part="backbone")
    with pytest.raises(ValueError, match=r"True\.pth: wrong encryption_key"):
        load_weights(target, tmp_path / "True.pth", key="other")
    assert torch.equal(before, target.state_dict()["backbone.weight"])


@pytest.mark.parametrize("home", [home for home in HOMES if home != "m2f"])
def test_other_homes_are_never_encrypted_nor_silently_plain(tmp_path: Path, home: str) -> None:
    with pytest.raises(ValueError, match=rf"{home} files are not encrypted, as only m2f could read them"):
        write_weights(Weights(model().state_dict()), home, tmp_path / "out", key=KEY)
    assert list(tmp_path.iterdir()) == []
