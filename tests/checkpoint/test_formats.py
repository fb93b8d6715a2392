"""What kind a file is, and what is said of those that are none."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import io
import os
import pickle
import re
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from yacs.config import CfgNode

from m2f.checkpoint.formats import load_plain, read_file

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([0.5, -1]).bfloat16()}


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def rewritten(content: bytes, compression: int = zipfile.ZIP_STORED, **replaced: bytes) -> bytes:
    """A torch archive with other entries in the place of some, and right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, replaced.get(Path(entry.filename).stem, old.read(entry)))
    return buffer.getvalue()


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.fixture
def foreign_modules() -> Iterator[types.ModuleType]:
    """Modules as mmengine and Lightning have them; gone again when the file is read."""
    history = types.ModuleType("mmengine.logging.history_buffer")
    parsing = types.ModuleType("pytorch_lightning.utilities.parsing")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history = np.arange(3.0)
            self.statistics = {"min": HistoryBuffer.min}  # pickled as a call of getattr

        def min(self) -> None: ...

    class AttributeDict(dict): ...

    for module, member in ((history, HistoryBuffer), (parsing, AttributeDict)):
        member.__module__, member.__qualname__ = module.__name__, member.__name__
        setattr(module, member.__name__, member)
        for depth in range(1, module.__name__.count(".") + 2):
            name = ".".join(module.__name__.split(".")[:depth])
            sys.modules[name] = module
    history.HistoryBuffer.min.__qualname__ = "HistoryBuffer.min"
    history.HistoryBuffer.min.__module__ = history.__name__
    history.AttributeDict = AttributeDict
    yield history
    _remove_foreign_modules()


def _remove_foreign_modules() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("mmengine", "pytorch_lightning"):
            del sys.modules[name]


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.pkl", "a"])
def test_the_name_does_not_matter(tmp_path: Path, is_zip: bool, name: str) -> None:
    (tmp_path / name).write_bytes(saved({"model": WEIGHTS}, _use_new_zipfile_serialization=is_zip))
    assert_equal(read_file(tmp_path / name)["model"])
    assert_equal(load_plain(tmp_path / name)["model"])


def test_safetensors_under_any_name(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(WEIGHTS, tmp_path / "a.bin", metadata={"format": "pt"})
    content = read_file(tmp_path / "a.bin")
    assert_equal(content["state_dict"])
    assert content["header"] == {"format": "pt"}


def test_without_the_safetensors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r'a\.safetensors .*pip install "m2f\[huggingface\]"'):
        read_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_numpy_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = {name: tensor.float().numpy() for name, tensor in WEIGHTS.items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol))
    content = read_file(tmp_path / "a.pkl")
    assert_equal(
        {name: array.tensor for name, array in content["model"].items()}, {k: v.float() for k, v in WEIGHTS.items()}
    )


@pytest.mark.parametrize("is_zip", [True, False])
def test_harmless_objects_beside_the_weights(tmp_path: Path, foreign_modules: types.ModuleType, is_zip: bool) -> None:
    beside = {
        "message_hub": {"loss": foreign_modules.HistoryBuffer()},
        "hyper_parameters": foreign_modules.AttributeDict(lr=0.1, data=foreign_modules.AttributeDict(size=4)),
        "type": foreign_modules.HistoryBuffer,
        "config": CfgNode({"MODEL": CfgNode({"NAME": "swin"})}),
        "args": argparse.Namespace(lr=1),
        "path": Path("x"),
        "time": datetime.datetime(2024, 1, 1),
        "counts": collections.Counter("aab"),
        "lists": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1, 2]),
        "score": np.float64(0.5),
        "dtype": np.dtype("f4"),
    }
    path = tmp_path / "a.pth"
    torch.save({"state_dict": WEIGHTS, **beside}, path, _use_new_zipfile_serialization=is_zip)
    _remove_foreign_modules()
    allowed_before = set(torch.serialization.get_safe_globals())
    content = read_file(path)
    assert_equal(content["state_dict"])
    assert content["hyper_parameters"] == {"lr": 0.1, "data": {"size": 4}}
    assert content["config"] == {"MODEL": {"NAME": "swin"}}
    assert (content["score"], content["lists"], content["queue"]) == (0.5, {"a": [1]}, [1, 2])
    assert not any(name.startswith("mmengine") for name in sys.modules)
    assert set(torch.serialization.get_safe_globals()) == allowed_before
    with pytest.raises(ValueError, match=r"asks for argparse\.Namespace, .*mmengine"):
        load_plain(path)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("content", [torch.nn.Linear(1, 1), {"model": torch.nn.Linear(1, 1)}, {"f": os.system}])
def test_code_is_refused_by_name(tmp_path: Path, content: object, is_zip: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    for read in (read_file, load_plain):
        with pytest.raises(
            ValueError, match=r"a\.pth: not a readable checkpoint: it asks for .*(Linear|system)"
        ) as error:
            read(path)
        assert "save its state dict alone" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"epoch,loss\n1,0.5\n", "it is text and begins with b'epoch,loss"),
        (b".hidden\n", "it is text"),
        (b"(dp0\nS'a'\nI1\nsS'b'\ncos\nsystem\ns.", "asks for os.system"),
        (b"\x00\x01\x02" * 30, "it is of no known kind"),
        (b'{"model_type": "mask2former"}', "it is JSON; of a Hugging Face model give the directory"),
        (b"\n<!DOCTYPE html><html>", "it is a web page: the download failed"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer.*git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "it is an image"),
        (b"\xff\xd8\xff\xe0" + b"\x00" * 50, "it is an image"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0", "it looks like an ONNX model"),
        (b"\x1f\x8b\x08" + b"\x00" * 50, "it is a compressed archive"),
        (b"x" * 257 + b"ustar" + b"\x00" * 250, "it is a tar archive"),
        (b"\x93NUMPY\x01\x00", "it is a single numpy array"),
        (b"PK\x05\x06" + b"\x00" * 18, "torch.save did not write; it holds nothing"),
        (saved(WEIGHTS)[:-1], "it is cut off or damaged; a download or copy may not have ended"),
        (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-1], "it is damaged .*unexpected EOF"),
        (pickle.dumps({"a": np.zeros(9)})[:-20], "its pickle is cut off or damaged"),
        (rewritten(saved(WEIGHTS), zipfile.ZIP_DEFLATED), "parts of the archive are compressed"),
        (rewritten(saved(WEIGHTS), data=b"\x80\x02cos\nsystem\n."), "asks for os.system"),
        (rewritten(saved(WEIGHTS), constants=b"", byteorder=b"middle"), "Unknown endianness"),
        ((90).to_bytes(8, "little") + b"{}", "it is damaged .*header"),
    ],
)
def test_other_and_damaged_files_each_get_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    if message.endswith("header"):
        pytest.importorskip("safetensors")
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(tmp_path / 'a.pth'))}: not a readable checkpoint: .*{message}"
    ):
        read_file(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: not a readable checkpoint: "):
        load_plain(tmp_path / "a.pth")


def test_other_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=np.zeros(1))
    with pytest.raises(ValueError, match=r"torch.save did not write; it holds first\.npy"):
        read_file(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(ValueError, match="it is a TorchScript archive"):
        read_file(tmp_path / "a.pt")


def test_a_single_wrong_bit_is_found_in_every_byte_of_the_numbers(tmp_path: Path) -> None:
    content = saved({"model": WEIGHTS, "step": 3})
    start = content.index(WEIGHTS["conv.weight"].numpy().tobytes())
    for position in range(start, start + 24):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (tmp_path / "a.pth").write_bytes(flipped)
        for read in (read_file, load_plain):
            with pytest.raises(ValueError, match=r"the checksum of its part archive/data/0 is wrong"):
                read(tmp_path / "a.pth")


def test_parts_that_lie_upon_one_another_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(saved(WEIGHTS))
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        archive.writestr("archive/data/9", b"x" * 1000)
        for number in range(9):
            again = copy.copy(archive.infolist()[-1])
            again.filename = f"archive/data/1{number}"
            archive.filelist.append(again)
    with pytest.raises(ValueError, match=r"parts of the archive are compressed or lie upon one another"):
        read_file(tmp_path / "a.pth")


def test_files_written_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal(read_file(tmp_path / "a.pth"))


def test_lists_are_no_weights(tmp_path: Path) -> None:
    torch.save([WEIGHTS], tmp_path / "a.pth")
    for read in (read_file, load_plain):
        with pytest.raises(ValueError, match=r"a\.pth: holds a list, not a dict of weights"):
            read(tmp_path / "a.pth")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    for read in (read_file, load_plain):
        with pytest.raises(FileNotFoundError, match=r"a\.pth"):
            read(tmp_path / "a.pth")


def test_plain_files_come_as_they_were_saved(tmp_path: Path) -> None:
    content = {"model": WEIGHTS, "optimizer": {0: {"step": torch.tensor(1.0)}}, "hooks": [None, ("x", 0.5)]}
    torch.save(content, tmp_path / "a.pth")
    found = load_plain(tmp_path / "a.pth")
    assert_equal(found["model"])
    assert (found["optimizer"], found["hooks"]) == (content["optimizer"], content["hooks"])
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(ValueError, match=r"torch\.save did not write it"):
        load_plain(tmp_path / "b.pth")
