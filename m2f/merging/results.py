"""Merged segments as the answers that every other room reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from m2f.merging.runs import Runs, bounds, to_coco
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap, Segment


class Found(NamedTuple):
    """A merged object."""

    label: int
    score: float
    runs: Runs


def to_instances(objects: Sequence[Found], size: tuple[int, int]) -> Instances:
    """Those objects in their order, with RLE masks of an image of `size` (H, W) and the boxes of the masks."""
    return Instances(
        labels=torch.tensor([found.label for found in objects], dtype=torch.int64),
        masks=[to_coco(found.runs, size) for found in objects],
        scores=torch.tensor([found.score for found in objects], dtype=torch.float32),
        boxes=torch.tensor([bounds(found.runs) for found in objects], dtype=torch.float32).reshape(-1, 4),
    )


def to_panoptic(plane: NDArray[np.int64], segments: Mapping[int, tuple[int, float]], metadata: Metadata) -> PanopticMap:
    """Segments from numbers per pixel; those without a pixel are gone, and ids count from 1.

    Args:
        plane: (H, W) numbers, 0 = void; it becomes the ids.
        segments: label and score by number.
        metadata: what the labels mean.
    """
    pixels = np.bincount(plane.ravel(), minlength=max(segments, default=0) + 1)
    numbers = [number for number in segments if pixels[number]]
    renumber(plane, {number: id for id, number in enumerate(numbers, start=1)})
    rows = [(id, *segments[number]) for id, number in enumerate(numbers, start=1)]
    listed = [Segment(id, label, label in metadata.thing_labels, score=score) for id, label, score in rows]
    return PanopticMap(torch.from_numpy(plane), listed)


def renumber(plane: NDArray[Any], numbers: Mapping[int, int]) -> None:
    """Replace every number of a (H, W) plane, in place and row by row; what is not in `numbers` becomes 0."""
    known = np.array([-1, *sorted(numbers)])
    values = np.array([0, *(numbers[number] for number in sorted(numbers))])
    for row in plane:
        place = np.searchsorted(known, row, "right") - 1
        row[:] = np.where(known[place] == row, values[place], 0)
