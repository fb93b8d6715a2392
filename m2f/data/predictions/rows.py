"""Rows of large JSON lists: read one at a time, and kept packed by image."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import numpy as np

_CHUNK = 2**20  # characters read at a time
_LONGEST_ROW = 2**26  # characters; what is longer is taken for damage
_BETWEEN = re.compile(r"[\s,]*")
_decode = json.JSONDecoder().raw_decode


def stream_rows(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, never all of them at a time.

    Raises:
        ValueError: the file is no list of objects, or damaged; the message names file and row.
    """
    with open(path, encoding="utf-8-sig") as file:
        text = _more(file, path).lstrip()
        if not text.startswith("["):
            raise ValueError(f"{path}: expected a JSON list")
        place = 1
        for number in itertools.count():
            row, text, place = _next_row(file, text, place, f"{path}: row {number}")
            if row is None:
                return
            yield row


def _next_row(file: TextIO, text: str, place: int, where: str) -> tuple[dict[str, Any] | None, str, int]:
    """The object that comes next, None at the list's end; the text that was read, and how much of it is done with."""
    while True:
        gap = _BETWEEN.match(text, place)
        place = gap.end() if gap else place
        if text.startswith("]", place):
            return None, text, place
        try:
            row, place = _decode(text, place)
        except json.JSONDecodeError as error:  # perhaps only for want of the rest
            more = _more(file, where) if len(text) - place < _LONGEST_ROW else ""
            if not more:
                raise ValueError(f"{where}: not valid JSON, or cut short: {error.msg}") from None
            text, place = text[place:] + more, 0
        except RecursionError:
            raise ValueError(f"{where}: nested too deeply") from None
        else:
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected an object, got {row!r:.60}")
            return row, text, place


def _more(file: TextIO, where: str) -> str:
    try:
        return file.read(_CHUNK)
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not JSON: the bytes that follow are not UTF-8 text") from None


class RowsByImage:
    """Rows, pickled end to end; those of one image in the order in which they came. Only its own pickles are ever read.

    Args:
        rows: (key of the image, row) each, in any order.
    """

    def __init__(self, rows: Iterable[tuple[str, Any]]) -> None:
        self._number_of: dict[str, int] = {}  # of the images, as they turn up
        self._bytes = bytearray()
        images, ends = array("q"), array("q", [0])
        for key, row in rows:
            self._bytes += pickle.dumps(row, protocol=pickle.HIGHEST_PROTOCOL)
            images.append(self._number_of.setdefault(key, len(self._number_of)))
            ends.append(len(self._bytes))
        numbers = np.array(images, dtype=np.int64)
        self._ends = np.array(ends)
        self._order = numbers.argsort(kind="stable")  # row numbers, image by image
        self._counts = np.cumsum([0, *np.bincount(numbers, minlength=len(self._number_of))])

    @property
    def keys(self) -> frozenset[str]:
        """Of the images that have rows."""
        return frozenset(self._number_of)

    def of(self, key: str) -> list[Any]:
        """The rows of an image; none where it is unknown."""
        if key not in self._number_of:
            return []
        begin, end = self._counts[self._number_of[key] :][:2]
        places = ((self._ends[row], self._ends[row + 1]) for row in self._order[begin:end])
        return [pickle.loads(memoryview(self._bytes)[start:stop]) for start, stop in places]
