"""The answers of tiles made those of the image, one class per task: `add` them row by row, then take the `result`.

No mask of the whole image is held but as runs, no scores but those of one row of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2f.merging.grid import Tile
from m2f.merging.joining import Part, instance_parts, join, segment_parts
from m2f.merging.results import Found, renumber, to_instances, to_panoptic
from m2f.merging.runs import Runs, area, clip, outside, pixels, union
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap


class SemanticSeams:
    """Labels of the highest mean score; a tile's scores count less towards its borders, where it knows less.

    Args:
        size: (H, W) of the image.
        tiles: all of them.
        metadata: what the labels mean.
    """

    def __init__(self, size: tuple[int, int], tiles: Sequence[Tile], metadata: Metadata) -> None:
        self._gaps = [label for label, category in enumerate(metadata.categories) if category.is_gap]
        self._tiles = tiles
        self._labels = torch.empty(size, dtype=torch.int64)
        self._top = 0  # rows above it are done
        self._band: Tensor | None = None  # (K, tile height, W): weighted sums of the rows below it

    def add(self, number: int, scores: Tensor) -> None:
        """Take the scores (K, h, w) of tile `number`.

        Raises:
            ValueError: they are labels.
        """
        if scores.dim() != 3:
            raise ValueError(f"tiles need semantic scores (K, H, W); the predictor gives labels {tuple(scores.shape)}")
        box = self._tiles[number].box
        height, width = scores.shape[1:]
        if self._band is None:
            self._band = scores.new_zeros(len(scores), height, self._labels.shape[1], dtype=torch.float32)
        self._finish(self._band, box.top)
        weight = _ramp(height)[:, None] * _ramp(width)
        self._band[:, :, box.left : box.right] += scores * weight.to(scores.device)

    def _finish(self, band: Tensor, top: int) -> None:
        """Decide the rows above `top`, to which no further tile comes, and move the band down to it."""
        rows = top - self._top
        if rows == 0:
            return
        band[self._gaps, :rows] = -torch.inf
        self._labels[self._top : top] = band[:, :rows].max(0).indices  # several times as fast as argmax on a CPU
        kept = band[:, rows:].clone()
        band.zero_()[:, : kept.shape[1]] = kept
        self._top = top

    def result(self) -> Tensor:
        """(H, W) int64 labels."""
        assert self._band is not None
        self._finish(self._band, len(self._labels))
        return self._labels


def _ramp(length: int) -> Tensor:
    """Distance of every pixel's centre to the nearer end."""
    centres = torch.arange(length) + 0.5
    return torch.minimum(centres, length - centres)


class _Whole(NamedTuple):
    """An object of the whole image."""

    found: Found
    members: list[int]  # its parts, by number


def _wholes(parts: Sequence[Part], tiles: Sequence[Tile]) -> list[_Whole]:
    """The objects that the parts are of, the best first.

    A score is the mean over all pixels shown of what the deepest of all tiles gives the object there: 0 where it does
    not show it. An object of which this is most is dropped, for a tile in which it lies deeper has not seen it.
    """
    wholes = []
    for members in join(parts, [tile.box for tile in tiles]):
        shown = [parts[number] for number in members]
        deep = [clip(part.runs, tiles[part.view].cell) for part in shown]
        weights, total = [area(runs) for runs in deep], area(union([part.runs for part in shown]))
        if 2 * sum(weights) >= total:
            score = sum(part.score * weight for part, weight in zip(shown, weights, strict=True)) / total
            wholes.append(_Whole(Found(shown[0].label, score, _composed(shown, deep, tiles)), members))
    return sorted(wholes, key=lambda whole: -whole.found.score)


def _composed(shown: Sequence[Part], deep: Sequence[Runs], tiles: Sequence[Tile]) -> Runs:
    """One mask from the parts, given what of each lies deeper in its tile than in any other.

    A tile that shows the object uncut by its borders, of several the one that shows most of it deep inside, decides all
    pixels that it covers. The others go to the deepest tile.
    """
    uncut = [number for number, part in enumerate(shown) if not tiles[part.view].cuts(part.runs)]
    if not uncut:
        return union(deep)
    best = shown[max(uncut, key=lambda number: area(deep[number]))]
    return union([best.runs, *(outside(runs, tiles[best.view].box) for runs in deep)])


class InstanceSeams:
    """Objects joined across tiles.

    Args:
        size: (H, W) of the image.
        tiles: all of them.
    """

    def __init__(self, size: tuple[int, int], tiles: Sequence[Tile], _metadata: Metadata) -> None:
        self._size, self._tiles = size, tiles
        self._parts: list[Part] = []

    def add(self, number: int, instances: Instances) -> None:
        """Take the objects of tile `number`."""
        self._parts += instance_parts(instances, number, self._tiles[number].box)

    def result(self) -> Instances:
        """The best first, with RLE masks."""
        return to_instances([whole.found for whole in _wholes(self._parts, self._tiles)], self._size)


class PanopticSeams:
    """Things joined across tiles; stuff of one class is one segment.

    A pixel goes to what the tile shows in which it lies deepest. Where an object is decided by another tile, it takes
    pixels from stuff and void, but not from other objects.

    Args:
        size: (H, W) of the image.
        tiles: all of them.
        metadata: what the labels mean.
    """

    def __init__(self, size: tuple[int, int], tiles: Sequence[Tile], metadata: Metadata) -> None:
        self._tiles, self._metadata = tiles, metadata
        self._plane = np.zeros(size, dtype=np.int64)  # 0 = void, label + 1 = stuff, then the parts in order
        self._parts: list[Part] = []
        self._stuff = np.zeros((metadata.num_classes, 2))  # pixels, and the sum of their scores

    def add(self, number: int, panoptic: PanopticMap) -> None:
        """Take the segments of tile `number`."""
        box, cell = self._tiles[number].box, self._tiles[number].cell
        parts = segment_parts(panoptic, number, box)
        numbers = {segment.id: segment.label + 1 for segment in panoptic.segments}
        for segment in panoptic.segments:
            if segment.is_thing and segment.id in parts:
                self._parts.append(parts[segment.id])
                numbers[segment.id] = self._metadata.num_classes + len(self._parts)
        plane = self._plane[cell.top : cell.bottom, cell.left : cell.right]
        plane[:] = panoptic.ids.cpu()[cell.top - box.top :, cell.left - box.left :][: plane.shape[0], : plane.shape[1]]
        for segment in panoptic.segments:
            if not segment.is_thing:
                self._stuff[segment.label] += np.count_nonzero(plane == segment.id) * np.array([1, segment.score])
        renumber(plane, numbers)

    def result(self) -> PanopticMap:
        """Stuff, then things by score; ids count from 1. The score of stuff, too, is the mean over its pixels."""
        first = self._metadata.num_classes + 1
        stuff = {label + 1: (label, total / max(1, pixels)) for label, (pixels, total) in enumerate(self._stuff)}
        wholes = _wholes(self._parts, self._tiles)
        members = {first + part: number for number, whole in enumerate(wholes, first) for part in whole.members}
        renumber(self._plane, {number: number for number in stuff} | members)
        for number, whole in enumerate(wholes, first):
            self._claim(whole.found.runs, number, number + len(wholes), first)
        things = {number: whole.found[:2] for number, whole in enumerate(wholes, first + len(wholes))}
        return to_panoptic(self._plane, stuff | things, self._metadata)

    def _claim(self, runs: Runs, number: int, final: int, first: int) -> None:
        """Give an object's pixels `final` where they have its `number` or that of no thing, which is below `first`."""
        for tile in self._tiles:  # bit by bit: a pixel's index takes more memory than the pixel
            rows, columns = pixels(clip(runs, tile.cell))
            before = self._plane[rows, columns]
            free = (before < first) | (before == number)
            self._plane[rows[free], columns[free]] = final
