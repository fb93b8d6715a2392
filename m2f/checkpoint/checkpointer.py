"""Checkpoint files of a run, found again by any of their names.

They are written so that a crash at any moment leaves the previous one whole.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# A file under this name is a write that has not ended; whoever finds one later may delete it.
PARTIAL_PREFIX = ".writing-"
_SPELLING = re.compile(r"model_epoch[=_-](\d+)(?:[_-]step[=_-](\d+))?\.pth")
_UNPICKLING = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, LookupError, AttributeError)
_DAMAGE = (*_UNPICKLING, RuntimeError, ValueError, OSError)


class Checkpointer:
    """The checkpoints of one results folder.

    Args:
        directory: the folder; made when the first checkpoint is saved.
        model_name: prefix of the two moving names, `<model_name>_model_latest.pth` and `<model_name>_model_best.pth`.
    """

    def __init__(self, directory: str | Path, model_name: str) -> None:
        self.directory = Path(directory)
        self.latest_path = self.directory / f"{model_name}_model_latest.pth"
        self.best_path = self.directory / f"{model_name}_model_best.pth"

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Write `state` as `name` and let the latest name refer to it.

        Raises:
            TypeError: `state` holds something other than tensors and plain containers, which could not be read back.
        """
        path = self._write(self.directory / name, state)
        _replace(self.latest_path, lambda partial: _link_or_copy(path, partial))
        return path

    def save_best(self, state: dict[str, Any]) -> Path:
        """Write `state` under the best name; the latest name stays where it is, so a resumed run never steps back."""
        return self._write(self.best_path, state)

    def _write(self, path: Path, state: dict[str, Any]) -> Path:
        _require_plain(state, "state")
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, lambda partial: _write_through(partial, state))
        return path

    def remove_partial(self) -> None:
        """Delete what killed runs left half-written."""
        for path in self.directory.glob(f"{PARTIAL_PREFIX}*"):
            logger.info("removing %s: a run was stopped while writing it", path)
            path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete the checkpoint called `name`, if it is there."""
        (self.directory / name).unlink(missing_ok=True)

    def latest(self) -> Path | None:
        """The newest checkpoint of the folder under whatever name, or None."""
        if self.latest_path.is_file():
            return self.latest_path
        newest = self._numbered()
        return newest[0] if newest else None

    def load_latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Read the checkpoint to resume from, with its path; None where the latest name is not there.

        To remove that name alone is the documented way to start afresh. A damaged file can only come from outside, as
        writes are atomic: it is passed over with a warning for the newest numbered one that is whole.

        Raises:
            ValueError: there are checkpoints, and none can be read.
        """
        if not self.latest_path.is_file():
            return None
        paths = [self.latest_path, *self._numbered()]
        for path in paths:
            try:
                return path, load_file(path)
            except ValueError as error:
                logger.warning("%s; FALLING BACK to the next older checkpoint", error)
        raise ValueError(
            f"{self.directory}: none of its {len(paths)} checkpoints can be read; "
            "to start afresh set train.resume: never or another train.results_dir"
        )

    def _numbered(self) -> list[Path]:
        """Checkpoints with a number in their name, newest first."""
        return sorted((p for p in self.directory.glob("*.pth") if _SPELLING.fullmatch(p.name)), key=_age, reverse=True)


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """The documented name, with epochs counted from 0.

    `model_epoch_000.pth` of an epoch, `model_epoch_000_step_00100.pth` of an iteration.
    """
    return f"model_epoch_{epoch:03d}.pth" if step is None else f"model_epoch_{epoch:03d}_step_{step:05d}.pth"


def find_checkpoint(path: str | Path) -> Path:
    """The file at `path`, or the same checkpoint under another of the documented spellings.

    `model_epoch=049.pth`, `model_epoch_049.pth` and `model_epoch_049_step_00500.pth` stand for one another; of several
    steps of an epoch the last is meant, unless the step is named.

    Raises:
        FileNotFoundError: there is none; the message lists what the folder holds.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    asked = _SPELLING.fullmatch(path.name)
    same = [p for p in path.parent.glob("*.pth") if _means_the_same(asked, p.name)] if asked else []
    if same:
        found = max(same, key=_age)
        logger.info("%s does not exist; reading %s, which is the same checkpoint", path, found)
        return found
    held = sorted(p.name for p in path.parent.glob("*.pth"))
    inside = f"{path.parent} holds {', '.join(held)}" if held else f"{path.parent} holds no .pth file"
    raise FileNotFoundError(f"checkpoint {path} does not exist; {inside}")


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory; only tensors and plain containers are accepted, never code.

    Raises:
        FileNotFoundError: see `find_checkpoint`.
        ValueError: the file is damaged or is no checkpoint.
    """
    path = find_checkpoint(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path}: not a readable checkpoint. It is damaged, was not written by torch.save, or holds more than "
            f"tensors and plain containers (then save its state dict alone). torch says: {reason}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not a dict")
    return state


def _means_the_same(asked: re.Match[str] | None, name: str) -> bool:
    there = _SPELLING.fullmatch(name)
    if asked is None or there is None or int(asked[1]) != int(there[1]):
        return False
    return asked[2] is None or there[2] is None or int(asked[2]) == int(there[2])


def _age(path: Path) -> tuple[int, float]:
    """Order of numbered checkpoints: by epoch, then by step; the one without a step closes its epoch."""
    match = _SPELLING.fullmatch(path.name)
    assert match is not None
    return int(match[1]), float(match[2] if match[2] is not None else "inf")


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, then put it there in one step that survives a power cut."""
    partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}-{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        # Renaming a hard link onto another name of the same file does nothing, so the partial name may still be there.
        partial.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _write_through(path: Path, state: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for `source` without its bytes where the file system can, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif value is not None and not isinstance(value, Tensor) and type(value) not in (bool, int, float, str, bytes):
        raise TypeError(
            f"checkpoint {where} is a {type(value).__name__}; only tensors and plain containers can be saved"
        )
