"""From cfg to data: the registries of this room, the datasets that a split names, and how one is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from m2f.data.catalog import DatasetCatalog, DatasetEntry, LoadedDataset, datasets_root
from m2f.data.packed import PackedRecords
from m2f.registry import Registry
from m2f.structures.sample import Record

DATASET_FORMAT_REGISTRY = Registry(
    "dataset format",
    "`fn(entry: DatasetEntry) -> LoadedDataset` reads annotation files, never pixels. Key: `dataset.<split>.type`.",
)
DATASET_MAPPER_REGISTRY = Registry(
    "dataset mapper",
    """`build(name, cfg, metadata: Metadata, split: str)` gives `mapper(record, rng) -> ModelInput | None`, with
    `rng: np.random.Generator`; None drops the record. The key is `dataset.<split>.mapper`.""",
)
SAMPLER_REGISTRY = Registry(
    "sampler",
    """`build(name, cfg, records, seed: int)` gives an endless order of `Draw(position, index)`, a pure function of
    (seed, position). The key is `dataset.train.sampler`.""",
)

# The spec keys that may name the annotation file, by format; the first is what messages suggest.
_ANNOTATION_KEYS: dict[str, tuple[str, ...]] = {
    "ade": ("annot_file",),
    "coco": ("instance_json", "annot_file"),
    "coco_panoptic": ("panoptic_json", "annot_file"),
}
_PATH_KEYS = ("panoptic_json", "instance_json", "annot_file", "img_dir", "mask_dir")


def entries(cfg: Any, split: str, names: Sequence[str] = ()) -> list[DatasetEntry]:
    """The datasets to use as `split`: those called `names`, else what `dataset.<split>` says.

    Paths in the split win over its `name`, which then is only what the dataset is called.

    Args:
        cfg: the whole configuration.
        split: "train", "val" or "test".
        names: names from the catalog, as in `evaluate.datasets`.

    Raises:
        ValueError: the split names neither paths nor a dataset, or two different annotation files.
        KeyError: a dataset or format of that name does not exist.
    """
    node = cfg.dataset[split]
    if names:
        return [_from_catalog(cfg, split, name) for name in names]
    if any(node[key] for key in _PATH_KEYS):
        return [_from_paths(cfg, split)]
    if node.name:
        return [_from_catalog(cfg, split, node.name)]
    keys = ", ".join(f"dataset.{split}.{key}" for key in _ANNOTATION_KEYS.get(node.type, ("annot_file",)))
    raise ValueError(
        f"dataset.{split} names no data: set {keys} (type {node.type!r}) with dataset.{split}.img_dir, "
        f"or dataset.{split}.name to one of {', '.join(DatasetCatalog.names())}"
    )


def load_dataset(entry: DatasetEntry) -> LoadedDataset:
    """Read an entry's annotation files; the records come in one packed buffer, ready to be shared by workers.

    Raises:
        KeyError: `entry.format` is not registered.
        FileNotFoundError: a file or folder of the entry is missing; the message names its key.
        ValueError: the files contradict their format, or hold no image.
    """
    read = DATASET_FORMAT_REGISTRY.get(entry.format)
    if entry.prepare is not None:
        entry.prepare(datasets_root())
    metadata, records = read(entry)
    if entry.filter_empty:
        records = [record for record in records if _has_target(record)]
    if entry.max_images > 0:
        records = records[: entry.max_images]
    if not records:
        raise ValueError(
            f"dataset {entry.name!r} ({entry.format}) holds no image: {entry.annotations or entry.image_dir}"
        )
    return LoadedDataset(metadata, PackedRecords.of(records))


def _has_target(record: Record) -> bool:
    """Whether the annotation lists something that is not a crowd; a semantic mask is taken at its word."""
    if "sem_seg_file_name" in record:
        return True
    rows: Sequence[Any] = record.get("annotations") or record.get("segments_info") or ()
    return any(not row.get("iscrowd", 0) for row in rows)


def _from_catalog(cfg: Any, split: str, name: str) -> DatasetEntry:
    """A catalog row as `split` uses it: the row knows its files, masks and categories; what the spec sets wins.

    A key of the spec that has its default leaves the row's own value alone.
    """
    entry = DatasetCatalog.get(name)
    fields = ("label_map", "zero_is_ignore", "ignore_label")
    chosen = {field: cfg.dataset[field] for field in fields if cfg.dataset[field] != getattr(DatasetEntry, field)}
    keys = {**entry.keys, **{field: f"dataset.{field}" for field in chosen}}
    return replace(entry, **_shared(cfg, split), **chosen, keys=keys)


def _shared(cfg: Any, split: str) -> dict[str, Any]:
    """What the spec decides for catalog rows and paths alike."""
    node = cfg.dataset[split]
    return {
        "contiguous_id": cfg.dataset.contiguous_id,
        "num_classes": cfg.model.sem_seg_head.num_classes,
        "max_images": node.get("max_images", 0),
        "filter_empty": node.get("filter_empty", False),
    }


def _from_paths(cfg: Any, split: str) -> DatasetEntry:
    node, data = cfg.dataset[split], cfg.dataset
    DATASET_FORMAT_REGISTRY.get(node.type)
    annotation_key, annotations = _annotation_file(node, split)
    root = node.root_dir or data.root_dir
    chosen = {
        "annotations": (annotation_key, annotations),
        "image_dir": ("img_dir", node.img_dir),
        "panoptic_dir": ("panoptic_dir", node.panoptic_dir),
        "mask_dir": ("mask_dir", node.mask_dir),
    }
    paths: dict[str, Any] = {field: _join(root, path) for field, (_, path) in chosen.items()}
    stem = os.path.splitext(os.path.basename(annotations or node.img_dir.rstrip("/")))[0]
    return DatasetEntry(
        name=node.name or stem,
        format="image_folder" if split == "test" and not (annotations or node.mask_dir) else node.type,
        **paths,
        **_shared(cfg, split),
        root_dir=root,
        label_map=data.label_map,
        zero_is_ignore=data.zero_is_ignore,
        ignore_label=data.ignore_label,
        keys={
            **{field: f"dataset.{split}.{key}" for field, (key, _) in chosen.items()},
            "root_dir": f"dataset.{split}.root_dir" if node.root_dir else "dataset.root_dir",
            "label_map": "dataset.label_map",
        },
    )


def _annotation_file(node: Any, split: str) -> tuple[str, str]:
    """The key and value of the annotation file of a split's type."""
    keys = _ANNOTATION_KEYS.get(node.type, ("annot_file", "panoptic_json", "instance_json"))
    given = {key: node[key] for key in keys if node[key]}
    if len(set(given.values())) > 1:
        both = " and ".join(f"dataset.{split}.{key} = {value!r}" for key, value in given.items())
        raise ValueError(f"{both} name different annotation files; keep one")
    return next(iter(given.items()), (keys[0], ""))


def _join(root: str, path: str) -> str:
    return os.path.join(root, path) if path else ""
