"""Answers as the rows and pixels of the official formats; labels become the category ids of the dataset's files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from m2f.data.outlines import encode_masks
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap

Row = dict[str, Any]
LARGEST_SEGMENT_ID = 256**3 - 1  # that a panoptic PNG can hold
_LARGEST_PIXEL = 65535


def instance_rows(instances: Instances, metadata: Metadata, min_score: float) -> Iterator[Row]:
    """COCO result rows, but for the image id, of the instances that score at least `min_score`, in their order.

    Note: `bbox` is that of the mask. pycocotools takes areas from boxes where both are given, so drop one of the two
    before it tells small from large.
    """
    assert instances.scores is not None
    for row, (label, score) in enumerate(zip(instances.labels.tolist(), instances.scores.tolist(), strict=True)):
        if score < min_score:
            continue
        code = _code(instances.masks[row])
        counts = code["counts"]
        yield {
            "category_id": metadata.categories[label].id,
            "segmentation": {
                "size": [int(side) for side in code["size"]],
                "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
            },
            "bbox": coco_mask.toBbox(code).tolist(),
            "score": score,
        }


def _code(mask: Tensor | Row) -> Row:
    """The run-length code of one mask; masks go one by one, since large images have little memory for copies."""
    return mask if isinstance(mask, dict) else encode_masks(mask.bool().cpu().numpy()[None])[0]


def panoptic_rows(panoptic: PanopticMap, metadata: Metadata) -> tuple[NDArray[np.uint8], list[Row]]:
    """The pixels of a panoptic PNG, (H, W, 3), and its `segments_info`, each with a `score`.

    Raises:
        ValueError: pixels and segments are not about the same ids, or an id is more than three bytes.
    """
    ids, known = panoptic.ids.cpu().numpy(), [segment.id for segment in panoptic.segments]
    largest = max(int(ids.max()), *known, 0)
    if int(ids.min()) < 0 or largest > LARGEST_SEGMENT_ID:
        raise ValueError(f"panoptic ids are {ids.min()} to {largest}; a PNG holds 0 to {LARGEST_SEGMENT_ID}")
    place = np.zeros(largest + 1, dtype=np.int32)  # in `segments`, from 1
    place[known] = np.arange(1, len(known) + 1)
    index = place[ids]
    areas = np.bincount(index.ravel(), minlength=len(known) + 1)[1:].tolist()
    if ((index == 0) & (ids != 0)).any() or 0 in areas:
        raise ValueError(f"the pixels of a panoptic map have other ids than its segments, which are {known}")
    rows = [
        {
            "id": segment.id,
            "category_id": metadata.categories[segment.label].id,
            "area": area,
            "bbox": [box[1].start, box[0].start, box[1].stop - box[1].start, box[0].stop - box[0].start],
            "isthing": int(segment.is_thing),
            "iscrowd": 0,
            "score": segment.score,
        }
        for segment, area, box in zip(panoptic.segments, areas, ndimage.find_objects(index), strict=True)
    ]
    # Little-endian words: the lowest byte is red.
    return np.ascontiguousarray(ids.astype("<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]), rows


def pixel_values(metadata: Metadata) -> NDArray[Any]:
    """What a semantic mask's pixel says for each label: (K+1,) category ids, the last value for no answer.

    No answer is `metadata.ignore_label`, or 0 where that is a category id or no pixel value; readers of truths take
    both for unlabelled. Labels that no category uses have no answer. 8 bits, or 16 where a value needs them.

    Raises:
        ValueError: a category id is no pixel value, or none is left for no answer.
    """
    ids = metadata.label_of
    free = [value for value in (metadata.ignore_label, 0) if value not in ids and 0 <= value <= _LARGEST_PIXEL]
    if not free or not 0 <= min(ids) <= max(ids) <= _LARGEST_PIXEL:
        raise ValueError(
            f"dataset {metadata.name!r} cannot be saved as semantic masks: ids are {min(ids)} to {max(ids)}, a pixel "
            f"is 0 to {_LARGEST_PIXEL}, and dataset.ignore_label = {metadata.ignore_label} or 0 must be no id"
        )
    values = np.full(metadata.num_classes + 1, free[0])
    values[list(ids.values())] = list(ids)
    return values.astype(np.uint8 if values.max() <= 255 else np.uint16)


def semantic_pixels(semantic: Tensor, values: NDArray[Any]) -> NDArray[Any]:
    """The pixels of a semantic mask, (H, W).

    Args:
        semantic: (K, H, W) scores, or (H, W) labels; what is no label is no answer.
        values: `pixel_values`.
    """
    labels = (semantic.max(0).indices if semantic.ndim == 3 else semantic).cpu().numpy()
    no_answer = len(values) - 1
    pixels: NDArray[Any] = values[np.where((labels >= 0) & (labels < no_answer), labels, no_answer)]
    return pixels


def category_rows(metadata: Metadata) -> list[Row]:
    """The `categories` of a COCO file."""
    return [
        {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color)}
        for c in metadata.categories
        if not c.is_gap
    ]
