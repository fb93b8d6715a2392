"""The specs that m2f brings along, by name: `m2f://quickstart/shapes_panoptic` wherever a spec or its file is named."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from m2f.config.node import SpecError

SCHEME = "m2f://"
_PACKAGE = Path(__file__).resolve().parent.parent


def located(name: str | Path) -> Path:
    """The file that a name means: one with `m2f://` lies among the shipped specs, any other is a path as it stands.

    Raises:
        SpecError: no shipped file has that name; the message has those that come near, or all.
    """
    text = str(name)
    if not text.startswith(SCHEME):
        return Path(name).expanduser()
    root, wanted = shipped_root(), text.removeprefix(SCHEME)
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.*"))
    for candidate in (wanted, f"{wanted}.yaml"):
        if candidate in names:
            return root / candidate
    specs = [name for name in names if name.endswith(".yaml") and "_" not in (name[0], Path(name).name[0])]
    near = difflib.get_close_matches(wanted, specs, n=1)
    hint = f"did you mean {SCHEME}{near[0]}?" if near else f"there are {', '.join(specs)}"
    raise SpecError(f"{text}: m2f brings no spec of that name; {hint}")


def shipped_root() -> Path:
    """The folder of the shipped specs: inside an installed package, `configs` of a checkout otherwise."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def with_located_files(tree: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping whose values that begin with `m2f://` are absolute paths."""
    return {name: _located_value(value) for name, value in tree.items()}


def _located_value(value: Any) -> Any:
    if isinstance(value, dict):
        return with_located_files(value)
    return str(located(value)) if isinstance(value, str) and value.startswith(SCHEME) else value
