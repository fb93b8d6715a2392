"""The drawing of one `shapes` picture: textured stuff behind overlapping things, from numbers alone.

Stuff has any colour, and a texture of its kind. Of the things 95 in 100 have the hue of their class, which stuff and
other things have too: hue mostly names a thing that has been found, but does not find it or part it from others.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZE = 128  # pixels along a side
SKY, GRASS, WATER = 5, 6, 7  # category ids of the stuff; things are numbered as in _FORMS
_RADIUS = (11.0, 30.0)  # pixels, log-uniform
_MOST_HIDDEN = 0.5  # largest share of a thing that later ones may cover
_LEAST_VISIBLE = 130  # pixels of a thing that must stay visible
_TILT = 0.45  # radians to either side of upright
_TRIES = 60  # places tried before a picture makes do with fewer things
_HUES = {1: 0.02, 2: 0.60, 3: 0.36, 4: 0.14}  # of the things, of 1: red, blue, green, yellow
_HUE_TRUST = 0.95  # share of the things that have their class's hue; the others, like all stuff, have any
_NOISE = 0.03  # standard deviation of the pixel noise, of 1

Floats = NDArray[np.float32]
_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + np.float32(0.5)


class Scene(NamedTuple):
    """One picture and its truth.

    Attributes:
        image: (SIZE, SIZE, 3) uint8 RGB.
        ids: (SIZE, SIZE) int32; every pixel belongs to a segment, so there is no 0.
        categories: segment id -> category id; each id occurs in `ids`.
    """

    image: NDArray[np.uint8]
    ids: NDArray[np.int32]
    categories: dict[int, int]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a picture with two or three kinds of stuff and three to eight things."""
    ids, categories = _lay_stuff(rng)
    _place_things(rng, ids, categories)
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    colors: list[Floats] = []
    for segment, category in categories.items():
        color = _fresh_color(rng, colors, category)
        colors.append(color)
        inside = ids == segment
        relief = _relief(rng, category)
        image[inside] = color + relief[inside, None]
    image *= _light(rng)[..., None]
    image += rng.normal(0.0, _NOISE, image.shape).astype(np.float32)
    return Scene((image.clip(0.0, 1.0) * 255.0).round().astype(np.uint8), ids, categories)


def _lay_stuff(rng: np.random.Generator) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Sky over a wavy horizon; grass, water or both below it."""
    horizon = SIZE * rng.uniform(0.3, 0.6) + _wave(rng, _X, 5.0)
    ids = np.where(horizon > _Y, 1, 2).astype(np.int32)
    below = [GRASS, WATER] if rng.random() < 0.5 else [WATER, GRASS]
    if rng.random() < 0.6:
        shore = SIZE * rng.uniform(0.3, 0.7) + _wave(rng, _Y, 8.0) + rng.uniform(-0.6, 0.6) * (_Y - SIZE * 0.7)
        ids[(ids == 2) & (shore < _X)] = 3
    categories = {1: SKY, 2: below[0], 3: below[1]}
    return ids, {segment: categories[segment] for segment in np.unique(ids).tolist()}


def _place_things(rng: np.random.Generator, ids: NDArray[np.int32], categories: dict[int, int]) -> None:
    """Put things on top of `ids` in place, each leaving enough to be seen of those below it and of the stuff."""
    wanted = int(rng.integers(3, 9))
    full: dict[int, int] = {}
    segment = max(categories) + 1
    for _ in range(_TRIES):
        category = int(rng.integers(1, len(_FORMS) + 1))
        inside = _thing_mask(rng, category)
        area = int(inside.sum())
        if area >= _LEAST_VISIBLE and _leaves_enough(ids, inside, full, categories):
            ids[inside] = segment
            full[segment], categories[segment] = area, category
            segment += 1
        if len(full) == wanted:
            return


def _leaves_enough(
    ids: NDArray[np.int32], inside: NDArray[np.bool_], full: dict[int, int], categories: dict[int, int]
) -> bool:
    remaining = np.bincount(ids[~inside], minlength=max(categories) + 1)
    stuff_stays = all(remaining[segment] >= _LEAST_VISIBLE for segment in categories if segment not in full)
    return stuff_stays and all(
        remaining[segment] >= max(_LEAST_VISIBLE, (1.0 - _MOST_HIDDEN) * area) for segment, area in full.items()
    )


def _thing_mask(rng: np.random.Generator, category: int) -> NDArray[np.bool_]:
    """(SIZE, SIZE), a form of random size, place and tilt; it may stand over the edge by a little."""
    radius = float(np.exp(rng.uniform(*np.log(_RADIUS))))
    center = rng.uniform(0.6 * radius, SIZE - 0.6 * radius, 2)
    turn = rng.uniform(-_TILT, _TILT)
    x, y = _X - np.float32(center[0]), _Y - np.float32(center[1])
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    inside: NDArray[np.bool_] = _FORMS[category - 1](x * cos + y * sin, y * cos - x * sin) <= radius
    return inside


def _disc(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y)


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) * np.float32(1.15)


def _triangle(x: Floats, y: Floats) -> Floats:
    slanted = np.abs(x) * np.float32(np.sqrt(0.75)) - y * np.float32(0.5)
    return np.maximum(slanted, y) * np.float32(1.7)


def _star(x: Floats, y: Floats) -> Floats:
    """Five points: the plane folded into one half of one point, whose edge is a straight line."""
    fifth = 2.0 * np.pi / 5.0
    angle = np.abs((np.arctan2(x, -y) + fifth / 2.0) % fifth - fifth / 2.0)
    inner = 0.42  # radius of the notches / radius of the tips
    notch_x, notch_y = inner * np.cos(fifth / 2.0), inner * np.sin(fifth / 2.0)
    along, across = np.cos(angle), np.sin(angle)
    edge = along + across * (1.0 - notch_x) / notch_y
    return np.asarray(np.hypot(x, y) * edge / 1.15, np.float32)


_FORMS: tuple[Callable[[Floats, Floats], Floats], ...] = (_disc, _square, _triangle, _star)  # category ids 1 to 4


def _sky_relief(rng: np.random.Generator) -> Floats:
    """Soft clouds."""
    return _clouds(rng, 5) * np.float32(0.14)


def _grass_relief(rng: np.random.Generator) -> Floats:
    """Upright blades, two pixels wide and six long."""
    blades = rng.normal(0.0, 1.0, (SIZE // 6 + 2, SIZE // 2)).astype(np.float32)
    rows = (np.arange(SIZE)[:, None] + rng.integers(0, 6, SIZE // 2)[None]) // 6
    return np.repeat(blades[rows, np.arange(SIZE // 2)], 2, axis=1) * np.float32(0.11)


def _water_relief(rng: np.random.Generator) -> Floats:
    """Level ripples."""
    period = rng.uniform(6.0, 9.0)
    phase = 2.0 * np.pi * (_Y + _wave(rng, _X, 2.0)) / period
    return np.asarray(np.sin(phase) * 0.13, np.float32)


_STUFF_RELIEF: dict[int, Callable[[np.random.Generator], Floats]] = {
    SKY: _sky_relief,
    GRASS: _grass_relief,
    WATER: _water_relief,
}


def _plain(rng: np.random.Generator) -> Floats:  # noqa: ARG001 - all reliefs are called alike
    return np.zeros((SIZE, SIZE), np.float32)


def _blotches(rng: np.random.Generator) -> Floats:
    return _clouds(rng, 12) * np.float32(0.15)


def _stripes(rng: np.random.Generator) -> Floats:
    """Broad, in any direction."""
    return np.asarray(np.sin(_slant(rng) * np.float32(2.0 * np.pi / rng.uniform(10.0, 18.0))) * 0.14, np.float32)


def _slope(rng: np.random.Generator) -> Floats:
    along = _slant(rng)
    return np.asarray((along - along.mean()) * np.float32(0.004), np.float32)


def _slant(rng: np.random.Generator) -> Floats:
    """(SIZE, SIZE) pixels along a random direction."""
    turn = rng.uniform(0.0, np.pi)
    return np.asarray(_X * np.float32(np.cos(turn)) + _Y * np.float32(np.sin(turn)), np.float32)


_THING_RELIEFS: tuple[Callable[[np.random.Generator], Floats], ...] = (_plain, _slope, _stripes, _blotches)


def _relief(rng: np.random.Generator, category: int) -> Floats:
    """The texture of a segment: that of its kind of stuff; for a thing any, whatever its class."""
    draw = _STUFF_RELIEF.get(category) or _THING_RELIEFS[int(rng.integers(len(_THING_RELIEFS)))]
    return draw(rng)


def _clouds(rng: np.random.Generator, cells: int) -> Floats:
    """Smooth noise of about unit range: a coarse random grid, interpolated linearly."""
    grid = rng.uniform(-1.0, 1.0, (cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0.0, cells, SIZE, endpoint=False, dtype=np.float32)
    low = at.astype(int)
    share = at - low
    rows = grid[low] * (1.0 - share)[:, None] + grid[low + 1] * share[:, None]
    return np.asarray(rows[:, low] * (1.0 - share) + rows[:, low + 1] * share, np.float32)


def _wave(rng: np.random.Generator, along: Floats, height: float) -> Floats:
    period, phase = rng.uniform(40.0, 110.0), rng.uniform(0.0, 2.0 * np.pi)
    return np.asarray(np.sin(along * (2.0 * np.pi / period) + phase) * rng.uniform(0.3, 1.0) * height, np.float32)


def _light(rng: np.random.Generator) -> Floats:
    """A slope of brightness over the whole picture."""
    turn, depth = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.0, 0.25)
    slope = ((_X - SIZE / 2) * np.cos(turn) + (_Y - SIZE / 2) * np.sin(turn)) / SIZE
    return np.asarray(1.0 + depth * slope, np.float32)


def _fresh_color(rng: np.random.Generator, taken: list[Floats], category: int) -> Floats:
    """Of a dozen random colours the one that differs most from those taken, so that edges can be seen."""
    hues = rng.uniform(size=12)
    if category in _HUES and rng.random() < _HUE_TRUST:
        hues = (_HUES[category] + rng.normal(0.0, 0.05, 12)) % 1.0
    candidates: Floats = np.array(
        [
            colorsys.hsv_to_rgb(h, 0.15 + 0.7 * s, 0.3 + 0.6 * v)
            for h, (s, v) in zip(hues, rng.uniform(size=(12, 2)), strict=True)
        ],
        np.float32,
    )
    if not taken:
        return np.asarray(candidates[0])
    distance = np.linalg.norm(candidates[:, None] - np.stack(taken)[None], axis=2).min(axis=1)
    return np.asarray(candidates[int(distance.argmax())])
