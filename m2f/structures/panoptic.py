"""A panoptic answer or truth: an id per pixel and a row per segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from m2f.structures.metadata import Metadata

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


def number_segments(
    accepted: Sequence[bool], labels: Sequence[int], scores: Sequence[float], metadata: Metadata
) -> tuple[list[int], list[Segment]]:
    """Each query's segment id (0 = none), and the segments; queries of one stuff class are one, with the best's score.

    Args:
        accepted: whether a query has become a segment.
        labels: of the queries.
        scores: of the queries.
        metadata: which labels are things.
    """
    ids, segments, stuff = [0] * len(accepted), list[Segment](), dict[int, int]()
    for query, (label, score) in enumerate(zip(labels, scores, strict=True)):
        if not accepted[query]:
            continue
        if label in stuff:
            ids[query] = stuff[label]
            first = segments[ids[query] - 1]
            segments[ids[query] - 1] = first._replace(score=max(first.score, score))
            continue
        is_thing = label in metadata.thing_labels
        ids[query] = len(segments) + 1
        segments.append(Segment(ids[query], label, is_thing, score=score))
        if not is_thing:
            stuff[label] = ids[query]
    return ids, segments
