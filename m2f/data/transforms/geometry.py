"""Resize, crop and flip as one value: which box of the source is seen, at what size, mirrored or not.

Steps compose before any pixel is touched. So an image is resampled once, and only where the crop will be; id maps are
looked up, polygons are moved, and masks come into being at the crop's size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Geometry:
    """Attributes:
    source: (height, width) of what it applies to, in pixels.
    box: (left, top, right, bottom) of the part that is seen, in source pixels, possibly fractional.
    size: (height, width) of the result.
    hflip: the result is mirrored left to right.
    vflip: the result is mirrored top to bottom.
    """

    source: tuple[int, int]
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    hflip: bool = False
    vflip: bool = False

    @classmethod
    def identity(cls, size: tuple[int, int]) -> Geometry:
        """What leaves a (height, width) image alone; the others are built from it."""
        return cls(size, (0.0, 0.0, float(size[1]), float(size[0])), size)

    def resized(self, size: tuple[int, int]) -> Geometry:
        """Then stretched to (height, width)."""
        return replace(self, size=size)

    def cropped(self, top: int, left: int, size: tuple[int, int]) -> Geometry:
        """Then cut to `size` = (height, width) at (`top`, `left`), in pixels of the result so far.

        Raises:
            ValueError: the crop does not lie inside the result so far.
        """
        height, width = size
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(f"crop of {size} at {(top, left)} does not lie inside {self.size}")
        left = self.size[1] - left - width if self.hflip else left
        top = self.size[0] - top - height if self.vflip else top
        (x0, y0, _, _), (scale_y, scale_x) = self.box, self.scale
        box = (x0 + left * scale_x, y0 + top * scale_y, x0 + (left + width) * scale_x, y0 + (top + height) * scale_y)
        return replace(self, box=box, size=size)

    def flipped(self, *, horizontal: bool = False, vertical: bool = False) -> Geometry:
        """Then mirrored."""
        return replace(self, hflip=self.hflip != horizontal, vflip=self.vflip != vertical)

    @property
    def scale(self) -> tuple[float, float]:
        """Source pixels per pixel of the result, (vertical, horizontal)."""
        x0, y0, x1, y1 = self.box
        return (y1 - y0) / self.size[0], (x1 - x0) / self.size[1]

    @property
    def is_identity(self) -> bool:
        """Whether the result is the source."""
        return self == Geometry.identity(self.source)

    def apply_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resample (H, W, 3) uint8 bilinearly, averaging when it shrinks.

        The same to within one grey level as resizing the whole image and cutting afterwards.
        """
        self._check(pixels)
        if not self._on_grid():
            (h, w), (x0, y0, x1, y1) = self.source, self.box
            box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(w)), min(y1, float(h)))  # sums may overshoot by an ulp
            resized = Image.fromarray(pixels).resize(self.size[::-1], Image.Resampling.BILINEAR, box=box)
            return self._mirror(np.asarray(resized))
        left, top = round(self.box[0]), round(self.box[1])
        return self._mirror(pixels[top : top + self.size[0], left : left + self.size[1]])

    def apply_ids(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Look up the nearest id of an (H, W) map for every pixel of the result."""
        self._check(ids)
        if self.is_identity:
            return ids
        rows, columns = self.source_indices()
        return ids.take(rows, axis=0).take(columns, axis=1)

    def source_indices(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(H,) source row and (W,) source column under each pixel centre of the result."""
        rows = _nearest(self.box[1], self.scale[0], self.size[0], self.source[0], self.vflip)
        return rows, _nearest(self.box[0], self.scale[1], self.size[1], self.source[1], self.hflip)

    def apply_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move (P, 2) points (x, y), in pixels with the corner of the first pixel at 0; they may leave the result."""
        (height, width), (scale_y, scale_x) = self.size, self.scale
        moved = (points - self.box[:2]) / (scale_x, scale_y)
        if self.hflip:
            moved[:, 0] = width - moved[:, 0]
        if self.vflip:
            moved[:, 1] = height - moved[:, 1]
        return moved

    def _on_grid(self) -> bool:
        """Whether the result is a cut-out without resampling."""
        x0, y0, x1, y1 = self.box
        off_grid = max(abs(edge - round(edge)) for edge in self.box)
        return off_grid < 1e-6 and (round(y1) - round(y0), round(x1) - round(x0)) == self.size

    def _mirror(self, array: NDArray[Any]) -> NDArray[Any]:
        return array[:: -1 if self.vflip else 1, :: -1 if self.hflip else 1]

    def _check(self, array: NDArray[Any]) -> None:
        if array.shape[:2] != self.source:
            raise ValueError(f"a transform made for {self.source} (height, width) is applied to {array.shape[:2]}")


def _nearest(start: float, scale: float, count: int, limit: int, mirrored: bool) -> NDArray[np.int64]:
    """Source index under each pixel centre."""
    indices: NDArray[np.int64] = np.floor(start + (np.arange(count) + 0.5) * scale).astype(np.int64).clip(0, limit - 1)
    return indices[::-1] if mirrored else indices
