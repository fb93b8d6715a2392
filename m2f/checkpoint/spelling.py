"""The names of a run's checkpoints, and how one is found by any of its spellings."""

from __future__ import annotations

import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

_SPELLING = re.compile(r"model_epoch[=_-](\d+)(?:[_-]step[=_-](\d+))?\.pth")


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


def numbered(directory: Path) -> list[Path]:
    """Checkpoints of a folder with a number in their name, newest first."""
    return sorted((p for p in directory.glob("*.pth") if _SPELLING.fullmatch(p.name)), key=_age, reverse=True)


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
