"""Checkpoint files of a run, found again by any of their names.

They are written so that a crash at any moment leaves the previous one whole.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from m2f.checkpoint.atomic import PARTIAL_PREFIX, replace_file, sync_file
from m2f.checkpoint.formats import load_plain, save_plain
from m2f.checkpoint.spelling import find_checkpoint, numbered
from m2f.encryption import WrongKeyError, require_cryptography

logger = logging.getLogger(__name__)


class Checkpointer:
    """The checkpoints of one results folder.

    Args:
        directory: the folder; made when the first checkpoint is saved.
        model_name: prefix of the two moving names, `<model_name>_model_latest.pth` and `<model_name>_model_best.pth`.
        key: encrypts what is written, and decrypts what is read; empty: nothing is encrypted.

    Raises:
        ModuleNotFoundError: there is a key, and the package that encrypts is not installed.
    """

    def __init__(self, directory: str | Path, model_name: str, key: str = "") -> None:
        if key:
            require_cryptography()
        self._key = key
        self.directory = Path(directory)
        self.latest_path = self.directory / f"{model_name}_model_latest.pth"
        self.best_path = self.directory / f"{model_name}_model_best.pth"

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Write `state` as `name` and let the latest name refer to it.

        Raises:
            TypeError: `state` holds something other than tensors and plain containers, which could not be read back.
        """
        path = self._write(self.directory / name, state)
        replace_file(self.latest_path, lambda partial: _link_or_copy(path, partial))
        return path

    def save_best(self, state: dict[str, Any]) -> Path:
        """Write `state` under the best name; the latest name stays where it is, so a resumed run never steps back."""
        return self._write(self.best_path, state)

    def _write(self, path: Path, state: dict[str, Any]) -> Path:
        _require_plain(state, "state")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda partial: save_plain(partial, state, self._key))
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
        newest = numbered(self.directory)
        return newest[0] if newest else None

    def load_latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Read the checkpoint to resume from, with its path; None where the latest name is not there.

        To remove that name alone is the documented way to start afresh. A damaged file can only come from outside, as
        writes are atomic: it is passed over with a warning for the newest numbered one that is whole. One that has
        another key is not damaged: an older one, of before the key was changed, would not be what the user wants.

        Raises:
            ValueError: there are checkpoints, and none can be read; or the newest that is whole has another key.
        """
        if not self.latest_path.is_file():
            return None
        paths = [self.latest_path, *numbered(self.directory)]
        for path in paths:
            try:
                return path, load_file(path, self._key)
            except WrongKeyError:
                raise
            except ValueError as error:
                logger.warning("%s; FALLING BACK to the next older checkpoint", error)
        raise ValueError(
            f"{self.directory}: none of its {len(paths)} checkpoints can be read; "
            "to start afresh set train.resume: never or another train.results_dir"
        )


def load_file(path: str | Path, key: str = "") -> dict[str, Any]:
    """Read a checkpoint into CPU memory; only tensors and plain containers are accepted, never code.

    Raises:
        FileNotFoundError: see `find_checkpoint`.
        ValueError: the file is damaged, is no checkpoint, or is encrypted with another key.
    """
    return load_plain(find_checkpoint(path), key)


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for `source` without its bytes where the file system can, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_file(target)


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
