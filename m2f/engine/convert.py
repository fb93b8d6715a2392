"""One home's weights for another: read, put into the model of the spec where there is one, written."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import yaml
from torch import nn

from m2f.checkpoint.architecture import PARTS
from m2f.checkpoint.class_names import m2f_metadata
from m2f.checkpoint.huggingface_spec import spec_from_config
from m2f.checkpoint.loading import Info, load_state, read_state
from m2f.checkpoint.schemes import State
from m2f.checkpoint.writing import HOMES, Weights, check_target, named_metadata, write_weights
from m2f.config import CfgNode, SpecError, load_spec, split_key
from m2f.config.reader import SpecDumper, read_yaml
from m2f.data.build import entries, load_dataset
from m2f.data.catalog import DatasetEntry
from m2f.data.datasets.label_map import entry_metadata
from m2f.modeling.build import build_model
from m2f.structures.metadata import Metadata

logger = logging.getLogger(__name__)

SHOWN = 4  # names that a line lists
# What a file holds beside its weights that is no loss: who wrote it with what, a safetensors file's texts.
_NO_LOSS = ("m2f_version", "header", "__author__", "pytorch-lightning_version")
_OF_CLASSES, _OF_SPEC = ("metadata", "class_names"), ("spec", "config", "preprocessor")


@dataclass(frozen=True)
class Conversion:
    """What was read, what was written, what was not, and how weights were changed to fit the spec."""

    read: str
    written: str
    dropped: tuple[str, ...]
    adapted: tuple[str, ...]

    def lines(self) -> list[str]:
        """Three lines, and those of the rules that changed weights."""
        return [
            f"read {self.read}",
            f"wrote {self.written}",
            f"dropped: {', '.join(self.dropped) or 'nothing'}",
            *self.adapted,
        ]


class _Opened(NamedTuple):
    state: State
    info: Info
    cfg: CfgNode | None
    model: nn.Module | None
    data: Metadata | None  # of the spec that the user gave


def convert(
    source: str | Path,
    home: str,
    target: str | Path,
    *,
    spec: str | Path | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    output_key: str | None = None,
) -> Conversion:
    """Read weights of any home and write them for another.

    With a spec, given or brought by the file (an m2f checkpoint's, a Hugging Face folder's config), they go through its
    model, so that nothing is written that does not fit. Without one they are renamed.

    Args:
        source: what `read_state` reads.
        home: a key of `writing.HOMES`.
        target: the file or folder to write.
        spec: of the model; wins over the one that the file brings. Its `encryption_key` decrypts what is read.
        overrides: change the spec; `encryption_key` may be among them where there is none.
        overwrite: take the place of what is there.
        output_key: encrypts what is written; empty: nothing does; None: the key that decrypts.

    Raises:
        OSError: a file is not there, may not be written, or is there already.
        ModuleNotFoundError: an optional package is needed.
        ValueError: the weights cannot be read, do not fit the spec, or have no place in that home.
    """
    target = Path(target).expanduser()
    key, others = split_key(overrides)
    cfg = None if spec is None else load_spec(spec, overrides)
    key = key if cfg is None else cfg.encryption_key
    output_key = key if output_key is None else output_key
    check_target(home, target, overwrite=overwrite, key=output_key)
    opened = _open(source, cfg, others, key)
    weights, ignored, adapted = _renamed(opened) if opened.model is None else _fitted(opened, opened.model)
    count = write_weights(weights, home, target, overwrite=overwrite, key=output_key)
    encrypted = ", encrypted" if output_key else ""
    return Conversion(
        read=f"{_tensors(len(opened.state))} from {opened.info.source} ({opened.info.scheme} names)",
        written=f"{target}: {_tensors(count)} for {home}{encrypted}, {_classes_said(weights, home)}",
        dropped=tuple(_dropped(opened.info, weights, home, ignored)),
        adapted=adapted,
    )


def _open(source: str | Path, cfg: CfgNode | None, overrides: Sequence[str], key: str) -> _Opened:
    """Read the weights, and find and build their model: that of `cfg`, else of the spec that the file brings."""
    if cfg is not None:
        model = _build(cfg)
        return _Opened(*read_state(source, model.state_dict().keys(), key), cfg, model, _dataset_metadata(cfg))
    state, info = read_state(source, key=key)
    stored = _stored_spec(info, overrides)
    return _Opened(state, info, stored, None if stored is None else _build(stored), None)


def _build(cfg: CfgNode) -> nn.Module:
    try:
        return build_model(cfg, named_metadata((), cfg.model.sem_seg_head.num_classes))
    except KeyError as error:  # a registered name is asked for that there is not
        raise ValueError(error.args[0]) from error


def _stored_spec(info: Info, overrides: Sequence[str]) -> CfgNode | None:
    """The spec that a file brings along."""
    text, config = info.rest.get("spec"), info.rest.get("config")
    if isinstance(text, str):
        return _load_text(text, f"the spec inside {info.source}", overrides)
    if isinstance(config, dict) and config.get("model_type") == "mask2former":
        tree = spec_from_config(config, info.rest.get("preprocessor"))
        return _load_text(yaml.dump(tree, Dumper=SpecDumper), f"the config.json of {info.source}", overrides)
    if overrides:
        raise ValueError(f"{info.source} brings no spec for {overrides[0]} to change; give one as --config-file")
    return None


def _load_text(text: str, name: str, overrides: Sequence[str]) -> CfgNode:
    """A spec that is not a file. It comes with weights, perhaps from a stranger, and so may not name code to run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            named = {"_PROJECTS_", "_BASE_"} & read_yaml(path).keys()
            if named:
                raise SpecError(
                    f"{path} has {' and '.join(sorted(named))}, and what a weight file names is not run; "
                    "give the spec as --config-file"
                )
            return load_spec(path, overrides)
        except SpecError as error:
            raise SpecError(str(error).replace(str(path), name)) from None


def _renamed(opened: _Opened) -> tuple[Weights, list[str], tuple[str, ...]]:
    """The file's tensors as they are, without those that belong to no part of a model."""
    state, info = opened.state, opened.info
    kept = {name: tensor for name, tensor in state.items() if info.scheme == "m2f" or name.split(".")[0] in PARTS}
    return _with_classes(Weights(kept), info, None), [name for name in state if name not in kept], ()


def _fitted(opened: _Opened, model: nn.Module) -> tuple[Weights, list[str], tuple[str, ...]]:
    """The tensors of the spec's model, filled from the file."""
    info, cfg = opened.info, opened.cfg
    assert cfg is not None
    known = _with_classes(Weights(opened.state, cfg=cfg), info, opened.data)
    num_classes = cfg.model.sem_seg_head.num_classes
    model.metadata = known.metadata or named_metadata(known.class_names or (), num_classes)  # type: ignore[assignment]
    is_backbone = known.missing_parts() == [part for part in PARTS if part != "backbone"]
    report = load_state(model, opened.state, info, part="backbone" if is_backbone else None, complete=True)
    own = model.state_dict()
    return replace(known, state={name: own[name] for name in report.loaded}), list(report.ignored), report.adapted


def _with_classes(weights: Weights, info: Info, data: Metadata | None) -> Weights:
    """The classes as the file has them, else as the data of the spec has; a list of another length is neither's."""
    metadata, names, num_classes = m2f_metadata(info.rest), info.class_names, weights.num_classes
    if names is not None and len(names) != num_classes:
        metadata = names = None
    if (
        metadata is None
        and data is not None
        and data.num_classes == num_classes
        and (names or data.names) == data.names
    ):
        metadata, names = data, tuple(data.names)
    return replace(weights, metadata=metadata, class_names=names)


def _dataset_metadata(cfg: CfgNode) -> Metadata | None:
    """The classes of the data that a spec names: of its files, or of a label map alone where those are not here."""
    for read in (_from_files, _from_table):
        for split in ("val", "train"):
            try:
                metadata = read(replace(entries(cfg, split)[0], prepare=None))
            except (ValueError, KeyError, OSError) as error:
                logger.info("dataset.%s does not name the classes: %s", split, error)
                continue
            if metadata is not None and metadata.num_classes == cfg.model.sem_seg_head.num_classes:
                return metadata
    return None


def _from_files(entry: DatasetEntry) -> Metadata:
    return load_dataset(entry).metadata


def _from_table(entry: DatasetEntry) -> Metadata | None:
    first_id = 0 if entry.format == "ade" and not entry.zero_is_ignore else 1
    return entry_metadata(entry, None, first_id) if entry.label_map or entry.categories else None


def _classes_said(weights: Weights, home: str) -> str:
    number, names = weights.num_classes, weights.class_names
    if number is None:
        return "no class head"
    if "classes" not in HOMES[home].keeps:
        return f"{number} classes"
    if names is None:
        called = ", which config.json calls LABEL_0 and so on" if home == "huggingface" else ""
        return f"{number} classes{called}: neither the file nor the data of a spec names them"
    unknown = "" if weights.metadata or home != "m2f" else "; their ids, and which are things, are not known"
    return f"{number} classes ({_some(names)}{unknown})"


def _dropped(info: Info, weights: Weights, home: str, ignored: Sequence[str]) -> list[str]:
    """What the file held and the new one does not."""
    keeps = HOMES[home].keeps
    kept = {*_NO_LOSS, *(_OF_CLASSES if "classes" in keeps else ()), *(_OF_SPEC if "spec" in keeps else ())}
    dropped = [str(key) for key in info.rest if key not in kept]
    if weights.class_names is not None and "classes" not in keeps and not {*_OF_CLASSES} & {*dropped}:
        dropped.append("the names of the classes")
    if ignored:
        dropped.append(f"{_tensors(len(ignored))} ({_some(ignored)})")
    return dropped


def _tensors(number: int) -> str:
    return f"{number} tensor{'' if number == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
