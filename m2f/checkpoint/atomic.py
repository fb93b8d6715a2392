"""Files and folders that appear under their name whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

# What has this prefix is a write that has not ended; whoever finds one later may delete it.
PARTIAL_PREFIX = ".writing-"
_OLD_PREFIX = ".replaced-"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it there in one step that survives a power cut."""
    partial = _sibling(path, PARTIAL_PREFIX)
    partial.unlink(missing_ok=True)
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        # Renaming a hard link onto another name of the same file does nothing, so the partial name may still be there.
        partial.unlink(missing_ok=True)
    _sync_directory(path.parent)


def replace_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `path`, then rename it.

    No file system exchanges two folders in one step that Python offers: a folder that is there already is renamed
    first, and between the two steps there is none.
    """
    partial, old = _sibling(path, PARTIAL_PREFIX), _sibling(path, _OLD_PREFIX)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write(partial)
        _sync_directory(partial)
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)
    _sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Wait until the bytes of a written file are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sibling(path: Path, prefix: str) -> Path:
    """With the same ending, which may say what is to be written."""
    return path.with_name(f"{prefix}{os.getpid()}-{path.name}")


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
