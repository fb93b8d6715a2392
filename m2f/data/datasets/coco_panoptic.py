"""The format `coco_panoptic`: COCO's panoptic file and its PNGs, where id = R + 256 G + 65536 B."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any, cast

from m2f.data.build import DATASET_FORMAT_REGISTRY
from m2f.data.catalog import DatasetEntry, LoadedDataset
from m2f.data.datasets.coco_file import CocoFile, outside, read_coco, safe_join
from m2f.structures.sample import SegmentInfo

logger = logging.getLogger(__name__)

_KEPT = ("id", "category_id", "iscrowd", "area")
_LARGEST_ID = 256**3 - 1


@DATASET_FORMAT_REGISTRY.register("coco_panoptic")
def load_coco_panoptic(entry: DatasetEntry) -> LoadedDataset:
    """One record per annotated image of the file.

    Nothing is known of an image that no annotation mentions, so nothing can be learnt from it or compared with it: it
    is left out, and the log says so. A file without any annotation gives all its images.

    Raises:
        FileNotFoundError: the file or one of its two folders is missing.
        ValueError: an entry of the file is faulty; see `coco_file`.
    """
    image_dir, panoptic_dir = entry.existing("image_dir"), _panoptic_dir(entry)
    file = read_coco(entry, image_dir)
    for record in file.records.values():
        record["segments_info"] = []
    for index, row in enumerate(file.annotations):
        where = f"annotations[{index}]"
        record = file.record_of(row, where)
        where = f"{where} (image {record['image_id']!r})"
        if "pan_seg_file_name" in record:
            raise file.fault(where, "another annotation has this image_id")
        mask = safe_join(panoptic_dir, row.get("file_name"))
        if mask is None:
            raise file.fault(where, outside(row.get("file_name")))
        record["pan_seg_file_name"] = mask
        record["segments_info"] = _segments(file, row, where)
    known = [record for record in file.records.values() if "pan_seg_file_name" in record]
    unknown = len(file.records) - len(known)
    if known and unknown:
        logger.warning("%s: %d of %d images have no annotation: left out", file.path, unknown, len(file.records))
    return LoadedDataset(file.metadata, known or list(file.records.values()))


def _panoptic_dir(entry: DatasetEntry) -> str:
    """The folder of the PNGs; by COCO's custom it stands beside the file and shares its stem."""
    if not entry.panoptic_dir:
        entry = replace(entry, panoptic_dir=os.path.splitext(entry.existing("annotations"))[0])
    return entry.existing("panoptic_dir")


def _segments(file: CocoFile, row: dict[str, Any], where: str) -> list[SegmentInfo]:
    rows = row.get("segments_info")
    if not isinstance(rows, list):
        raise file.fault(where, f"has no list segments_info (got {rows!r:.60}); is this an instance file?")
    seen: set[int] = set()
    for index, segment in enumerate(rows):
        place = f"{where}, segments_info[{index}]"
        if not isinstance(segment, dict):
            raise file.fault(place, f"expected an object, got {segment!r:.60}")
        file.check_id(segment, place)
        if segment["id"] in seen or segment["id"] > _LARGEST_ID:
            what = "another segment has this id" if segment["id"] in seen else f"no PNG holds an id above {_LARGEST_ID}"
            raise file.fault(place, f"id {segment['id']}: {what}")
        seen.add(segment["id"])
        file.check_category(segment, place)
        file.check_crowd(segment, place)
        file.check_area(segment, place)
    return [cast(SegmentInfo, {key: segment[key] for key in _KEPT if key in segment}) for segment in rows]
