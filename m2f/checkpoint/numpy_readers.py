"""Numpy arrays out of pickles, rebuilt from their bytes without asking numpy to unpickle anything.

Numpy's own functions would take memory for whatever shape a pickle promises, and make objects of whatever it names.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])
_TYPE = re.compile(r"numpy\.(dtypes\.\w+DType|bool_?|u?int\d+|float\d+|complex\d+)$")


class Foreign:
    """Stands for an object of another package: can be made, called with anything and filled, and does nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Foreign:  # noqa: D102 - swallows the arguments
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Take a state and forget it."""


class Reader:
    """Base of what rebuilds an object from its pickle.

    A pickle can hand a state to anything it can name. Handed to a class, it would change the class; since there is this
    method, Python takes it for a call without `self`, which fails.
    """

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        raise ValueError("its pickle fills an object that has no content")


class NumpyDtype(Reader):
    """A numpy dtype as it was pickled: its kind and size, then its byte order."""

    __slots__ = ("name", "order")

    def __init__(self, name: object, *_: object) -> None:
        self.name = str(name)
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"a numpy dtype in it has the byte order {state[1]!r}")
        self.order = state[1]

    def resolve(self) -> np.dtype[Any] | None:
        """The dtype where a tensor can have it, else None (objects, text, dates, records)."""
        return np.dtype(self.order + self.name) if self.name in _DTYPES else None


class NumpyArray(Reader):
    """A numpy array, in the place of numpy's `_reconstruct`.

    Attributes:
        tensor: a copy of the values in C order; None where no tensor can hold them.
        dtype: numpy's short name of their type, for messages.
    """

    __slots__ = ("dtype", "tensor")

    def __init__(self, *_: object) -> None:
        self.tensor: Tensor | None = None
        self.dtype = "unknown"

    def __setstate__(self, state: Any) -> None:
        shape, dtype, is_fortran, content = state[-4:]
        self.dtype = dtype.name
        resolved = dtype.resolve()
        if resolved is not None:
            self.tensor = torch.from_numpy(_array(content, resolved, shape, "F" if is_fortran else "C"))


class NumpyFromBuffer(Reader):
    """A numpy array as protocol 5 writes it."""

    __slots__ = ()

    def __new__(cls, content: Any, dtype: NumpyDtype, shape: Any, order: Any) -> Any:  # noqa: D102 - gives an array
        array = NumpyArray()
        array.__setstate__((shape, dtype, order == "F", content))
        return array


class NumpyScalar(Reader):
    """A number of numpy's becomes one of Python's."""

    __slots__ = ()

    def __new__(cls, dtype: NumpyDtype, content: Any = b"") -> Any:  # noqa: D102 - gives a number
        resolved = dtype.resolve()
        return Foreign() if resolved is None else _array(content, resolved, (), "C").item()


class Latin1(Reader):
    """Bytes as Python 3 writes them with old protocols: `_codecs.encode(text, "latin1")`, and none as `bytes()`."""

    __slots__ = ()

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:  # noqa: D102 - gives bytes
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"its pickle asks for the text encoding {encoding!r}")
        return text.encode("latin1")


def numpy_reader(name: str) -> type | None:
    """What rebuilds numpy's object of this full name, or None."""
    return Foreign if _TYPE.match(name) else _READERS.get(name)


_READERS: dict[str, type] = {
    "numpy.ndarray": Foreign,  # named, never called: arrays are made by _reconstruct
    "numpy.dtype": NumpyDtype,
    "builtins.bytes": Latin1,  # the content of an empty array
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": NumpyScalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": NumpyFromBuffer for core in ("core", "_core")},
}


def _array(content: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> np.ndarray[Any, Any]:
    """The values in native byte order; memory is taken for bytes that are there, never for a promised shape."""
    raw = content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))  # text: from Python 2
    if not all(isinstance(length, int) and length >= 0 for length in shape):
        raise ValueError(f"a numpy array in it has the shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"a numpy array of shape {tuple(shape)} and dtype {dtype} in it has {len(raw)} bytes")
    if dtype.kind == "b":  # any byte but 0 means True to numpy, while torch wants a 1
        raw = (np.frombuffer(raw, np.uint8) != 0).tobytes()
    stored: np.ndarray[Any, Any] = np.ndarray(tuple(shape), dtype, buffer=raw, order=order)
    return stored.astype(dtype.newbyteorder("="), order="C", copy=True)
