"""Pictures to the graph's input: decode, resize as evaluation does, fit into the frame, normalise, pad."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f.export.info import ExportInfo

Picture = NDArray[np.uint8] | Image.Image | str | PathLike[str]
Size = tuple[int, int]  # (height, width) in pixels

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, Image.DecompressionBombError)


class Batch(NamedTuple):
    """What a graph is fed."""

    tensor: NDArray[Any]  # (B, 3, H, W) float32 or uint8; rows beyond `sizes` are blank
    sizes: list[Size]  # of each picture, at the top left of its row

    @property
    def frame(self) -> Size:
        """(H, W)."""
        return self.tensor.shape[2], self.tensor.shape[3]


def read_picture(picture: Picture) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) RGB of a file, a Pillow image or an array, turned as the EXIF tag asks; alpha is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, holds floats, or the array is not (H, W, 3) uint8.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"a picture is (height, width, 3) uint8 RGB, not {picture.shape} {picture.dtype}")
        return picture
    image = picture if isinstance(picture, Image.Image) else _open(picture)
    rgb, turn = _rgb(image), _TURNS.get(_orientation(image))
    return np.asarray(rgb if turn is None else rgb.transpose(turn))


def evaluation_resize(pixels: NDArray[np.uint8], info: ExportInfo) -> NDArray[np.uint8]:
    """Resize (H, W, 3) as evaluation does: to (h, w, 3)."""
    height, width = pixels.shape[:2]
    if info.target_size:
        height, width = info.target_size[-1], info.target_size[0]
    ratio = min(info.min_size / min(height, width), info.max_size / max(height, width))
    return _resize(pixels, _scaled((height, width), ratio))


def fit(image: NDArray[np.uint8], info: ExportInfo) -> NDArray[np.uint8]:
    """Shrink a (3, h, w) image that is larger than the graph's input, keeping its aspect; others stay as they are."""
    edges = zip((info.height, info.width), image.shape[1:], strict=True)
    ratio = min((limit / edge for limit, edge in edges if limit > 0), default=1.0)
    if ratio >= 1:
        return image
    height, width = image.shape[1:]
    return _resize(image.transpose(1, 2, 0), _scaled((height, width), ratio)).transpose(2, 0, 1)


def make_batch(images: Sequence[NDArray[np.uint8]], info: ExportInfo) -> Batch:
    """Put (3, h, w) uint8 images that fit into the frame, normalised where the graph does not do it itself.

    The padding is zero after normalising; of uint8 it is the mean colour, which comes nearest to that.
    """
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (info.pixel_mean, info.pixel_std))
    sizes: list[Size] = [(image.shape[1], image.shape[2]) for image in images]
    frame = [
        limit if limit > 0 else -(-max(edges) // info.divisibility) * info.divisibility
        for limit, edges in zip((info.height, info.width), zip(*sizes, strict=True), strict=True)
    ]
    dtype = np.uint8 if info.normalize_in_graph else np.float32
    tensor = np.zeros((max(len(images), info.batch_size), 3, *frame), dtype)
    if info.normalize_in_graph:
        tensor[:] = np.rint(mean * 255)
    for slot, image, (height, width) in zip(tensor, images, sizes, strict=False):
        slot[:, :height, :width] = image if info.normalize_in_graph else (image.astype(np.float32) / 255 - mean) / std
    return Batch(tensor, sizes)


def _resize(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def _scaled(size: Size, ratio: float) -> Size:
    return max(1, int(size[0] * ratio + 0.5)), max(1, int(size[1] * ratio + 0.5))


def _open(path: str | PathLike[str]) -> Image.Image:
    """Open and decode, so that a broken file fails here and by name."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise FileNotFoundError(f"no such image: {path}") from None
    except _UNREADABLE as error:
        raise ValueError(f"cannot read image {path}: {error}") from error


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation; as stored (1) where the tag is broken."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except _UNREADABLE:
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Eight bits per channel; 16 bits are scaled, and not cut off as Pillow would."""
    if image.mode == "F":
        raise ValueError("a float image has no fixed white; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
