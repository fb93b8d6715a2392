"""What is said of one picture: `structures`' values, with numpy arrays in place of tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2f.structures.panoptic import Segment


class PanopticAnswer(NamedTuple):
    """An id per pixel and a row per segment."""

    ids: NDArray[np.int64]  # (height, width); 0 = void
    segments: list[Segment]  # one row for every id that occurs in `ids`


class InstanceAnswer(NamedTuple):
    """N objects, best first."""

    labels: NDArray[np.int64]  # (N,) in 0 .. K-1
    masks: NDArray[np.bool_]  # (N, height, width)
    scores: NDArray[np.float32]  # (N,) in [0, 1]
    boxes: NDArray[np.float32]  # (N, 4) x0 y0 x1 y1 in pixels, half-open; zeros for an empty mask


class Answer(NamedTuple):
    """One picture's answers at the size wanted; None for a task that was not asked for."""

    semantic: NDArray[np.float32] | None = None  # (K, height, width) scores, not probabilities
    panoptic: PanopticAnswer | None = None
    instance: InstanceAnswer | None = None
