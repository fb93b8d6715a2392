"""What is done: one line of JSON per finished image, behind a head that says what the lines are about."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from m2f.data.datasets.json_file import parse_json

JOURNAL = "predictions.jsonl"


class Journal:
    """A file of lines that a killed process leaves usable: at most the last line is cut short.

    Args:
        path: of the file.
        head: plain containers; a journal with another head is another run's.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self._head = json.loads(json.dumps(head))

    def start(self) -> None:
        """Begin a new one, in the place of any that is there."""
        write_whole(self.path, [json.dumps(self._head), "\n"])

    def resume(self) -> None:
        """Go on with the one that is there; a last line cut short is dropped.

        Raises:
            ValueError: its head is another one.
        """
        _cut_after_last_line(self.path)
        with self.path.open("rb") as file:
            head = parse_json(file.readline(), str(self.path))
        for key, value in self._head.items():
            found = head.get(key) if isinstance(head, dict) else None
            if found != value:
                raise ValueError(
                    f"{self.path} cannot be gone on with: its predictions have {key} {_short(found)}, this run has "
                    f"{_short(value)}; start afresh, or choose another folder"
                )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add an image; after that it is done."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with self.path.open("a") as file:
            file.write(line)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The images, in the order in which they were finished; a last line cut short is none.

        Raises:
            ValueError: a line is damaged.
        """
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if number and line.endswith(b"\n"):
                    yield parse_json(line, str(self.path), number)


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write a text file that has its name only once it is complete."""
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("w") as file:
        file.writelines(parts)
    os.replace(partial, path)


def _cut_after_last_line(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail:
            step = min(end, 2**16)
            end = file.seek(end - step)
            tail = file.read(step)
        file.truncate(end + tail.rfind(b"\n") + 1)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
