"""Files and folders that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from m2f.checkpoint.atomic import replace_directory, replace_file


def _text(words: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(words)

    return write


def _folder(words: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (path / "file").write_text(words)

    return write


def _broken(path: Path) -> None:
    (path / "half" if path.is_dir() else path).write_text("half")
    raise OSError("no space left")


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for words in ("one", "two"):
        replace_file(path, _text(words))
        assert path.read_text() == words
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for words in ("one", "two"):
        replace_directory(path, _folder(words))
        assert (path / "file").read_text() == words
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    replace_file(tmp_path / "a.pth", _text("old"))
    replace_directory(tmp_path / "model", _folder("old"))
    with pytest.raises(OSError, match="no space"):
        replace_file(tmp_path / "a.pth", _broken)
    with pytest.raises(OSError, match="no space"):
        replace_directory(tmp_path / "model", _broken)
    assert (tmp_path / "a.pth").read_text() == (tmp_path / "model" / "file").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "model"]


def test_nothing_has_the_final_name_while_it_is_written(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(path: Path) -> None:
        seen.extend(p.name for p in tmp_path.iterdir())
        assert path.name.endswith("model.pth")

    with pytest.raises(FileNotFoundError):  # nothing was written that could be renamed
        replace_file(tmp_path / "model.pth", look)
    replace_directory(tmp_path / "model.pth", look)
    assert "model.pth" not in seen
    assert all(name.startswith(".writing-") for name in seen)
