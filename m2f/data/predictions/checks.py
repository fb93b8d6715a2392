"""Rows that other tools may have written, checked up front; a fault names the file and the place in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from m2f.data.datasets.coco_file import outside, safe_join
from m2f.data.datasets.json_file import read_json, whole_number
from m2f.data.predictions.formats import LARGEST_SEGMENT_ID, Row
from m2f.structures.metadata import Metadata


def checked_results(rows: Iterable[dict[str, Any]], path: str, metadata: Metadata) -> Iterator[tuple[str, Row]]:
    """Rows of COCO results: key of the image, and what counts of the row.

    Raises:
        ValueError: a row lacks image, class, mask or score; the message names file and row.
    """
    for number, row in enumerate(rows):
        where = f"{path}: row {number}"
        key = _image_key(row, where)
        _check_category(row, metadata, where)
        _check_mask(row.get("segmentation"), where)
        _check_score(row.get("score"), where)
        yield key, {name: row[name] for name in ("category_id", "segmentation", "score")}


def checked_maps(rows: Iterable[Any], path: str, metadata: Metadata) -> Iterator[tuple[str, Row]]:
    """Annotations of a COCO panoptic file: key of the image, and what counts of the annotation.

    Raises:
        ValueError: an image comes twice, a PNG's name leaves its folder, or a segment lacks its own id or a class.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows):
        where = f"{path}: annotations[{number}]"
        key = _image_key(row, where)
        if key in seen:
            raise ValueError(f"{where}: another annotation has image_id {key}")
        seen.add(key)
        segments = row.get("segments_info")
        if not isinstance(segments, list):
            raise ValueError(f"{where} has no list segments_info (got {segments!r:.60})")
        for segment in segments:
            _check_segment(segment, metadata, f"{where} (image_id {key})")
        if len({segment["id"] for segment in segments}) < len(segments):
            raise ValueError(f"{where} (image_id {key}): two segments have one id")
        yield key, {"file_name": _png_name(row, where), "segments_info": segments}


def _check_mask(mask: Any, where: str) -> None:
    """Refuse what is neither polygons nor run lengths; whether those make sense is seen when they are drawn."""
    if isinstance(mask, dict):
        size, counts = mask.get("size"), mask.get("counts")
        is_pair = isinstance(size, list) and len(size) == 2 and all(map(whole_number, size))
        is_mask = is_pair and isinstance(counts, (str, list))
    else:
        is_mask = isinstance(mask, list) and all(isinstance(part, list) for part in mask)
    if not is_mask:
        raise ValueError(f"{where}: segmentation must be run lengths or polygons (a box does not do), got {mask!r:.60}")


def _check_segment(segment: Any, metadata: Metadata, where: str) -> None:
    if not isinstance(segment, dict) or not whole_number(segment.get("id"), 1) or segment["id"] > LARGEST_SEGMENT_ID:
        raise ValueError(f"{where}: a segment needs an id from 1 to {LARGEST_SEGMENT_ID}, got {segment!r:.60}")
    _check_category(segment, metadata, f"{where}: segment {segment['id']}")
    if "score" in segment:
        _check_score(segment["score"], f"{where}: segment {segment['id']}")


def _check_category(row: Mapping[str, Any], metadata: Metadata, where: str) -> None:
    category_id = row.get("category_id")
    if not whole_number(category_id) or category_id not in metadata.label_of:
        raise ValueError(f"{where}: category_id {category_id!r} is none of dataset {metadata.name!r}")


def _check_score(score: Any, where: str) -> None:
    if not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"{where}: score is {score!r}; predictions have a number, is this an annotation file?")


def _image_key(row: Any, where: str) -> str:
    image_id = row.get("image_id") if isinstance(row, dict) else None
    if not isinstance(image_id, (int, str)):
        raise ValueError(f"{where} has no image_id: {row!r:.60}")
    return str(image_id)


def _png_name(row: Mapping[str, Any], where: str) -> str:
    if safe_join("", row.get("file_name")) is None:
        raise ValueError(f"{where}: {outside(row.get('file_name'))}")
    return str(row["file_name"])


def indexed_masks(index: str) -> dict[str, str]:
    """Key of the image -> name of its mask, from a JSON file of annotations.

    Raises:
        ValueError: an annotation has no image_id, or a name that leaves its folder.
    """
    rows = read_json(index)["annotations"]
    return {_image_key(row, index): _png_name(row, index) for row in rows}
