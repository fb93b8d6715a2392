"""The format `coco`: COCO's instance file, with polygons, both kinds of RLE, and crowds."""

from __future__ import annotations

from typing import Any, cast

from m2f.data.build import DATASET_FORMAT_REGISTRY
from m2f.data.catalog import DatasetEntry, LoadedDataset
from m2f.data.datasets.coco_file import CocoFile, read_coco
from m2f.structures.sample import Annotation, Record

_KEPT = ("id", "category_id", "segmentation", "iscrowd", "area")


@DATASET_FORMAT_REGISTRY.register("coco")
def load_coco_instances(entry: DatasetEntry) -> LoadedDataset:
    """One record per image of the file, those without objects included.

    Raises:
        FileNotFoundError: the file or the image folder is missing.
        ValueError: an entry of the file is faulty; see `coco_file`.
    """
    file = read_coco(entry, entry.existing("image_dir"))
    for record in file.records.values():
        record["annotations"] = []
    seen: set[int] = set()
    for index, row in enumerate(file.annotations):
        where = f"annotations[{index}]"
        record = file.record_of(row, where)
        where = f"{where} (id {row.get('id')!r}, image {record['image_id']!r})"
        file.check_id(row, where)
        if row["id"] in seen:
            raise file.fault(where, "another annotation has this id")
        seen.add(row["id"])
        file.check_category(row, where)
        file.check_crowd(row, where)
        file.check_area(row, where)
        _check_segmentation(file, row, record, where)
        record["annotations"].append(cast(Annotation, {key: row[key] for key in _KEPT if key in row}))
    return LoadedDataset(file.metadata, list(file.records.values()))


def _check_segmentation(file: CocoFile, row: dict[str, Any], record: Record, where: str) -> None:
    """Refuse what cannot be turned into a mask of the image's size."""
    shape = row.get("segmentation")
    if isinstance(shape, list):
        if not all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in shape):
            raise file.fault(where, "a polygon is a list [x0, y0, x1, y1, ...] of at least three points")
        return
    if (
        not isinstance(shape, dict)
        or not isinstance(shape.get("counts"), (list, str))
        or not isinstance(shape.get("size"), list)
    ):
        raise file.fault(where, f'segmentation is a list of polygons or an RLE {{"size", "counts"}}, got {shape!r:.60}')
    if record["height"] and shape["size"] != [record["height"], record["width"]]:
        size = [record["height"], record["width"]]
        raise file.fault(where, f"RLE of size {shape['size']} in an image of [height, width] {size}")
