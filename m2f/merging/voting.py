"""Several answers for one image, all at its size, counted like votes.

Versions of an image share no queries, so their segments are matched: those of one class that overlap well are one
cluster, to which each version adds at most one. A pixel belongs to a cluster where at least half of the versions that
found the cluster say so. Its score is the mean over *all* versions, those that missed it counting 0: what only one of
four saw has a quarter of its score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap, Segment

_SAME = 0.5  # least IoU of a segment with a cluster of its class


class _Shape:
    """A mask that is not empty, with what tells soon that two have nothing in common.

    Args:
        mask: (H, W) bool.

    Attributes:
        area: pixels.
        box: (x0, y0, x1, y1), half-open.
    """

    def __init__(self, mask: Tensor) -> None:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        self.mask, self.area = mask, int(mask.sum())
        self.box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def iou(self, other: _Shape) -> float:
        """Pixels of both / pixels of either."""
        x0, y0 = max(self.box[0], other.box[0]), max(self.box[1], other.box[1])
        x1, y1 = min(self.box[2], other.box[2]), min(self.box[3], other.box[3])
        if x0 >= x1 or y0 >= y1:
            return 0.0
        both = int((self.mask[y0:y1, x0:x1] & other.mask[y0:y1, x0:x1]).sum())
        return both / (self.area + other.area - both)


class _Cluster:
    """Segments that are one.

    Args:
        label: of all.
        shape: of the first.
        score: of the first.

    Attributes:
        shape: the pixels that at least half of the members have.
        weight: (H, W) float32, the sum of the scores of those that have a pixel.
        score: sum over the members.
    """

    def __init__(self, label: int, shape: _Shape, score: float) -> None:
        self.label, self.shape, self.score = label, shape, score
        self.weight = shape.mask * score
        self._count, self._members = shape.mask.to(torch.int16), 1

    def add(self, shape: _Shape, score: float) -> None:
        """Take one more version's."""
        self._count += shape.mask
        self._members += 1
        self.score += score
        self.weight += shape.mask * score
        mask = self._count * 2 >= self._members
        self.shape = _Shape(mask) if mask.any() else self.shape


class SemanticVotes:
    """The mean of scores (K, H, W); gap labels stay below all others."""

    def __init__(self, metadata: Metadata, versions: int, *_thresholds: float) -> None:
        self._name, self._versions = metadata.name, versions
        self._sum: Tensor | None = None

    def add(self, scores: Tensor) -> None:
        """Take one version's.

        Raises:
            ValueError: they are labels.
        """
        if scores.ndim != 3:
            raise ValueError(
                f"dataset {self._name!r}: test-time augmentation averages semantic scores; these are labels"
            )
        self._sum = scores.clone() if self._sum is None else self._sum.add_(scores)

    def result(self) -> Tensor:
        """(K, H, W) float32."""
        assert self._sum is not None
        return self._sum / self._versions


class InstanceVotes:
    """Objects by score; as many as the version with the most of them has."""

    def __init__(self, metadata: Metadata, versions: int, *_thresholds: float) -> None:
        del metadata
        self._versions, self._most = versions, 0
        self._clusters: list[_Cluster] = []

    def add(self, found: Instances) -> None:
        """Take one version's, the best first."""
        assert isinstance(found.masks, Tensor)
        assert found.scores is not None
        self._size, self._device, self._most = found.masks.shape[1:], found.masks.device, max(self._most, len(found))
        _assign(self._clusters, list(zip(found.labels.tolist(), found.masks, found.scores.tolist(), strict=True)))

    def result(self) -> Instances:
        """Masks (N, H, W) bool, scores and boxes."""
        kept = sorted(self._clusters, key=lambda cluster: -cluster.score)[: self._most]
        masks = [cluster.shape.mask for cluster in kept]
        return Instances(
            torch.tensor([cluster.label for cluster in kept], dtype=torch.int64, device=self._device),
            torch.stack(masks) if masks else torch.zeros(0, *self._size, dtype=torch.bool, device=self._device),
            torch.tensor([cluster.score / self._versions for cluster in kept], device=self._device),
            torch.tensor([c.shape.box for c in kept], dtype=torch.float32, device=self._device).reshape(-1, 4),
        )


class PanopticVotes:
    """A pixel goes to the cluster with the largest sum of scores there; then the paper's two thresholds hold."""

    def __init__(
        self, metadata: Metadata, versions: int, object_mask_threshold: float, overlap_threshold: float
    ) -> None:
        self._things, self._versions = metadata.thing_labels, versions
        self._least_score, self._least_share = object_mask_threshold, overlap_threshold
        self._clusters: list[_Cluster] = []

    def add(self, answer: PanopticMap) -> None:
        """Take one version's."""
        self._size, self._device = answer.ids.shape, answer.ids.device
        _assign(self._clusters, [(s.label, answer.ids == s.id, s.score) for s in answer.segments], self._things)

    def result(self) -> PanopticMap:
        """Ids from 1, in the order in which the segments were first seen."""
        ids = torch.zeros(self._size, dtype=torch.int64, device=self._device)
        segments: list[Segment] = []
        kept = [c for c in self._clusters if c.score / self._versions > self._least_score]
        best = torch.zeros(self._size, device=self._device)
        owner = torch.full(self._size, -1, device=self._device)
        for number, cluster in enumerate(kept):
            wins = cluster.weight > best
            best, owner = torch.where(wins, cluster.weight, best), torch.where(wins, number, owner)
        for number, cluster in enumerate(kept):
            won = (owner == number) & cluster.shape.mask
            if won.any() and won.sum() >= self._least_share * cluster.shape.area:
                number_of = len(segments) + 1
                ids[won] = number_of
                score, is_thing = cluster.score / self._versions, cluster.label in self._things
                segments.append(Segment(number_of, cluster.label, is_thing, score=score))
        return PanopticMap(ids, segments)


def _assign(
    clusters: list[_Cluster],
    segments: list[tuple[int, Tensor, float]],
    things: frozenset[int] | None = None,
) -> None:
    """Give each (label, mask, score) of a version to the cluster of its class that it fits best, or a new one.

    Args:
        clusters: grows.
        segments: of one version; empty masks are passed over.
        things: labels whose segments must overlap to be one; a class beyond them is one cluster. None: all labels.
    """
    free = list(clusters)
    for label, mask, score in segments:
        if not mask.any():
            continue
        shape, is_one = _Shape(mask), things is not None and label not in things
        fits = [(1.0 if is_one else cluster.shape.iou(shape), cluster) for cluster in free if cluster.label == label]
        iou, best = max(fits, key=lambda fit: fit[0], default=(0.0, None))
        if best is None or iou < _SAME:
            clusters.append(_Cluster(label, shape, score))
        else:
            best.add(shape, score)
            free = [cluster for cluster in free if cluster is not best]
