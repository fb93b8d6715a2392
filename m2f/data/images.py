"""Image and mask files to arrays: the only place of this room that decodes pixels.

EXIF: an image is turned the way its orientation tag asks for. Annotation coordinates carry no tag, so sizes decide: an
annotation of the size of the turned image is taken as it is, one of the size of the stored, unturned pixels is turned
along. Where both sizes are equal (square images; tags 2 to 4), annotations count as drawn on the turned image.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ORIENTATION_TAG = 0x0112
_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, Image.DecompressionBombError)


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, turned as its EXIF tag asks.
        stored_size: (height, width) of the pixels in the file, before turning.
        orientation: EXIF orientation, 1 to 8; 1 = as stored.
    """

    pixels: NDArray[np.uint8]
    stored_size: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `pixels`."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_image(path: str) -> Picture:
    """Decode any image that Pillow knows, of any mode, to RGB; alpha is dropped, 16 bits are scaled to 8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, cut short, or holds floats.
    """
    image = _open(path)
    orientation = _orientation(image)
    pixels = _rgb(image, path)
    return Picture(np.ascontiguousarray(orient(pixels, orientation)), (image.height, image.width), orientation)


def read_index_mask(path: str) -> NDArray[Any]:
    """Decode a semantic mask to class ids: (H, W) uint8 or uint16. A palette image gives its indices, not its colours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or its pixels are colours and not ids.
    """
    image = _open(path)
    if image.mode == "LA":
        image = image.getchannel("L")
    values = np.asarray(image)
    if values.ndim == 3:
        if not (values[..., :1] == values[..., :3]).all():
            raise ValueError(
                f"{path}: the pixels are {image.mode} colours; a semantic mask holds one class id per pixel"
            )
        values = values[..., 0]
    if values.dtype == np.uint8 or values.dtype == np.uint16:
        return np.ascontiguousarray(values)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"{path}: mask values must be integers from 0 to 65535, not {values.dtype} up to {values.max()}"
        )
    return values.astype(np.uint8 if values.dtype == np.bool_ else np.uint16)


def read_segment_ids(path: str) -> NDArray[np.uint32]:
    """Decode a panoptic PNG to segment ids, R + 256 G + 65536 B: (H, W) uint32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or not a colour image.
    """
    image = _open(path)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"{path}: a panoptic PNG is RGB, this one has mode {image.mode}")
    # Pillow keeps RGB in four bytes anyway: read as little-endian words, R is the lowest.
    words = np.asarray(image.convert("RGBA")).view("<u4")[..., 0]
    return words & np.uint32(0xFFFFFF)


def orient(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn (H, W, ...) stored pixels the way EXIF `orientation` asks for; a view where possible."""
    if orientation >= 5:  # the stored rows are columns of the scene
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _open(path: str) -> Image.Image:
    """Open and decode, so that a broken file fails here and by name."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise FileNotFoundError(f"no such image: {path}") from None
    except _UNREADABLE as error:
        raise ValueError(f"cannot read image {path}: {error}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; as stored (1) where the tag is absent or broken, which is how it is shown too."""
    try:
        tag: Any = image.getexif().get(_ORIENTATION_TAG)
    except _UNREADABLE:
        return 1
    return int(tag) if tag in range(1, 9) else 1


def _rgb(image: Image.Image, path: str) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        grey = (wide.clip(0, 65535) // 257).astype(np.uint8)  # 65535 -> 255
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError(f"{path}: float images have no fixed white; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
