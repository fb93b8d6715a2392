"""Masks as runs down the columns of the whole image, in numpy: small, quick to shift and to cut, and COCO's own order.

`Runs` is a sorted (R, 2) int64 array of half-open [start, end) places, where the pixel (y, x) has the place
x * 2**32 + y. No image is as high as that, so a run never crosses a column, and a mask needs to know nothing of the
image it lies in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Runs = NDArray[np.int64]

_SHIFT = 32  # log2 of a column's height


class Box(NamedTuple):
    """A rectangle of pixels, half-open: `bottom` and `right` lie just outside. Empty if it ends before it begins."""

    top: int
    left: int
    bottom: int
    right: int

    def common(self, other: Box) -> Box:
        """The pixels of both."""
        return Box(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.top >= self.bottom or self.left >= self.right


def split(numbers: NDArray[Any], top: int = 0, left: int = 0) -> dict[int, Runs]:
    """The runs of every number but 0 in a (h, w) map (of bool: those of 1) whose first pixel lies at (top, left)."""
    columns = np.asarray(numbers).T
    changes = np.ones(columns.shape, dtype=bool)
    np.not_equal(columns[:, 1:], columns[:, :-1], out=changes[:, 1:])
    starts = np.flatnonzero(changes)
    lengths = np.diff(starts, append=columns.size)
    x, y = np.divmod(starts, columns.shape[1])
    values = columns[x, y].astype(np.int64)
    places = (x + left << _SHIFT) + y + top
    order = np.argsort(values, kind="stable")
    order = order[np.searchsorted(values, 0, "right", sorter=order) :]
    groups = np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if len(order) else []
    return {int(values[g[0]]): np.stack([places[g], places[g] + lengths[g]], axis=1) for g in groups}


def clip(runs: Runs, box: Box) -> Runs:
    """The part inside `box`."""
    first, last = np.searchsorted(runs[:, 0], [box.left << _SHIFT, box.right << _SHIFT])
    inside = runs[first:last]
    column = inside[:, :1] >> _SHIFT << _SHIFT
    inside = np.clip(inside, column + box.top, column + box.bottom)
    return inside[inside[:, 1] > inside[:, 0]]


def outside(runs: Runs, box: Box) -> Runs:
    """The part outside `box`."""
    far = 1 << _SHIFT - 1
    around = (
        Box(0, 0, far, box.left),
        Box(0, box.left, box.top, box.right),
        Box(box.bottom, box.left, far, box.right),
        Box(0, box.right, far, far),
    )
    return union([clip(runs, side) for side in around])


def area(runs: Runs) -> int:
    """Pixels."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def intersection(one: Runs, other: Runs) -> int:
    """Pixels of both."""
    if not len(one) or not len(other) or one[-1, 1] <= other[0, 0] or other[-1, 1] <= one[0, 0]:
        return 0
    before = np.concatenate([[0], np.cumsum(other[:, 1] - other[:, 0])])  # pixels of `other` before its n-th run
    number = np.searchsorted(other[:, 0], one, "right")
    beyond = np.maximum(other[number - 1, 1] - one, 0) * (number > 0)  # of the run begun last
    covered = before[number] - beyond
    return int((covered[:, 1] - covered[:, 0]).sum())


def vote(masks: Sequence[Runs], weights: Sequence[float], least: float) -> Runs:
    """The pixels where the masks that hold them weigh `least` or more, which is above 0."""
    bounds = np.concatenate([*masks, np.empty((0, 2), np.int64)])
    weight = np.repeat(np.asarray(weights, dtype=np.float64), [len(runs) for runs in masks])
    places = bounds.T.ravel()
    order = np.argsort(places, kind="stable")
    places, level = places[order], np.cumsum(np.concatenate([weight, -weight])[order])
    last = np.flatnonzero(np.diff(places, append=-1))  # several bounds at one place count together
    places, held = places[last], level[last] >= least * (1 - 1e-9)
    turns = np.flatnonzero(np.diff(held, prepend=False))
    return places[turns].reshape(-1, 2)


def union(masks: Sequence[Runs]) -> Runs:
    """The pixels of any of the masks."""
    return vote(masks, [1.0] * len(masks), 1.0)


def bounds(runs: Runs) -> tuple[int, int, int, int]:
    """The tight box as x0, y0, x1, y1, half-open; zeros for an empty mask."""
    if not len(runs):
        return 0, 0, 0, 0
    columns = runs[:, 0] >> _SHIFT
    rows = runs - (columns << _SHIFT)[:, None]
    return int(columns[0]), int(rows[:, 0].min()), int(columns[-1]) + 1, int(rows[:, 1].max())


def pixels(runs: Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of all pixels, to index a (H, W) array."""
    lengths = runs[:, 1] - runs[:, 0]
    places = np.repeat(runs[:, 1] - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
    columns = places >> _SHIFT
    return places - (columns << _SHIFT), columns


def to_coco(runs: Runs, size: tuple[int, int]) -> dict[str, Any]:
    """A COCO RLE dict of a whole image of `size` (H, W)."""
    columns = runs >> _SHIFT
    columns[:, 1] = columns[:, 0]
    turns = (columns * size[0] + runs - (columns << _SHIFT)).ravel()
    meets = np.flatnonzero(turns[1:-1:2] == turns[2::2])  # a run down to the last row and one from the first
    turns = np.delete(turns, np.concatenate([2 * meets + 1, 2 * meets + 2]))
    counts = np.trim_zeros(np.diff(turns, prepend=0, append=size[0] * size[1]), "b")
    return coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
