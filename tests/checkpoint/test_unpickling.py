"""Pickles that are looked through before anything is read, and never run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2f.checkpoint.numpy_readers import Foreign, NumpyArray
from m2f.checkpoint.unpickling import ForeignList, load_numpy_pickle, plain, require_plain, scan, stand_ins


def load(content: bytes) -> Any:
    return load_numpy_pickle(io.BytesIO(content))


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_are_read(protocol: int) -> None:
    value = {"a": [1, 2.5, None], "b": ("x", b"\xff", True), "c": collections.OrderedDict(d=2**70), "e": {}}
    assert load(pickle.dumps(value, protocol)) == value


def test_strings_of_python_2_are_text() -> None:
    assert load(b"}U\x06weightU\x02\xe9!s.") == {"weight": "\xe9!"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, print, bytearray, collections.Counter, Path])
def test_calls_are_refused_by_name(protocol: int, function: Any) -> None:
    with pytest.raises(ValueError, match=rf"asks for \w+\.{function.__name__}\w*, and code of a file is never run"):
        load(pickle.dumps({"model": Calls(function, "x")}, protocol))


def test_all_names_are_told_and_nothing_is_made_before() -> None:
    made = pickle.dumps([np.zeros(2), Calls(os.system, "x"), Calls(eval, "y")], 2)
    with pytest.raises(ValueError, match=r"asks for builtins\.eval, \w+\.system, and"):
        load(made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'x'\ntR.", "asks for os.system"),
        (b"(S'x'\nios\nsystem\n.", "asks for os.system"),
        (b"(cos\nsystem\nS'x'\no.", "asks for os.system"),
        (b"cos\nsystem\n)\x81.", "asks for os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "asks for os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "asks for builtins.eval"),
        (b"\x80\x02\x82\x01.", "classes by number"),
        (b"Pobject\n.", "outside of it, 'object'"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "outside of it, 'a'"),
        (b"cnumpy.core\nmultiarray.fromfile\n.", "asks for numpy.core.multiarray.fromfile"),
        (b"\x80\x02", "cut off or damaged"),
        (b"\x80\x02]X\xff\x00\x00\x00a", "cut off or damaged"),
        (b"0.", "takes more objects than it has made"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memory for objects that are not there"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x.", "cut off or damaged"),
    ],
)
def test_hostile_and_damaged_pickles_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(content)


def test_classes_cannot_be_changed() -> None:
    before = dict(vars(NumpyArray))
    with pytest.raises((ValueError, TypeError)):
        load(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x06tensorK\x01s\x86b.")
    assert dict(vars(NumpyArray)) == before


def test_tuples_that_unfold_without_end_are_refused() -> None:
    levels = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    with pytest.raises(ValueError, match="makes more than 5000000 objects"):
        load(b"\x80\x02}" + levels + b"K\x01s.")  # hashing the key would take 2^60 steps


def test_scan_leaves_the_file_behind_the_pickle() -> None:
    file = io.BytesIO(pickle.dumps(collections.Counter("a"), 2) + pickle.dumps(Path("x"), 2))
    assert scan(file) == {"collections.Counter"}
    assert {name.partition(".")[0] for name in scan(file)} == {"pathlib"}


def test_scan_follows_every_object_that_pickle_writes() -> None:
    value: Any = {"a": [(1, 2), {3}, frozenset([4]), b"5", "6", 7.0, 2**99], "b": torch.Size([1]), "c": np.zeros(2)}
    value["self"] = value["a"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        scan(io.BytesIO(pickle.dumps(value, protocol)))


def test_names_of_python_2_are_told_in_python_3s_spelling() -> None:
    assert scan(io.BytesIO(b"c__builtin__\neval\n.")) == {"builtins.eval"}


@pytest.mark.parametrize(
    "name",
    [
        "mmengine.logging.history_buffer.HistoryBuffer",
        "omegaconf.dictconfig.DictConfig",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "argparse.Namespace",
        "pathlib.PosixPath",
        "datetime.datetime",
        "builtins.getattr",
        "builtins.dict",
    ],
)
def test_harmless_names_get_stand_ins_that_do_nothing(name: str) -> None:
    [(made, registered)] = stand_ins([name])
    assert registered == name
    value = made(os, "system")  # as `getattr` would be called to get at a function
    assert isinstance(value, (Foreign, dict))
    assert not callable(value)
    assert not vars(value) if isinstance(value, dict) else not hasattr(value, "__dict__")


def test_mappings_and_lists_keep_what_is_put_into_them() -> None:
    names = ["pytorch_lightning.utilities.parsing.AttributeDict", "collections.defaultdict", "addict.addict.Dict"]
    for made, _ in stand_ins(names):
        assert made({"a": 1}) == {"a": 1}
        assert made(int) == {}
    assert stand_ins(["collections.deque"]) == [(ForeignList, "collections.deque")]
    assert ForeignList([1], 2) == []


def test_torchs_own_names_are_left_to_torch() -> None:
    names = ["collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"]
    assert stand_ins(names) == []
    require_plain(names)
    with pytest.raises(ValueError, match=r"asks for argparse\.Namespace"):
        require_plain([*names, "argparse.Namespace"])


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.bytearray",
        "subprocess.Popen",
        "mmengineer.Thing",
        "omegaconf",
        "numpy.load",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"asks for {name}"):
        stand_ins(["argparse.Namespace", name])


def test_plain_copies_containers_and_leaves_stand_ins_out() -> None:
    hostile = collections.OrderedDict(a=1)
    hostile.__dict__["items"] = None
    value = {"od": hostile, "x": Foreign(), "y": [Foreign(), {2}], 3: (torch.Size([4]), None), Foreign(): 5, "t": dict}
    assert plain(value) == {"od": {"a": 1}, "y": [None, [2]], 3: ((4,), None)}
    tensor = plain({"p": torch.nn.Parameter(torch.ones(1))})["p"]
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


def test_plain_copies_what_is_shared_once_and_stops_at_depth() -> None:
    nested: Any = []
    for _ in range(40):
        nested = [nested, nested]
    copy = plain(nested)
    assert copy[0] is copy[1]
    for _ in range(11):
        nested = [nested]
    with pytest.raises(ValueError, match="more than 50 deep"):
        plain(nested)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="more than 50 deep"):
        plain(circle)
