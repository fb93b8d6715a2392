"""JSON as annotation files hold it: read once, and errors that name the file and the place."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, path: str, line: int = 0) -> Any:
    """Parse `text` of the file `path`.

    Args:
        text: a whole document, or one line of a file of lines.
        path: for messages.
        line: number of lines before `text`.

    Raises:
        ValueError: not JSON; the message names file, line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{line + error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: byte {error.start} is not UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"{path}: not a usable JSON file: nested too deeply") from None


def read_json(path: str) -> Any:
    """Parse the file at `path`, with `parse_json`'s errors."""
    with open(path, "rb") as file:
        return parse_json(file.read(), path)


def whole_number(value: Any, least: int = 0) -> bool:
    """Whether a JSON value is an integer of at least `least`; true and false are not numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
