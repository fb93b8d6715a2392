"""SSD's photometric distortion as one table that every pixel goes through."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_NODES = 17  # per axis of the colour table: 16 grey levels apart, linear between them
_CHANCE = 0.5  # of each of the four changes


@dataclass(frozen=True)
class ColorShift:
    """One drawn change of colours.

    Attributes:
        brightness: added to every channel, in grey levels.
        contrast: factor of every channel.
        saturation: factor of HSV's saturation.
        hue: added to HSV's hue, in degrees.
        contrast_first: contrast before saturation and hue, else after them.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True

    def apply_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change (H, W, 3) uint8 RGB.

        Note: saturation and hue go through a table of 17^3 colours with linear interpolation: within a few grey levels
        of the exact formula, at a third of the time of the way over an HSV image.
        """
        if self == ColorShift(contrast_first=self.contrast_first):
            return pixels
        if self.saturation == 1.0 and self.hue == 0.0:
            return _to_bytes(self.exact(np.arange(256.0)[:, None].repeat(3, axis=1)))[:, 0].take(pixels)
        table = self.exact(_grid()) / np.float32(255.0)
        lookup = ImageFilter.Color3DLUT(_NODES, table.ravel())
        return np.asarray(Image.fromarray(pixels).filter(lookup))

    def exact(self, colors: NDArray[np.floating]) -> NDArray[np.floating]:
        """The formula itself on (N, 3) RGB in 0 to 255: (N, 3), clipped to 0 to 255 after each step."""
        colors = (colors + self.brightness).clip(0.0, 255.0)
        if self.contrast_first:
            colors = (colors * self.contrast).clip(0.0, 255.0)
        if self.saturation != 1.0 or self.hue != 0.0:
            colors = _shift_hsv(colors, self.saturation, self.hue)
        return colors if self.contrast_first else (colors * self.contrast).clip(0.0, 255.0)


@dataclass(frozen=True)
class ColorJitter:
    """Draws a `ColorShift`: each change with probability 1/2, within these bounds.

    Source: SSD, arXiv:1512.02325, section 3.6; the bounds are those of its code.
    Note: 18 degrees, as in SSD's own code; Detectron2's OpenCV hue counts in steps of two degrees.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0

    def draw(self, rng: np.random.Generator) -> ColorShift:
        """Draw one change; always takes the same amount of randomness."""
        fires = rng.random(4) < _CHANCE
        amounts = rng.random(4)
        return ColorShift(
            brightness=_between(-self.brightness, self.brightness, amounts[0]) if fires[0] else 0.0,
            contrast=_between(*self.contrast, amounts[1]) if fires[1] else 1.0,
            saturation=_between(*self.saturation, amounts[2]) if fires[2] else 1.0,
            hue=_between(-self.hue, self.hue, amounts[3]) if fires[3] else 0.0,
            contrast_first=bool(rng.random() < 0.5),
        )


@cache
def _grid() -> NDArray[np.float32]:
    """(17^3, 3) colours of the table's nodes, red fastest, as Pillow orders them."""
    axis = np.linspace(0.0, 255.0, _NODES, dtype=np.float32)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.stack([red, green, blue], axis=-1).reshape(-1, 3)


def _between(low: float, high: float, amount: float) -> float:
    return float(low + (high - low) * amount)


def _to_bytes(colors: NDArray[np.floating]) -> NDArray[np.uint8]:
    return (colors + 0.5).astype(np.uint8)


def _shift_hsv(colors: NDArray[np.floating], saturation: float, hue: float) -> NDArray[np.floating]:
    """Scale saturation and turn hue of (N, 3) RGB; the value, max(R, G, B), stays."""
    red, green, blue = np.ascontiguousarray(colors.T)
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(chroma > 0, chroma, 1.0)
    sixth = np.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor)
    sixth = np.where(value == red, (green - blue) / divisor, sixth) + hue / 60.0
    chroma = np.minimum(chroma * saturation, value)
    # A channel lies below the value by the chroma, times a trapezoid over the hue circle centred on its complement.
    turns = [(sixth + start) % 6.0 for start in (5.0, 3.0, 1.0)]
    return np.stack([value - chroma * np.minimum(turn, 4.0 - turn).clip(0.0, 1.0) for turn in turns], axis=1)
