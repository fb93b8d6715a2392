"""A panoptic answer or truth: an id per pixel and a row per segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # a room that has no torch uses it too
    from torch import Tensor


class Segment(NamedTuple):
    """One segment of a `PanopticMap`."""

    id: int  # > 0, unique in its image
    label: int  # 0 .. K-1
    is_thing: bool
    is_crowd: bool = False  # truths only
    score: float = 1.0  # predictions only: class probability of the query


@dataclass(frozen=True)
class PanopticMap:
    """Attributes:
    ids: (H, W) int64; 0 = void.
    segments: one row for every id that occurs in `ids`.
    """

    ids: Tensor
    segments: list[Segment]
