"""What COCO's instance and panoptic files share: images, categories, and the checks of both.

Everything is checked once, up front, in one pass; a fault names the dataset, the file and the entry in it.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

from m2f.data.catalog import DatasetEntry
from m2f.data.datasets.json_file import read_json, whole_number
from m2f.data.datasets.label_map import entry_metadata, parse_rows
from m2f.structures.metadata import Metadata
from m2f.structures.sample import Record


class CocoFile(NamedTuple):
    """A parsed file; `annotations` are not yet checked."""

    dataset: str
    path: str
    metadata: Metadata
    category_ids: frozenset[int]  # that the file defines
    records: dict[int | str, Record]  # by image id, in the file's order
    annotations: list[Any]

    def fault(self, where: str, what: str) -> ValueError:
        """An error that names dataset, file and entry."""
        return _fault(self.dataset, self.path, where, what)

    def record_of(self, row: Any, where: str) -> Record:
        """The image that an annotation belongs to.

        Raises:
            ValueError: the annotation is no object, or its image_id is absent or unknown.
        """
        if not isinstance(row, dict):
            raise self.fault(where, f"expected an object, got {row!r:.60}")
        image_id = row.get("image_id")
        record = self.records.get(image_id) if isinstance(image_id, (int, str)) else None
        if record is None:
            raise self.fault(
                where, "has no image_id" if image_id is None else f"image_id {image_id!r} is not in images"
            )
        return record

    def check_category(self, row: dict[str, Any], where: str) -> None:
        """Refuse a category_id that the file does not define."""
        category_id = row.get("category_id")
        if not isinstance(category_id, int) or category_id not in self.category_ids:
            raise self.fault(where, f"category_id {category_id!r} is not in categories")

    def check_id(self, row: dict[str, Any], where: str) -> None:
        """Refuse an annotation or segment id that is not a whole number greater than 0."""
        if not whole_number(row.get("id"), 1):
            raise self.fault(where, f"id {row.get('id')!r}; annotation ids must be whole numbers greater than 0")

    def check_crowd(self, row: dict[str, Any], where: str) -> None:
        """Refuse an iscrowd that is neither 0 nor 1; absent means 0."""
        if row.get("iscrowd", 0) not in (0, 1):
            raise self.fault(where, f"iscrowd is 0 or 1, got {row['iscrowd']!r}")

    def check_area(self, row: dict[str, Any], where: str) -> None:
        """Refuse an area that is no number of pixels; absent means that the mask is counted."""
        area = row.get("area", 0)
        if not isinstance(area, (int, float)) or not 0 <= area < math.inf:
            raise self.fault(where, f"area is a number of pixels, got {area!r}; leave it out where it is unknown")


def read_coco(entry: DatasetEntry, image_dir: str) -> CocoFile:
    """Read the file of an entry and check all but its annotations.

    Args:
        entry: its `annotations` name the file.
        image_dir: absolute folder that the images' file names are relative to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not COCO's format, or an entry in it is faulty.
    """
    path = entry.existing("annotations")
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f"dataset {entry.name!r}, {path}: not a COCO file ({entry.format}): it has no list {key!r}"
            )
    rows = parse_rows(content["categories"], f"dataset {entry.name!r}, {path}: categories")
    return CocoFile(
        dataset=entry.name,
        path=path,
        metadata=entry_metadata(entry, rows),
        category_ids=frozenset(row.id for row in rows),
        records=_image_records(entry.name, path, content["images"], image_dir),
        annotations=content["annotations"],
    )


def safe_join(folder: str, name: Any) -> str | None:
    """`folder/name`; None when `name` is no relative path, or leaves the folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or parts[0].endswith(":"):
        return None
    return os.path.join(folder, name)


def outside(name: Any) -> str:
    """What to say of a file name that `safe_join` refused."""
    if not isinstance(name, str) or not name:
        return f"has no file_name (got {name!r})"
    return f"file_name {name!r} leaves its folder; it must be a relative path without '..'"


def _fault(dataset: str, path: str, where: str, what: str) -> ValueError:
    return ValueError(f"dataset {dataset!r}, {path}: {where}: {what}")


def _image_records(dataset: str, path: str, images: list[Any], image_dir: str) -> dict[int | str, Record]:
    records: dict[int | str, Record] = {}
    for index, image in enumerate(images):
        where = f"images[{index}]"
        if (
            not isinstance(image, dict)
            or isinstance(image.get("id"), bool)
            or not isinstance(image.get("id"), (int, str))
        ):
            raise _fault(dataset, path, where, f"an image needs an id, got {image!r:.60}")
        image_id = image["id"]
        where = f"{where} (id {image_id!r})"
        if image_id in records:
            raise _fault(dataset, path, where, "another image has this id")
        file_name = safe_join(image_dir, image.get("file_name"))
        if file_name is None:
            raise _fault(dataset, path, where, outside(image.get("file_name")))
        height, width = image.get("height", 0), image.get("width", 0)
        if not (whole_number(height) and whole_number(width)):
            raise _fault(dataset, path, where, f"height and width are whole numbers, got {height!r} and {width!r}")
        records[image_id] = {"file_name": file_name, "image_id": image_id, "height": height, "width": width}
    return records
