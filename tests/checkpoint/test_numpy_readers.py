"""Arrays rebuilt from their pickled bytes."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from m2f.checkpoint.numpy_readers import Foreign, Latin1, NumpyArray, NumpyDtype, NumpyScalar, numpy_reader
from m2f.checkpoint.unpickling import load_numpy_pickle

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32"]


def read(value: object, protocol: int = 2) -> Any:
    return load_numpy_pickle(io.BytesIO(pickle.dumps(value, protocol)))


def float_dtype() -> NumpyDtype:
    dtype = NumpyDtype("f4", False, True)
    dtype.__setstate__((3, "<", None, None, None, -1, -1, 0))
    return dtype


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [*DTYPES, "float64", "complex64", "complex128", ">f4", ">i8"])
def test_every_protocol_and_dtype_gives_the_same_values(protocol: int, dtype: str) -> None:
    array = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    for same in (array, array.T, array[::2], np.asfortranarray(array), array[:0], array[1, 2:3].reshape(())):
        tensor = read(same, protocol).tensor
        assert tensor.shape == same.shape
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.numpy(), same)
        assert tensor.numpy().dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_become_pythons(protocol: int) -> None:
    numbers = {"a": np.float32(0.5), "b": np.int64(-3), "c": np.bool_(True)}
    found = read(numbers, protocol)
    assert found == {"a": 0.5, "b": -3, "c": True}
    assert [type(value) for value in found.values()] == [float, int, bool]


@pytest.mark.parametrize(
    "array",
    [np.array([1, "a"], dtype=object), np.array(["a"]), np.zeros(1, "f4, i4"), np.array(["2020-01-01"], "M8[D]")],
)
def test_what_no_tensor_can_hold_is_left_empty(array: np.ndarray) -> None:
    found = read(array)
    assert found.tensor is None
    assert found.dtype[0] in "OUVM"


def test_text_of_python_2_is_bytes() -> None:
    array = NumpyArray()
    array.__setstate__((1, (2,), float_dtype(), 0, np.array([1.5, -2], "<f4").tobytes().decode("latin1")))
    assert torch.equal(array.tensor, torch.tensor([1.5, -2]))


def test_any_byte_of_a_bool_is_true() -> None:
    array = NumpyArray()
    array.__setstate__((1, (3,), NumpyDtype("b1"), False, b"\x00\x01\x07"))
    assert array.tensor.tolist() == [False, True, True]
    assert array.tensor.view(torch.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize("shape", [(3,), (10**12,), (-1, -2), (2, 0.5), (True, 2, 10**9)])
def test_a_shape_that_its_bytes_cannot_fill_takes_no_memory(shape: tuple) -> None:
    with pytest.raises(ValueError, match="a numpy array"):
        NumpyArray().__setstate__((1, shape, float_dtype(), False, b"\x00" * 8))


def test_other_byte_orders_and_encodings_are_refused() -> None:
    with pytest.raises(ValueError, match="byte order 'x'"):
        NumpyDtype("f4").__setstate__((3, "x"))
    with pytest.raises(ValueError, match="text encoding 'idna'"):
        Latin1("a", "idna")
    assert Latin1("\xff", "latin1") == b"\xff"


@pytest.mark.parametrize("reader", [NumpyArray, NumpyDtype, NumpyScalar, Latin1, numpy_reader("numpy.ndarray")])
def test_a_state_given_to_a_class_changes_nothing(reader: Any) -> None:
    before = dict(vars(reader))
    with pytest.raises(TypeError):
        reader.__setstate__((None, {"resolve": 1}))
    assert dict(vars(reader)) == before


def test_only_arrays_are_read() -> None:
    assert numpy_reader("numpy.float32") is numpy_reader("numpy.dtypes.Float32DType") is Foreign
    for name in ("numpy.load", "numpy.memmap", "numpy.core.multiarray.fromfile", "numpy.float32.tofile", "os.system"):
        assert numpy_reader(name) is None
