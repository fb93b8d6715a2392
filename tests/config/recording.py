"""A tree that remembers which of its keys were read, and by whom outside `m2f/config`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yacs.config

from m2f.config import CfgNode
from m2f.config import node as node_module

_CONFIG_ROOM = Path(node_module.__file__).parent
_TRANSPARENT = (__file__, yacs.config.__file__, sys.modules["fvcore.common.config"].__file__)


class Reads(dict[str, set[str]]):
    """Full dotted key -> files that read it; shared by all copies of a tree."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Reads:
        return self


class RecordingCfg(CfgNode):
    """A `CfgNode` with `reads`; make one with `record(cfg)`.

    A section counts as read when one of its keys is; `dict(section)` and `dump` read nothing. Processes of a loader
    record for themselves only.
    """

    @property
    def reads(self) -> Reads:
        return self.__dict__["__reads__"]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not dict.__contains__(self, name):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Any:
        value = dict.__getitem__(self, name)
        self._note(name, value)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 - this is `get`

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def values(self) -> Any:
        return [self[name] for name in self]

    def _note(self, name: str, value: Any) -> None:
        if isinstance(value, CfgNode) or "__reads__" not in self.__dict__:
            return
        reader = _reader(sys._getframe(2))
        if reader and Path(reader).parent != _CONFIG_ROOM:
            self.reads.setdefault(self.__dict__["__prefix__"] + name, set()).add(reader)


def _reader(frame: FrameType | None) -> str:
    while frame is not None and frame.f_code.co_filename in _TRANSPARENT:
        frame = frame.f_back
    return frame.f_code.co_filename if frame else ""


def record(cfg: CfgNode) -> RecordingCfg:
    """A recording copy of a tree, frozen if the tree is."""
    reads = Reads()
    recording = _copied(cfg, "", reads)
    if cfg.is_frozen():
        recording.freeze()
        reads.clear()  # freezing walks through the tree
    return recording


def _copied(node: CfgNode, prefix: str, reads: Reads) -> RecordingCfg:
    copy = RecordingCfg()
    for name, value in dict.items(node):
        is_section = isinstance(value, CfgNode)
        dict.__setitem__(copy, name, _copied(value, f"{prefix}{name}.", reads) if is_section else value)
    if CfgNode._ORIGIN in node.__dict__:
        copy.__dict__[CfgNode._ORIGIN] = node._origin
    copy.__dict__.update({"__reads__": reads, "__prefix__": prefix})
    return copy


def unread(cfg: RecordingCfg) -> Iterator[str]:
    """The keys that nobody outside `m2f/config` has read."""
    return (key for key, _ in cfg.leaves() if key not in cfg.reads)
