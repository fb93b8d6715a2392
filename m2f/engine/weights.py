"""A model with the weights of a checkpoint, ready to answer: what inference and export begin with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from m2f.checkpoint.checkpointer import Checkpointer
from m2f.checkpoint.class_names import m2f_metadata
from m2f.checkpoint.loading import Info, LoadReport, load_state, read_state
from m2f.config import CfgNode
from m2f.data.build import entries, load_dataset
from m2f.data.catalog import DatasetEntry
from m2f.data.datasets.label_map import entry_metadata
from m2f.engine.setup import Task, task_directory
from m2f.modeling.build import build_model
from m2f.structures.metadata import Metadata

logger = logging.getLogger(__name__)


def checkpoint_of(cfg: CfgNode, task: Task) -> str | Path:
    """`<task>.checkpoint`, else the latest checkpoint of the training folder.

    Raises:
        FileNotFoundError: there is neither.
    """
    folder = task_directory(cfg, "train")
    source = cfg[task].checkpoint or Checkpointer(folder, cfg.model_name).latest()
    if source is None:
        raise FileNotFoundError(f"there is no checkpoint for {task}: set {task}.checkpoint; {folder} has none")
    return source


def load_model(cfg: CfgNode, source: str | Path, tasks: Sequence[str], device: torch.device) -> nn.Module:
    """The model of a spec with all weights of `source`, in eval mode, answering `tasks`; it has `metadata`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be used, does not fill the whole model, or nobody says what its classes are.
    """
    state, info = read_state(source, key=cfg.encryption_key)
    model = build_model(cfg, _classes(cfg, info))
    log_report(load_state(model, state, info, complete=True))
    model.tasks = tuple(tasks)  # type: ignore[assignment]  # a plain attribute of the meta-architecture
    return model.to(device).eval()


def log_report(report: LoadReport) -> None:
    """Say what became of a file's weights."""
    for line in report.lines():
        logger.info(line)


def _classes(cfg: CfgNode, info: Info) -> Metadata:
    """The classes of a checkpoint: as the spec's label map names them, as it says itself, or as the spec's data do."""
    saved = m2f_metadata(info.rest)
    if saved is not None and not cfg.dataset.label_map:
        return saved
    named = _classes_of_spec(cfg)
    if named is None:
        raise ValueError(f"{info.source} does not say what its classes are; set dataset.label_map, or name dataset.val")
    if saved is not None:
        _require_same_ids(saved, named, info.source)
    return named


def _classes_of_spec(cfg: CfgNode) -> Metadata | None:
    """Those of the first split that names data; neither images nor, with a table or label map, annotations are read."""
    for split in ("test", "val", "train"):
        try:
            entry = entries(cfg, split)[0]
        except ValueError:  # the split names nothing
            continue
        return _classes_of_entry(entry)
    return entry_metadata(_label_map_alone(cfg), None, _first_id(cfg)) if cfg.dataset.label_map else None


def _classes_of_entry(entry: DatasetEntry) -> Metadata:
    if entry.label_map or entry.categories:
        return entry_metadata(entry, None, first_id=1 if entry.zero_is_ignore else 0)
    return load_dataset(entry).metadata


def _label_map_alone(cfg: CfgNode) -> DatasetEntry:
    return DatasetEntry(
        name="label map",
        format="image_folder",
        label_map=cfg.dataset.label_map,
        contiguous_id=cfg.dataset.contiguous_id,
        num_classes=cfg.model.sem_seg_head.num_classes,
        ignore_label=cfg.dataset.ignore_label,
        keys={"label_map": "dataset.label_map"},
    )


def _first_id(cfg: CfgNode) -> int:
    return 1 if cfg.dataset.zero_is_ignore else 0


def _require_same_ids(saved: Metadata, named: Metadata, source: str) -> None:
    """A label map may rename and recolour classes, not exchange them."""
    here, there = ([(c.id, c.is_thing) for c in metadata.categories if not c.is_gap] for metadata in (saved, named))
    if here != there:
        differ = [f"id {a[0]} / {b[0]}" for a, b in zip(here, there, strict=False) if a != b]
        first = differ[0] if differ else f"{len(here)} / {len(there)} classes"
        raise ValueError(f"{source} and dataset.label_map disagree on ids or things: {first}")
