"""Datasets as rows: what a `DatasetEntry` says, what loading one gives, and the catalog that knows rows by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from m2f.structures.metadata import Metadata
from m2f.structures.sample import Record

PATH_FIELDS = ("annotations", "image_dir", "panoptic_dir", "mask_dir", "root_dir", "label_map")


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset: a format and where its files lie. A row of the catalog and a split of a spec are the same value.

    Attributes:
        name: for logs and result tables.
        format: a member of `DATASET_FORMAT_REGISTRY`.
        annotations: annotation file, in the format's own language.
        image_dir: folder that image names of `annotations` are relative to, or that is searched for images.
        panoptic_dir: folder of panoptic PNGs.
        mask_dir: folder of semantic masks, one for each image of `image_dir`, of the same stem.
        stem_endings: what an image's and its mask's stem end in beyond the part they share.
        root_dir: folder that the paths inside a list of images and masks are relative to.
        label_map: file of names, colours and things; wins over `categories`.
        categories: name of a category table that m2f brings, see `label_map.packaged_table`.
        contiguous_id: True: label = position in the annotation file's categories; False: label = id - 1.
        num_classes: labels of raw ids, and of masks that nobody named; 0: as many as the files need.
        zero_is_ignore: semantic masks: 0 is unlabelled and ids begin at 1; False: 0 is the first class.
        ignore_label: mask value and label that counts neither in loss nor in metric.
        max_images: keep the first n images; 0 keeps all.
        filter_empty: leave out images whose annotation lists no target.
        prepare: called with the datasets' root before the first file is read; may write the files.
        keys: field -> the spec key that it came from, for messages.
    """

    name: str
    format: str
    annotations: str = ""
    image_dir: str = ""
    panoptic_dir: str = ""
    mask_dir: str = ""
    stem_endings: tuple[str, str] = ("", "")
    root_dir: str = ""
    label_map: str = ""
    categories: str = ""
    contiguous_id: bool = True
    num_classes: int = 0
    zero_is_ignore: bool = True
    ignore_label: int = 255
    max_images: int = 0
    filter_empty: bool = False
    prepare: Callable[[Path], None] | None = None
    keys: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def key(self, name: str) -> str:
        """What a user would call the field `name`: the spec key it came from, or the entry and the field."""
        return self.keys.get(name, f"{self.name}: {name}")

    def existing(self, name: str) -> str:
        """The absolute path in field `name`.

        Raises:
            ValueError: the field is empty.
            FileNotFoundError: nothing lies there, or a folder where a file should be, or the reverse.
        """
        path: str = getattr(self, name)
        if not path:
            raise ValueError(f"{self.key(name)} is not set, and dataset {self.name!r} ({self.format}) needs it")
        is_folder = name.endswith("_dir")
        if not (os.path.isdir(path) if is_folder else os.path.isfile(path)):
            kind = "folder" if is_folder else "file"
            raise FileNotFoundError(f"{self.key(name)}: no such {kind}: {path}")
        return os.path.abspath(path)


class LoadedDataset(NamedTuple):
    """What a format's reader gives: what the labels mean, and one record per image, in the file's order.

    A reader gives a list; `load_dataset` packs it.
    """

    metadata: Metadata
    records: Sequence[Record]


def datasets_root() -> Path:
    """The folder that relative paths of the catalog are relative to: `M2F_DATASETS`, else `datasets`."""
    return Path(os.environ.get("M2F_DATASETS") or "datasets")


class Catalog:
    """Entries by name. Paths stay relative until a row is asked for, so that `M2F_DATASETS` may be set late."""

    def __init__(self) -> None:
        self._entries: dict[str, DatasetEntry] = {}

    def register(self, entry: DatasetEntry) -> None:
        """Add a row; its relative paths are relative to `datasets_root()`.

        Raises:
            KeyError: the name is taken.
        """
        if entry.name in self._entries:
            raise KeyError(f"dataset {entry.name!r} is already registered: {self._entries[entry.name]}")
        self._entries[entry.name] = entry

    def get(self, name: str) -> DatasetEntry:
        """The row called `name`, its paths joined with the datasets' root.

        Raises:
            KeyError: there is none; the message lists the names and the nearest.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"unknown dataset {name!r}{hint} Registered: {', '.join(self.names()) or 'none'}")
        entry, root = self._entries[name], datasets_root()
        joined: dict[str, Any] = {key: str(root / path) for key in PATH_FIELDS if (path := getattr(entry, key))}
        return replace(entry, **joined)

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._entries)


DatasetCatalog = Catalog()
