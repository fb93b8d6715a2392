"""One node of the configuration tree: typed merging with errors a user can act on.

The default of a key carries its type. `declare` names the type where the default cannot: `None` and `[]`.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode as _FvcoreCfgNode

from m2f.config.secret import HIDDEN, SECRET

DEFAULT = "default"  # the source of a key that nobody set


class SpecError(ValueError):
    """A mistake in a spec or on the command line; the message is the one line that the user sees."""


class Kind(NamedTuple):
    """What a key holds."""

    type: type
    is_list: bool = False
    is_optional: bool = False  # None is a value of its own

    def __str__(self) -> str:
        return f"a list of {self.type.__name__}" if self.is_list else self.type.__name__


class _Origin:
    """What the root knows about its tree beside the values."""

    def __init__(self) -> None:
        self.declared: dict[str, type] = {}
        self.kinds: dict[str, Kind] = {}  # of the keys that were set: of their defaults, not of what replaced them
        self.sources: dict[str, str] = {}
        self.projects: list[str] = []


class CfgNode(_FvcoreCfgNode):
    """A section of the tree; keys are attributes.

    `merge`, `declare`, `source` and `projects` are for the root, which alone knows full dotted keys.
    """

    _ORIGIN = "__m2f_origin__"

    def __setitem__(self, key: str, value: Any) -> None:
        if self.__dict__.get(CfgNode.IMMUTABLE, False):
            raise AttributeError(f"cannot set {key!r} to {value!r}: the configuration is frozen")
        super().__setitem__(key, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> CfgNode:
        copied = type(self).__new__(type(self))
        for key, value in self.items():
            dict.__setitem__(copied, key, copy.deepcopy(value, memo))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def _origin(self) -> _Origin:
        origin: _Origin = self.__dict__.setdefault(self._ORIGIN, _Origin())
        return origin

    def declare(self, key: str, kind: type) -> None:
        """State the type of the key whose default is None, or of the elements of one whose default is []."""
        self._origin.declared[key] = kind

    def source(self, key: str) -> str:
        """Who set the full dotted `key` last: a file, 'command line', or 'default'."""
        return self._origin.sources.get(key, DEFAULT)

    def was_set(self, key: str) -> bool:
        """Whether a file or the command line gave `key` a value."""
        return key in self._origin.sources

    def projects(self) -> list[str]:
        """Absolute paths and dotted modules of the projects whose keys are in the tree."""
        return list(self._origin.projects)

    def set_projects(self, projects: list[str]) -> None:
        """Remember the projects; for `spec.py`."""
        self._origin.projects = list(projects)

    def leaf(self, key: str) -> Any:
        """The value of a full dotted key."""
        node: Any = self
        for segment in key.split("."):
            node = node[segment]
        return node

    def set_leaf(self, key: str, value: Any) -> None:
        """Give a full dotted key the value that follows from others; its source stays."""
        section, _, name = key.rpartition(".")
        (self.leaf(section) if section else self)[name] = value

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Every full dotted key with its value, in the order of the tree."""
        for key, value in self.items():
            if isinstance(value, CfgNode):
                yield from ((f"{key}.{inner}", leaf) for inner, leaf in value.leaves())
            else:
                yield key, value

    def to_dict(self) -> dict[str, Any]:
        """The tree as plain dicts and lists."""
        return {k: v.to_dict() if isinstance(v, CfgNode) else copy.deepcopy(v) for k, v in self.items()}

    def merge(self, update: Mapping[str, Any], source: str) -> None:
        """Overwrite keys of this root with those of a nested mapping.

        Raises:
            SpecError: an unknown key or a value of another type; the message starts with `source`.
        """
        self._merge_section(self, update, "", source)

    def _merge_section(self, node: CfgNode, update: Mapping[str, Any], prefix: str, source: str) -> None:
        for name, value in update.items():
            key = f"{prefix}{name}"
            if not isinstance(name, str) or name not in node:
                hint = nearest_key(self, key)
                shown = "" if isinstance(value, Mapping) or SECRET in hint else f" (its value: {value!r})"
                raise SpecError(f"{source}: unknown key {key!r}{hint}{shown}")
            if not isinstance(node[name], CfgNode):
                node[name] = self._checked(key, node[name], value, source)
                self._origin.sources[key] = source
            elif isinstance(value, Mapping):
                self._merge_section(node[name], value, f"{key}.", source)
            elif value is not None:  # a section whose keys are all commented out is null in YAML
                raise SpecError(
                    f"{source}: {key!r} is a section with keys {', '.join(node[name])}; got {_shown(value)}"
                )

    def _checked(self, key: str, current: Any, value: Any, source: str) -> Any:
        origin = self._origin
        if key not in origin.kinds:
            origin.kinds[key] = _kind_of(key, current, origin.declared)
        kind = origin.kinds[key]
        if value is None and kind.is_optional:
            return None
        if kind.is_list:
            if not isinstance(value, list):
                hint = "; write []" if value is None else f"; write [{value}]" if _fits(kind.type, value) else ""
                raise SpecError(f"{source}: {key!r} must be {kind}, got {_shown(value)}{hint}")
            return [_coerced(f"{key}[{i}]", kind, item, source) for i, item in enumerate(value)]
        if value is None and kind.type is str:
            return ""
        return _coerced(key, kind, value, source)


def nearest_key(root: CfgNode, key: str) -> str:
    """A '; did you mean ...?' for an unknown full dotted key, or nothing.

    A key of the same last name wins, the one that shares the most leading sections first; then the closest spelling.
    """
    known = list(_all_keys(root))
    name = key.rpartition(".")[2]
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    if same_name:
        return f"; did you mean {max(same_name, key=lambda k: _shared_sections(k, key))!r}?"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    names = difflib.get_close_matches(name, [k.rpartition(".")[2] for k in known], n=1, cutoff=0.75)
    matches = [k for k in known if names and k.rpartition(".")[2] == names[0]]
    return f"; did you mean {max(matches, key=lambda k: _shared_sections(k, key))!r}?" if matches else ""


def _all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{name}.")


def _shared_sections(one: str, other: str) -> int:
    shared = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared += 1
    return shared


def _kind_of(key: str, default: Any, declared: Mapping[str, type]) -> Kind:
    if default is None or default == []:
        if key not in declared:
            raise TypeError(f"the default of {key!r} is {default}: state its type with cfg.declare({key!r}, <type>)")
        return Kind(declared[key], is_list=default is not None, is_optional=default is None)
    if isinstance(default, list):
        return Kind(float if float in map(type, default) else type(default[0]), is_list=True)
    return Kind(type(default))


def _fits(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def _coerced(key: str, kind: Kind, value: Any, source: str) -> Any:
    if _fits(kind.type, value):
        return float(value) if kind.type is float else value
    hint = ""
    if kind.type is str and not isinstance(value, (dict, list)):
        hint = "; put it in quotes"
    elif kind.type is not str and isinstance(value, str) and value:
        hint = (
            "; no quotes around numbers" if value.replace(".", "").replace("-", "").replace("e", "").isdigit() else ""
        )
    raise SpecError(f"{source}: {key!r} must be {kind.type.__name__}, got {_shown(value, key)}{hint}")


def _shown(value: Any, key: str = "") -> str:
    if value is None:
        return "null"
    name = {"dict": "a section", "list": "a list"}.get(type(value).__name__, type(value).__name__)
    return f"{name} {HIDDEN if key == SECRET else repr(value)}"
