"""Where tiles lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from m2f.merging.grid import tile_grid
from m2f.merging.runs import Box, split


@pytest.mark.parametrize("seed", range(30))
def test_tiles_are_even_and_cells_cover_the_image_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, tile_size = rng.integers(1, 300, 2).tolist(), rng.integers(8, 150, 2).tolist()
    overlap = float(rng.uniform(0.01, 0.7))
    tiles = tile_grid(tuple(size), tuple(tile_size), overlap)
    sides = np.minimum(size, tile_size).tolist()
    deepest, count = torch.zeros(size), torch.zeros(size)
    for box, cell, _ in tiles:
        assert [box.bottom - box.top, box.right - box.left] == sides
        assert box.common(Box(0, 0, *size)) == box
        region = deepest[box.top : box.bottom, box.left : box.right]
        region[:] = torch.maximum(region, depth(box, size))
        count[cell.top : cell.bottom, cell.left : cell.right] += 1
    assert (count == 1).all()
    for box, cell, _ in tiles:
        own = depth(box, size)[cell.top - box.top : cell.bottom - box.top, cell.left - box.left : cell.right - box.left]
        assert (
            own >= deepest[cell.top : cell.bottom, cell.left : cell.right] - 1
        ).all()  # 1: an odd overlap has a middle
    for axis, side in enumerate(sides):
        steps = np.diff(sorted({tile.box[axis] for tile in tiles}))
        assert (side - steps >= overlap * side - 1e-9).all()
        assert not len(steps) or steps.max() - steps.min() <= 1


def depth(box: Box, size: list[int]) -> Tensor:
    """(h, w) distance of each pixel to the nearest border of a tile beyond which the image goes on, from 1."""
    away = []
    for start, end, whole in ((box.top, box.bottom, size[0]), (box.left, box.right, size[1])):
        place = torch.arange(start, end, dtype=torch.float32)
        before, after = place - start if start else place + 1e6, end - 1 - place if end < whole else 1e6 - place
        away.append(torch.minimum(before, after) + 1)
    return torch.minimum(away[0][:, None], away[1])


def test_as_few_tiles_as_the_overlap_allows() -> None:
    starts = {
        overlap: sorted({tile.box.left for tile in tile_grid((10, 256), (10, 104), overlap)})
        for overlap in (0.1, 0.26, 0.28)
    }
    assert starts == {0.1: [0, 76, 152], 0.26: [0, 76, 152], 0.28: [0, 50, 101, 152]}


def test_a_tile_cuts_what_touches_a_border_beyond_which_the_image_goes_on() -> None:
    tile = tile_grid((10, 20), (10, 12), 0.25)[0]
    masks = np.zeros((3, 10, 12), bool)
    masks[0, :, :11], masks[1, 4, 11], masks[2, 0, 0] = True, True, True
    assert [tile.cuts(split(mask)[1]) for mask in masks] == [False, True, False]
