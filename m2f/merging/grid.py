"""Where the tiles of an image lie."""

from __future__ import annotations

from itertools import pairwise, product
from typing import NamedTuple

from m2f.merging.runs import Box, Runs, area, clip


class Tile(NamedTuple):
    """A part of an image that is answered by itself."""

    box: Box
    cell: Box  # the pixels that lie deeper in this tile than in any other; the cells of a grid cover the image once
    inner: Box  # without the outermost pixels, but for those at the image's own border

    def cuts(self, runs: Runs) -> bool:
        """Whether a mask touches a border beyond which the image goes on."""
        return area(clip(runs, self.inner)) < area(runs)


_Span = tuple[int, int]  # along one axis, in pixels, half-open


def tile_grid(size: tuple[int, int], tile_size: tuple[int, int], overlap: float) -> list[Tile]:
    """Cover an image evenly, row by row.

    Args:
        size: (height, width) of the image.
        tile_size: (height, width) of every tile, or the image's where that is less.
        overlap: least share of a tile that it has in common with the next.
    """
    rows, columns = (_spans(*sides, overlap) for sides in zip(size, tile_size, strict=True))
    return [
        Tile(*(Box(top, left, bottom, right) for (top, bottom), (left, right) in zip(y, x, strict=True)))
        for y, x in product(rows, columns)
    ]


def _spans(size: int, tile: int, overlap: float) -> list[tuple[_Span, _Span, _Span]]:
    """Box, cell and inner part along one axis: as few tiles as the overlap allows; cells meet in the middle of it."""
    tile = min(tile, size)
    step = max(1, int(tile * (1 - overlap)))
    steps = -(-(size - tile) // step)
    starts = [(size - tile) * number // max(1, steps) for number in range(steps + 1)]
    cuts = [0, *((start + tile + after) // 2 for start, after in pairwise(starts)), size]
    return [
        ((start, start + tile), cell, (start + (start > 0), start + tile - (start + tile < size)))
        for start, cell in zip(starts, pairwise(cuts), strict=True)
    ]
