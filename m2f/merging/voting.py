"""Several answers about one image, all at its size, counted like votes: `add` them all, then take the `result`.

Versions of an image share no queries, so their segments are joined as tiles' are: each is a view of the whole image. A
pixel belongs to a segment where at least half of the versions that found it say so. Its score is the mean over *all*
versions, those that missed it counting 0: what only one of four saw has a quarter of its score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from m2f.merging.joining import Part, instance_parts, join, segment_parts
from m2f.merging.results import Found, to_instances, to_panoptic
from m2f.merging.runs import Box, area, pixels, vote
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap


class Election(NamedTuple):
    """Who votes about what, and what counts as found."""

    size: tuple[int, int]  # (H, W) of the image
    metadata: Metadata
    versions: int
    object_mask_threshold: float
    overlap_threshold: float


class SemanticVotes:
    """The mean of scores (K, H, W); gap labels stay below all others."""

    def __init__(self, election: Election) -> None:
        self._versions = election.versions
        self._sum: Tensor | None = None

    def add(self, _number: int, scores: Tensor, mirrored: bool) -> None:
        """Take one version's.

        Raises:
            ValueError: they are labels.
        """
        if scores.dim() != 3:
            raise ValueError("test-time augmentation averages semantic scores (K, H, W); the predictor gives labels")
        scores = scores.flip(-1) if mirrored else scores
        self._sum = scores.clone() if self._sum is None else self._sum.add_(scores)

    def result(self) -> Tensor:
        """(K, H, W) float32."""
        assert self._sum is not None
        return self._sum / self._versions


class InstanceVotes:
    """Objects by score, with RLE masks; as many as the version with the most of them has."""

    def __init__(self, election: Election) -> None:
        self._election, self._most = election, 0
        self._parts: list[Part] = []

    def add(self, number: int, instances: Instances, mirrored: bool) -> None:
        """Take those of version `number`."""
        self._most = max(self._most, len(instances))
        self._parts += instance_parts(instances, number, Box(0, 0, *self._election.size), mirrored)

    def result(self) -> Instances:
        """At the image's size."""
        found = [_found(parts, self._election) for parts in _joined(self._parts, self._election)]
        return to_instances(sorted(found, key=lambda one: -one.score)[: self._most], self._election.size)


class PanopticVotes:
    """A pixel goes to the segment with the largest sum of scores there; then the paper's two thresholds hold."""

    def __init__(self, election: Election) -> None:
        self._election = election
        self._things: list[Part] = []
        self._stuff: dict[int, list[Part]] = {}

    def add(self, number: int, panoptic: PanopticMap, mirrored: bool) -> None:
        """Take that of version `number`."""
        ids = panoptic.ids.flip(-1) if mirrored else panoptic.ids
        turned = PanopticMap(ids, panoptic.segments)
        for part in segment_parts(turned, number, Box(0, 0, *self._election.size)).values():
            is_thing = part.label in self._election.metadata.thing_labels
            (self._things if is_thing else self._stuff.setdefault(part.label, [])).append(part)

    def result(self) -> PanopticMap:
        """Things in the order in which they were first seen, then stuff; ids count from 1."""
        clusters = [*_joined(self._things, self._election), *self._stuff.values()]
        voted = [(_found(parts, self._election), parts) for parts in clusters]
        kept = [pair for pair in voted if pair[0].score > self._election.object_mask_threshold]
        owner = self._owner([parts for _, parts in kept])
        plane = np.zeros_like(owner)
        for number, (found, _) in enumerate(kept, start=1):
            rows, columns = pixels(found.runs)
            won = owner[rows, columns] == number
            if won.sum() >= self._election.overlap_threshold * area(found.runs):
                plane[rows[won], columns[won]] = number
        segments = {number: (found.label, found.score) for number, (found, _) in enumerate(kept, start=1)}
        return to_panoptic(plane, segments, self._election.metadata)

    def _owner(self, clusters: Sequence[Sequence[Part]]) -> np.ndarray:
        """(H, W) int64: the number, from 1, of the cluster with the largest sum of scores; 0 where there is none."""
        owner = np.zeros(self._election.size, dtype=np.int64)
        best, weight = np.zeros((2, *self._election.size), dtype=np.float32)
        for number, parts in enumerate(clusters, start=1):
            weight[:] = 0
            for part in parts:
                weight[pixels(part.runs)] += part.score
            wins = weight > best
            owner[wins], best[wins] = number, weight[wins]
        return owner


def _joined(parts: Sequence[Part], election: Election) -> list[list[Part]]:
    views = [Box(0, 0, *election.size)] * election.versions
    return [[parts[number] for number in group] for group in join(parts, views)]


def _found(parts: Sequence[Part], election: Election) -> Found:
    """What half of the finders say, and the score over all versions."""
    mask = vote([part.runs for part in parts], [1.0] * len(parts), len(parts) / 2)
    return Found(parts[0].label, sum(part.score for part in parts) / election.versions, mask)
