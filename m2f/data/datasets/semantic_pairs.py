"""The format `ade`: pairs of image and semantic mask, from a JSONL list or from two folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from m2f.data.build import DATASET_FORMAT_REGISTRY
from m2f.data.catalog import DatasetEntry, LoadedDataset
from m2f.data.datasets.coco_file import safe_join
from m2f.data.datasets.image_folder import images_below
from m2f.data.datasets.json_file import parse_json, whole_number
from m2f.data.datasets.label_map import entry_metadata
from m2f.structures.metadata import Metadata
from m2f.structures.sample import Record

IMAGE_KEYS = ("img", "image", "file_name", "filename", "img_path", "image_path", "img_file", "image_file")
MASK_KEYS = (
    *("segm", "mask", "annotation", "label", "seg_map", "seg", "segmentation", "sem_seg_file_name"),
    *("segm_path", "mask_path", "annotation_path", "label_path", "seg_map_path", "mask_file", "label_file"),
)


@DATASET_FORMAT_REGISTRY.register("ade")
def load_semantic_pairs(entry: DatasetEntry) -> LoadedDataset:
    """One record per line of the list, or per image of the folder.

    Category ids are mask values: from 1 (0 is unlabelled), or from 0 when `entry.zero_is_ignore` is False.

    Raises:
        FileNotFoundError: a file or folder is missing, or images have no mask; the message counts and names them.
        ValueError: a line is faulty, or ids and mask values cannot agree.
    """
    records = list(_from_list(entry)) if entry.annotations else list(_from_folders(entry))
    return LoadedDataset(_metadata(entry), records)


def _metadata(entry: DatasetEntry) -> Metadata:
    metadata = entry_metadata(entry, None, first_id=1 if entry.zero_is_ignore else 0)
    if not entry.zero_is_ignore and min(metadata.label_of) > 0:
        raise ValueError(
            f"dataset {entry.name!r}: zero_is_ignore is False, so the mask value 0 is a class, but the ids of "
            f"{entry.key('label_map')} begin at {min(metadata.label_of)}; ids are mask values"
        )
    if entry.ignore_label in metadata.label_of:
        raise ValueError(
            f"dataset {entry.name!r}: the mask value {entry.ignore_label} is both dataset.ignore_label and the id of "
            f"{metadata.categories[metadata.label_of[entry.ignore_label]].name!r}"
        )
    return metadata


def _from_list(entry: DatasetEntry) -> Iterator[Record]:
    path = entry.existing("annotations")
    image_root, mask_root = _list_roots(entry, path)
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            row = parse_json(line.rstrip(), path, number)
            where = f"dataset {entry.name!r}, {path}:{number + 1}"
            if not isinstance(row, dict):
                raise ValueError(f'{where}: expected {{"img": path, "segm": path}}, got {row!r:.60}')
            image = _path(row, IMAGE_KEYS, image_root, where)
            yield {
                **_record(image, image_root),
                "height": row["height"] if whole_number(row.get("height")) else 0,
                "width": row["width"] if whole_number(row.get("width")) else 0,
                "sem_seg_file_name": _path(row, MASK_KEYS, mask_root, where),
            }


def _list_roots(entry: DatasetEntry, path: str) -> tuple[str, str]:
    """The folders that the list's paths are relative to: root_dir, else img_dir and mask_dir, else the list's own."""
    if entry.root_dir:
        root = entry.existing("root_dir")
        return root, root
    own = os.path.dirname(path)
    images = entry.existing("image_dir") if entry.image_dir else own
    return images, entry.existing("mask_dir") if entry.mask_dir else own


def _path(row: dict[str, Any], keys: tuple[str, ...], root: str, where: str) -> str:
    """The path under the first of `keys` that a line has; it may be spelled absolutely if it lies in `root`."""
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise ValueError(f"{where}: has none of the keys {', '.join(keys)}; found {', '.join(row) or 'nothing'}")
    name = row[key]
    if isinstance(name, str) and os.path.isabs(name):
        name = os.path.relpath(name, root)
    path = safe_join(root, name)
    if path is None:
        raise ValueError(
            f"{where}: {key} {row[key]!r} is no path inside {root}; root_dir names the folder that holds it"
        )
    return path


def _from_folders(entry: DatasetEntry) -> Iterator[Record]:
    if not entry.mask_dir:
        raise ValueError(
            f"dataset {entry.name!r} (ade) has no masks: set {entry.key('annotations')} to a list of images and masks, "
            f"or {entry.key('mask_dir')} to a folder of masks named as the images"
        )
    image_dir, mask_dir = entry.existing("image_dir"), entry.existing("mask_dir")
    images = _by_stem(image_dir, entry.stem_endings[0])
    masks = _by_stem(mask_dir, entry.stem_endings[1])
    missing = sorted(images.keys() - masks.keys())
    if missing:
        raise FileNotFoundError(
            f"dataset {entry.name!r}: {len(missing)} of {len(images)} images of {image_dir} have no mask of the same "
            f"name in {mask_dir}: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    for stem, image in images.items():
        yield {**_record(image, image_dir), "sem_seg_file_name": masks[stem]}


def _by_stem(folder: str, ending: str) -> dict[str, str]:
    """Relative path without extension and `ending` -> absolute path, of the images whose stem ends so."""
    found: dict[str, str] = {}
    for name in images_below(folder):
        stem = os.path.splitext(name)[0]
        if not stem.endswith(ending):
            continue
        stem = stem.removesuffix(ending)
        if stem in found:
            raise ValueError(f"{folder}: {name} and {os.path.basename(found[stem])} have the same stem")
        found[stem] = os.path.join(folder, name)
    return found


def _record(image: str, folder: str) -> Record:
    name = os.path.splitext(os.path.relpath(image, folder))[0].replace(os.sep, "/")
    return {"file_name": image, "image_id": name, "height": 0, "width": 0}
