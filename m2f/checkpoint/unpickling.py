"""Pickles of strangers, read without running anything they ask for.

A pickle is a program that may call whatever it can name. It is disassembled first, which runs nothing; then every name
must be one that torch itself takes for harmless, one of numpy's (see `numpy_readers`), or one of the objects that are
known to lie beside weights, for which stand-ins that do nothing take the place. Any other name is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

import torch
from torch import Tensor

from m2f.checkpoint.numpy_readers import Foreign, Latin1, NumpyArray, numpy_reader

# Configurations, histories, paths, dates and types.
_PACKAGES = re.compile(
    r"(addict|argparse|datetime|detectron2|easydict|eff|fvcore|lightning(_fabric|_utilities)?|mm(cv|det|engine|pretrain|seg)"
    r"|nvidia_tao_(core|pytorch)|omegaconf|pathlib|pytorch_lightning|torchmetrics|typing|yacs)\."
)
# `getattr` is how protocol 2 spells the method of a class: mmengine's history holds some. It is never the real one.
_NAMES = re.compile(
    r"builtins\.(bool|dict|float|frozenset|getattr|int|list|object|slice|str|tuple)"
    r"|collections\.(defaultdict|deque)|torch\.torch_version\.TorchVersion|types\.SimpleNamespace"
)
_MAPPING = re.compile(r"\.(\w*Dict|CfgNode|defaultdict)$")
# Without bytearray, which torch would let take any amount of memory.
_FOR_TORCH = re.compile(r"collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|complex)|torch\..*")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_MAX_OBJECTS = 5_000_000
_MAX_DEPTH = 50


class ForeignMapping:
    """Stands for a dict of another package; what is made is a plain ordered dict, as torch fills no other."""

    def __new__(cls, *arguments: object, **_: object) -> Any:  # noqa: D102 - gives a dict
        first = arguments[0] if arguments else None
        return OrderedDict(dict.items(first)) if isinstance(first, dict) else OrderedDict()


class ForeignList:
    """Stands for a list of another package; what is made is a plain list."""

    def __new__(cls, *_: object, **__: object) -> Any:  # noqa: D102 - gives a list
        return []


def scan(file: IO[bytes]) -> set[str]:
    """Disassemble one pickle, which runs nothing, and leave the file at its end.

    Returns:
        Full names of the classes and functions it asks for, in Python 3's spelling. Those that protocol 4 and later put
        together on the stack are not among them; the unpicklers meet and refuse these.

    Raises:
        ValueError: it is cut off or damaged, or would take memory for objects that are not there.
    """
    names = set()
    size = _UnfoldedSize()
    for count, (opcode, argument) in enumerate(_opcodes(file)):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            names.add(_full_name(module, name))
        elif opcode.name.startswith("EXT"):
            raise ValueError("its pickle asks for classes by number, and code of a file is never run")
        elif opcode.name.endswith("PUT") and int(argument) > count:
            raise ValueError("its pickle would take memory for objects that are not there")
        if max(count, size.after(opcode, argument)) > _MAX_OBJECTS:
            raise ValueError(f"its pickle makes more than {_MAX_OBJECTS} objects")
    return names


def _full_name(module: str, name: str) -> str:
    return f"{_PYTHON_2.get(module, module)}.{name}"


def _opcodes(file: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(cast("Any", file)):
            yield opcode, argument
    except ValueError as error:
        raise ValueError(f"its pickle is cut off or damaged: {error}") from error


class _UnfoldedSize:
    """Follows a pickle's stack to tell how many objects the newest one would be if nothing in it were shared.

    A tuple of two of a tuple of two ... takes a few bytes for each level, and twice the time of the level below to hash
    as a key of a dict.
    """

    def __init__(self) -> None:
        self._stack: list[int | None] = []  # None is a mark
        self._memo: dict[int, int] = {}

    def after(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """The size of what lies on top of the stack after this opcode."""
        if opcode.name.endswith("GET"):
            self._stack.append(self._memo.get(int(argument), 1))
        elif opcode.name.endswith("PUT") or opcode.name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else int(argument)] = self._top()
        else:
            size = 1 + sum(self._taken(opcode.stack_before))
            self._stack += [None if item is pickletools.markobject else size for item in opcode.stack_after]
        return self._top()

    def _taken(self, before: list[pickletools.StackObject]) -> Iterator[int]:
        """Take what an opcode takes from the stack: so many objects, or all above the last mark and then so many."""
        below = before.index(pickletools.markobject) if pickletools.markobject in before else None
        while below is not None and (item := self._pop()) is not None:
            yield item
        for _ in range(len(before) if below is None else below):
            yield self._pop() or 0

    def _pop(self) -> int | None:
        if not self._stack:
            raise ValueError("its pickle is damaged: it takes more objects than it has made")
        return self._stack.pop()

    def _top(self) -> int:
        return (self._stack[-1] or 0) if self._stack else 0


def refusal(names: Iterable[str]) -> str:
    """What to say of a pickle that asks for these names."""
    return (
        f"it asks for {', '.join(sorted(names))}, and code of a file is never run. A checkpoint may hold tensors and "
        "plain containers: where it comes from, save its state dict alone"
    )


def require_plain(names: Iterable[str]) -> None:
    """Accept only names that torch reads by itself.

    Raises:
        ValueError: there are others.
    """
    unknown = [name for name in names if not _FOR_TORCH.fullmatch(name)]
    if unknown:
        raise ValueError(refusal(unknown))


def stand_ins(names: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What to put in the place of names that torch does not read, as `torch.serialization.safe_globals` takes it.

    Raises:
        ValueError: there are names that are not known to be harmless.
    """
    known = {name: numpy_reader(name) or _stand_in(name) for name in names}
    require_plain(name for name, reader in known.items() if reader is None)
    return [(reader, name) for name, reader in known.items() if reader is not None]


def _stand_in(name: str) -> type | None:
    if not (_PACKAGES.match(name) or _NAMES.fullmatch(name)):
        return None
    if name == "collections.deque":
        return ForeignList
    return ForeignMapping if _MAPPING.search(name) else Foreign


class _NumpyUnpickler(pickle.Unpickler):
    """Knows numpy's arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        found = _in_numpy_pickles(_full_name(module, name))
        if found is None:
            raise ValueError(refusal([_full_name(module, name)]))
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError(f"its pickle refers to an object outside of it, {str(pid)[:80]!r}")


def _in_numpy_pickles(name: str) -> type | None:
    containers: dict[str, type] = {"collections.OrderedDict": OrderedDict, "_codecs.encode": Latin1}
    return containers.get(name) or numpy_reader(name)


def load_numpy_pickle(file: IO[bytes]) -> Any:
    """Read a pickle of numpy arrays in plain containers, as Detectron2 and Caffe2 wrote them with any protocol.

    Arrays become `NumpyArray`, numpy's numbers Python's, and strings of Python 2 text.

    Raises:
        ValueError: it is cut off, or asks for any other class or function; nothing of it was run.
    """
    start = file.tell()
    unknown = [name for name in scan(file) if _in_numpy_pickles(name) is None]
    if unknown:
        raise ValueError(refusal(unknown))
    file.seek(start)
    return _NumpyUnpickler(file, encoding="latin1").load()


def plain(value: Any) -> Any:
    """A copy that consists of dicts, lists, tuples, tensors, numbers and text.

    Stand-ins are left out of dicts, and are None in lists. An object that occurs many times is copied once.

    Raises:
        ValueError: containers are nested more than 50 deep, or in themselves.
    """
    return _plain(value, 0, {})


def _plain(value: Any, depth: int, done: dict[int, Any]) -> Any:
    if isinstance(value, NumpyArray):
        return value.tensor
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (dict, list, tuple, set)):
        if depth > _MAX_DEPTH:
            raise ValueError(f"it nests containers more than {_MAX_DEPTH} deep")
        if id(value) not in done:
            done[id(value)] = _container(value, depth + 1, done)
        return done[id(value)]
    return value if isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)) else None


def _container(value: Any, depth: int, done: dict[int, Any]) -> Any:
    if isinstance(value, dict):  # `dict.items`: a pickle can put anything in the place of the object's own `items`
        items = ((key, item) for key, item in dict.items(value) if not isinstance(item, (Foreign, type)))
        return {key: _plain(item, depth, done) for key, item in items if isinstance(key, (str, int, float))}
    copies = [_plain(item, depth, done) for item in value]
    return tuple(copies) if isinstance(value, tuple) else copies
