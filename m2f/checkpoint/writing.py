"""Weights out: one writer per home, and nothing under its final name before it is whole.

The names and layouts are those of `schemes`; here are the containers around them.
"""

from __future__ import annotations

import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import m2f
from m2f.checkpoint.architecture import PARTS
from m2f.checkpoint.atomic import replace_directory, replace_file, sync_file
from m2f.checkpoint.formats import save_plain
from m2f.checkpoint.huggingface_files import config_json, preprocessor_json
from m2f.checkpoint.schemes import State, from_m2f
from m2f.checkpoint.schemes.official import EMPTY_WEIGHT
from m2f.config import CfgNode, dump_spec
from m2f.structures.metadata import Category, Metadata, contiguous_metadata

HUGGINGFACE_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_HEAD_BIAS = "transformer_decoder.class_embed.bias"
_WEIGHT_SUFFIX = re.compile(r"\.(pth|pt|pkl|bin|safetensors|json)$")

# Official heads whose modules say "version 2". Without it, the official code takes the names for older ones and renames
# them once more, after which no pixel decoder is loaded.
_OFFICIAL_VERSIONS = {"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}}
# The last version whose checkpoints Lightning migrates; a file without a version it does not open.
_LIGHTNING = "2.0.0"


@dataclass(frozen=True)
class Weights:
    """Weights on their way out, and what is known of them.

    Attributes:
        state: under m2f's names.
        class_names: in label order; None where nobody knows.
        metadata: with the classes' ids, things and colours, where those are known as well.
        cfg: the spec of the model, where there is one.
    """

    state: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None = None
    metadata: Metadata | None = None
    cfg: CfgNode | None = None

    @property
    def num_classes(self) -> int | None:
        """K, by the class head; None of a backbone alone."""
        bias = self.state.get(_HEAD_BIAS)
        return None if bias is None else len(bias) - 1

    def missing_parts(self) -> list[str]:
        """The parts of a Mask2Former that are not there."""
        return [part for part in PARTS if not any(name.startswith(f"{part}.") for name in self.state)]


@dataclass(frozen=True)
class Home:
    """How one home's container is written.

    Attributes:
        write: puts weights into a file, or into the files of an empty folder, and counts the tensors.
        suffixes: that the file's name may have; none: it is a folder.
        needs_all: a backbone alone has no place there.
        keeps: what it holds beside the tensors, as a reader would call it.
        encrypts: `write` takes a `key` as well; other homes have readers that could do nothing with the file.
    """

    write: Callable[..., int]
    suffixes: tuple[str, ...]
    needs_all: bool
    keeps: frozenset[str] = frozenset()
    encrypts: bool = False


def write_weights(weights: Weights, home: str, target: Path, *, overwrite: bool = False, key: str = "") -> int:
    """Write weights as `home` keeps them.

    Args:
        weights: of a model, or of a backbone alone where the home has a place for one.
        home: a key of `HOMES`.
        target: the file or, for huggingface, the folder.
        overwrite: take the place of what is there.
        key: encrypts the file.

    Returns:
        The number of tensors written.

    Raises:
        FileExistsError: the target is there.
        ModuleNotFoundError: a package is needed, for safetensors or to encrypt, and not installed.
        OSError: the disk is full, or the folder may not be written to; the target is as it was.
        ValueError: the home cannot hold these weights, or the target is no name for them. Nothing is written then.
    """
    check_target(home, target, overwrite=overwrite, key=key)
    row, missing = HOMES[home], weights.missing_parts()
    if row.needs_all and missing:
        homes = " or ".join(name for name, other in HOMES.items() if not other.needs_all)
        raise ValueError(
            f"{home} files hold whole models, and these weights lack {' and '.join(missing)}; "
            f"a part can be written as {homes}"
        )
    counted: list[int] = []
    replace = replace_file if row.suffixes else replace_directory
    write = partial(row.write, key=key) if key else row.write
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(target, lambda path: counted.append(write(weights, path)))
    except OSError as error:
        raise OSError(f"{target} cannot be written, and is as it was: {error}") from error
    return counted[0]


def check_target(home: str, target: Path, *, overwrite: bool = False, key: str = "") -> None:
    """Whether `home` can be written to `target`; asked early, since reading may take a while.

    Raises:
        FileExistsError: it is there, and may not be replaced.
        ValueError: there is no such home, its files are called otherwise, or are never encrypted.
    """
    if home not in HOMES:
        raise ValueError(f"weights are written as {', '.join(HOMES)}, not as {home!r}")
    if key and not HOMES[home].encrypts:
        raise ValueError(
            f"{home} files are not encrypted, as only m2f could read them; give an empty --output-key for plain ones"
        )
    suffixes = HOMES[home].suffixes
    if suffixes and target.suffix not in suffixes:
        raise ValueError(f"{target}: a file for {home} ends in {' or '.join(suffixes)}")
    if not suffixes and _WEIGHT_SUFFIX.search(target.name):
        raise ValueError(f"{target}: for {home} a folder is written, {', '.join(HUGGINGFACE_FILES)}; name it as one")
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{target} is there already; remove it, name another output, or add --overwrite")
    _require_replaceable(home, target)


def named_metadata(names: Sequence[str], num_classes: int) -> Metadata:
    """Classes of which only the names are known; without names they have transformers' own placeholders."""
    names = names or [f"LABEL_{label}" for label in range(num_classes)]
    return contiguous_metadata("", [Category(label, name) for label, name in enumerate(names)])


def _require_replaceable(home: str, target: Path) -> None:
    """A folder is replaced only where nothing but a former output is lost with it."""
    if HOMES[home].suffixes:
        if target.is_dir():
            raise FileExistsError(f"{target} is a folder; name a file")
        return
    others = sorted({path.name for path in target.iterdir()} - {*HUGGINGFACE_FILES}) if target.is_dir() else [""]
    if others:
        held = f"holds {', '.join(others[:3])} as well" if target.is_dir() else "is a file"
        raise FileExistsError(f"{target} {held}: only a folder of {', '.join(HUGGINGFACE_FILES)} is replaced")


def _write_m2f(weights: Weights, path: Path, key: str = "") -> int:
    """m2f's own checkpoint without the training state."""
    known = {
        "metadata": weights.metadata and weights.metadata.to_dict(),
        "class_names": None if weights.metadata or weights.class_names is None else list(weights.class_names),
        "spec": weights.cfg and dump_spec(weights.cfg),
    }
    state = _compact(weights.state)
    rest = {key: value for key, value in known.items() if value is not None}
    save_plain(path, {"model": state, "m2f_version": m2f.__version__, **rest}, key)
    return len(state)


def _write_safetensors(weights: Weights, path: Path) -> int:
    """m2f's names; the header's texts say so, and name the classes."""
    header = {"format": "pt", "scheme": "m2f", "m2f_version": m2f.__version__}
    if weights.class_names is not None:
        header["class_names"] = json.dumps(weights.class_names)
    if weights.metadata is not None:
        header["metadata"] = json.dumps(weights.metadata.to_dict())
    return _save_safetensors(path, weights.state, header)


def _write_official(weights: Weights, path: Path) -> int:
    """A file of Detectron2's: numpy arrays as in its model zoo (`.pkl`), or tensors (`.pth`)."""
    state: OrderedDict[str, Any] = OrderedDict(_compact(from_m2f(_with_loss_weights(weights), "official")))
    # Not an entry but an attribute: so torch's modules hand their versions on, and pickles keep it.
    state._metadata = OrderedDict(_OFFICIAL_VERSIONS)  # type: ignore[attr-defined]
    content = {"model": state, "__author__": f"m2f {m2f.__version__}"}
    if path.suffix == ".pth":
        save_plain(path, content)
    else:
        state.update({name: _array(tensor) for name, tensor in state.items()})
        _dump(path, content)
    return len(state)


def _write_tao(weights: Weights, path: Path) -> int:
    """What Lightning's `load_from_checkpoint` asks for."""
    state = _compact(from_m2f(_with_loss_weights(weights), "tao"))
    save_plain(path, {"epoch": 0, "global_step": 0, "pytorch-lightning_version": _LIGHTNING, "state_dict": state})
    return len(state)


def _write_huggingface(weights: Weights, folder: Path) -> int:
    """A folder that `Mask2FormerForUniversalSegmentation.from_pretrained` reads."""
    if weights.cfg is None:
        raise ValueError(
            "a Hugging Face folder holds a config.json, for which the architecture must be known: give the model's "
            "spec as --config-file (a training checkpoint of m2f carries its own)"
        )
    metadata = weights.metadata or named_metadata(weights.class_names or (), weights.num_classes or 0)
    state = from_m2f(_with_loss_weights(weights), "huggingface")
    config, preprocessor, tensors = (folder / name for name in HUGGINGFACE_FILES)
    for path, content in (
        (config, config_json(weights.cfg, metadata)),
        (preprocessor, preprocessor_json(weights.cfg, metadata)),
    ):
        path.write_text(json.dumps(content, indent=2) + "\n")
        sync_file(path)
    return _save_safetensors(tensors, state, {"format": "pt"})


def _with_loss_weights(weights: Weights) -> State:
    """The state with the loss's class weights of the spec, which the homes save among the weights."""
    state, num_classes = dict(weights.state), weights.num_classes
    if weights.cfg is not None and num_classes is not None:
        state[EMPTY_WEIGHT] = torch.ones(num_classes + 1)
        state[EMPTY_WEIGHT][-1] = weights.cfg.model.mask_former.no_object_weight
    return state


def _compact(state: Mapping[str, Tensor]) -> State:
    """Each tensor in a storage of its own: a view would bring along what it is a view of."""
    return {
        name: tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor.contiguous()
        for name, tensor in state.items()
    }


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _save_safetensors(path: Path, state: Mapping[str, Tensor], header: dict[str, str]) -> int:
    try:
        from safetensors.torch import save  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        message = "safetensors is needed to write this: pip install 'm2f[huggingface]' (or safetensors)"
        raise ModuleNotFoundError(message, name="safetensors") from error
    path.write_bytes(save(_compact(state), header))  # its own writer makes files that nobody else may read
    sync_file(path)
    return len(state)


def _dump(path: Path, content: dict[str, Any]) -> None:
    """Pickle numpy arrays so that numpy 1 reads them too.

    Protocol 3 names a function once, as text, before its first use. Numpy 2 has moved that of the arrays, and
    Detectron2 is mostly run with a numpy that does not know the new place; numpy 2 still knows the old one.
    """
    pickled = pickle.dumps(content, protocol=3)
    new, old = (b"cnumpy.%s.multiarray\n" % core for core in (b"_core", b"core"))
    place = pickled.find(new)
    head, done = (pickled[:place] + old, place + len(new)) if place >= 0 else (b"", 0)
    with path.open("wb") as file:
        file.write(head)
        file.write(memoryview(pickled)[done:])
    sync_file(path)


HOMES: dict[str, Home] = {
    "m2f": Home(_write_m2f, (".pth", ".pt"), needs_all=False, keeps=frozenset({"classes", "spec"}), encrypts=True),
    "official": Home(_write_official, (".pkl", ".pth"), needs_all=True),
    "huggingface": Home(_write_huggingface, (), needs_all=True, keeps=frozenset({"classes", "spec"})),
    "tao": Home(_write_tao, (".pth",), needs_all=True),
    "safetensors": Home(_write_safetensors, (".safetensors",), needs_all=False, keeps=frozenset({"classes"})),
}
