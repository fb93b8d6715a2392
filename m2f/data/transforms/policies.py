"""Random policies: they look at a size and draw a `Geometry`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2f.data.transforms.geometry import Geometry

# (H, W) labels of an image, negative where unlabelled; a function, since most policies never ask.
LabelMap = Callable[[], NDArray[Any]]
_CROP_TRIES = 10


class Policy(Protocol):
    """Draws the geometry of one image."""

    def draw(self, rng: np.random.Generator, size: tuple[int, int], label_map: LabelMap) -> Geometry:
        """Draw for an image of `size` = (height, width)."""
        ...


@dataclass(frozen=True)
class OwnSize:
    """Evaluation by tiles: no randomness, no change; every pixel stays what it is."""

    def draw(self, rng: np.random.Generator, size: tuple[int, int], label_map: LabelMap) -> Geometry:
        """The identity."""
        del rng, label_map
        return Geometry.identity(size)


@dataclass(frozen=True)
class ShortestEdge:
    """Evaluation: no randomness. The shortest edge becomes `min_size`, unless the longest would pass `max_size`.

    Attributes:
        min_size: pixels.
        max_size: pixels.
        target_size: (width, height) of a plain resize before everything else, as TAO writes it; empty: none.
    """

    min_size: int
    max_size: int
    target_size: tuple[int, ...] = ()

    def draw(self, rng: np.random.Generator, size: tuple[int, int], label_map: LabelMap) -> Geometry:
        """The one geometry for `size`."""
        del rng, label_map
        start = _pre_resized(size, self.target_size)
        return start.resized(_shortest_edge_size(start.size, self.min_size, self.max_size))


@dataclass(frozen=True)
class ResizeCrop:
    """TAO's and ADE20K's: flip, resize the shortest edge to one of `min_sizes`, cut a random crop.

    Attributes:
        min_sizes: shortest edges to choose from, in pixels.
        max_size: cap of the longest edge, in pixels.
        crop_size: (height, width); an image that is smaller stays smaller.
        max_category_area: most of a crop's labelled pixels that one class may cover; after 10 tries anything goes.
            1 turns the check off.
        horizontal_flip: probability.
        vertical_flip: probability.
        target_size: (width, height) of a plain resize before everything else; empty: none.

    Note: the plain resize and the random one are one resampling here, two in TAO.
    """

    min_sizes: tuple[int, ...]
    max_size: int
    crop_size: tuple[int, int]
    max_category_area: float = 1.0
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    target_size: tuple[int, ...] = ()

    def draw(self, rng: np.random.Generator, size: tuple[int, int], label_map: LabelMap) -> Geometry:
        """Draw flips, edge and crop, in this order."""
        whole = _flip(_pre_resized(size, self.target_size), rng, self.horizontal_flip, self.vertical_flip)
        edge = int(rng.choice(self.min_sizes))
        whole = whole.resized(_shortest_edge_size(whole.size, edge, self.max_size))
        crop = _random_crop(whole, rng, self.crop_size)
        if self.max_category_area < 1.0:
            labels = label_map()
            for _ in range(_CROP_TRIES - 1):
                if _largest_share(labels, crop) < self.max_category_area:
                    break
                crop = _random_crop(whole, rng, self.crop_size)
        return crop


@dataclass(frozen=True)
class LargeScaleJitter:
    """COCO's large-scale jitter: flip, scale to a random share of the crop's size, cut a random crop.

    Attributes:
        crop_size: (height, width).
        min_scale: least scale; 1 = the image just fits into the crop.
        max_scale: largest scale.
        horizontal_flip: probability.
        vertical_flip: probability.
        target_size: (width, height) of a plain resize before everything else; empty: none.

    Source: Simple Copy-Paste, arXiv:2012.07177.
    Note: the two axes of the crop are drawn independently; Detectron2 draws one number for both.
    Note: what is smaller than the crop is left small; the model pads the batch, and only as much as it needs.
    """

    crop_size: tuple[int, int]
    min_scale: float = 0.1
    max_scale: float = 2.0
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    target_size: tuple[int, ...] = ()

    def draw(self, rng: np.random.Generator, size: tuple[int, int], label_map: LabelMap) -> Geometry:
        """Draw flips, scale and crop, in this order."""
        del label_map
        whole = _flip(_pre_resized(size, self.target_size), rng, self.horizontal_flip, self.vertical_flip)
        scale = rng.uniform(self.min_scale, self.max_scale)
        ratio = scale * min(self.crop_size[0] / whole.size[0], self.crop_size[1] / whole.size[1])
        return _random_crop(whole.resized(_scaled(whole.size, ratio)), rng, self.crop_size)


def expand_min_sizes(min_sizes: Sequence[int], crop_size: Sequence[int]) -> tuple[int, ...]:
    """TAO's `train_min_size`: one value v means every 64 pixels from v // 2 to 2 v; none, the crop's shorter edge."""
    if not min_sizes:
        return (min(crop_size),)
    if len(min_sizes) == 1:
        return tuple(range(min_sizes[0] // 2, 2 * min_sizes[0] + 1, 64))
    return tuple(min_sizes)


def _pre_resized(size: tuple[int, int], target_size: tuple[int, ...]) -> Geometry:
    start = Geometry.identity(size)
    return start.resized((target_size[-1], target_size[0])) if target_size else start


def _scaled(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    return max(1, int(size[0] * ratio + 0.5)), max(1, int(size[1] * ratio + 0.5))


def _shortest_edge_size(size: tuple[int, int], edge: int, max_size: int) -> tuple[int, int]:
    return _scaled(size, min(edge / min(size), max_size / max(size)))


def _flip(geometry: Geometry, rng: np.random.Generator, horizontal: float, vertical: float) -> Geometry:
    chances = rng.random(2)
    return geometry.flipped(horizontal=bool(chances[0] < horizontal), vertical=bool(chances[1] < vertical))


def _random_crop(whole: Geometry, rng: np.random.Generator, crop_size: tuple[int, int]) -> Geometry:
    height, width = min(crop_size[0], whole.size[0]), min(crop_size[1], whole.size[1])
    top = int(rng.integers(whole.size[0] - height + 1))
    left = int(rng.integers(whole.size[1] - width + 1))
    return whole.cropped(top, left, (height, width))


def _largest_share(labels: NDArray[Any], crop: Geometry) -> float:
    """Share of the labelled source pixels under `crop` that its largest class covers; 1 where none is labelled."""
    left, top, right, bottom = crop.box
    seen = labels[int(top) : max(int(bottom), int(top) + 1), int(left) : max(int(right), int(left) + 1)]
    counts = np.bincount(seen[seen >= 0])
    return float(counts.max() / counts.sum()) if counts.size else 1.0
