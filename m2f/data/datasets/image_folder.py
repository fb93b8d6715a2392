"""The format `image_folder`: images without truth; and how any folder is searched for images."""

from __future__ import annotations

import os

from m2f.data.build import DATASET_FORMAT_REGISTRY
from m2f.data.catalog import DatasetEntry, LoadedDataset
from m2f.data.datasets.label_map import entry_metadata
from m2f.structures.sample import Record

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
)


@DATASET_FORMAT_REGISTRY.register("image_folder")
def load_image_folder(entry: DatasetEntry) -> LoadedDataset:
    """One record per image below `entry.image_dir`, sorted by path; only names and label map say what labels mean.

    Raises:
        FileNotFoundError: the folder is missing.
    """
    folder = entry.existing("image_dir")
    records: list[Record] = [
        {"file_name": os.path.join(folder, name), "image_id": os.path.splitext(name)[0], "height": 0, "width": 0}
        for name in images_below(folder)
    ]
    return LoadedDataset(entry_metadata(entry, None), records)


def images_below(folder: str) -> list[str]:
    """Relative paths (with `/`) of all images below a folder, whatever the case of their extension, sorted.

    Hidden files and folders are passed over: archives unpacked on other systems leave `._name.jpg` behind.
    """
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(where, folder).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        found += [prefix + name for name in names if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS
