"""Run arithmetic against dense masks."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from m2f.merging.runs import Box, Runs, area, bounds, clip, intersection, outside, pixels, split, to_coco, union, vote

EMPTY = np.empty((0, 2), np.int64)


def runs_of(mask: np.ndarray) -> Runs:
    return split(mask).get(1, EMPTY)


def dense(runs: Runs, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[pixels(runs)] = True
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_everything_is_what_dense_masks_give(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 14, 2).tolist())
    one, other, _ = masks = rng.random((3, *size)) < rng.choice([0, 0.1, 0.5, 0.9, 1], (3, 1, 1))
    all_runs = [runs_of(mask) for mask in masks]
    first, second = all_runs[:2]
    assert np.array_equal(dense(first, size), one)
    assert area(first) == one.sum()
    assert intersection(first, second) == (one & other).sum()
    assert np.array_equal(dense(union([first, second]), size), one | other)
    assert to_coco(first, size) == coco_mask.encode(np.asfortranarray(one, np.uint8))
    weights = rng.integers(1, 5, 3)
    votes = np.tensordot(weights, masks.astype(int), 1)
    for least in range(1, int(weights.sum()) + 1):
        assert np.array_equal(dense(vote(all_runs, weights.tolist(), least), size), votes >= least)
    (top, bottom), (left, right) = (sorted(rng.integers(0, edge + 1, 2).tolist()) for edge in size)
    inside = np.zeros(size, bool)
    inside[top:bottom, left:right] = True
    box = Box(top, left, bottom, right)
    assert np.array_equal(dense(clip(first, box), size), one & inside)
    assert np.array_equal(dense(outside(first, box), size), one & ~inside)
    rows, columns = one.nonzero()
    tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0)
    assert bounds(first) == tight


def test_a_part_lies_where_its_corner_does() -> None:
    numbers = np.array([[0, 7, 7], [3, 7, 0]])
    runs = split(numbers, top=10, left=20)
    assert sorted(runs) == [3, 7]
    whole = np.zeros((13, 24), int)
    for number, its_runs in runs.items():
        whole[pixels(its_runs)] = number
    assert np.array_equal(whole[10:12, 20:23], numbers)
    assert np.count_nonzero(whole) == 4


def test_votes_that_sum_to_half_count_whatever_the_rounding() -> None:
    mask = runs_of(np.ones((2, 2), bool))
    weights = [0.1, 0.2, 0.3]  # 0.1 + 0.2 > 0.3 in floating point
    assert area(vote([mask, mask, EMPTY], weights, 0.3)) == 4
    assert area(vote([EMPTY, EMPTY, mask], weights, 0.1 + 0.2)) == 4
