"""Polygons and run-length codes of COCO files: brought into the image's frame, cropped, and drawn as masks last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as coco_mask
from numpy.typing import NDArray

from m2f.data.images import Picture, orient
from m2f.data.transforms import Geometry

Rle = dict[str, Any]  # {"size": [height, width], "counts": bytes}
_FARTHEST = 1e5  # pixels from the origin: beyond any image that Pillow opens, and little enough for pycocotools to draw


class Outline(NamedTuple):
    """One object in the frame of the turned image: polygons, or a run-length code, never both."""

    polygons: list[NDArray[np.float64]]  # (P, 2) each, x and y in pixels
    rle: Rle | None


def read_outline(segmentation: Any, frame: tuple[int, int], picture: Picture, name: str) -> Outline:
    """Bring the `segmentation` of a COCO annotation into the frame of `picture`.

    Args:
        segmentation: polygons [[x0, y0, x1, y1, ...], ...], or a run-length code with counts as list or string.
        frame: (height, width) that polygon coordinates refer to, as the annotation file says.
        picture: the image; see `data/images.py` for how EXIF and annotations meet.
        name: what to call the object in messages.

    Raises:
        ValueError: the size fits neither the image nor its stored pixels, or what pycocotools would draw without a
            check and with wild results: run lengths that do not fill the size, coordinates that are no place.
    """
    is_code = isinstance(segmentation, dict)
    frame = tuple(segmentation["size"]) if is_code else frame
    if frame not in (picture.size, picture.stored_size):
        raise ValueError(f"{name} is drawn for {frame} pixels (height, width), but its image has {picture.size}")
    if is_code:
        return Outline([], _turned(_compressed(segmentation, name), frame, picture))
    polygons = [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in segmentation if len(part) >= 6]
    if any(not (np.abs(polygon) <= _FARTHEST).all() for polygon in polygons):  # NaN is not less either
        raise ValueError(f"{name}: a polygon has a corner that is not finite, or farther than {_FARTHEST:.0f} pixels")
    if frame == picture.size:
        return Outline(polygons, None)
    return Outline([], _turned(_polygon_rle(polygons, frame), frame, picture))


def encode(outline: Outline, size: tuple[int, int]) -> Rle:
    """The run-length code of an outline in an image of `size` = (height, width)."""
    return outline.rle if outline.rle is not None else _polygon_rle(outline.polygons, size)


def encode_masks(masks: NDArray[np.bool_]) -> list[Rle]:
    """Run-length codes of (N, H, W) masks."""
    columns_first = np.ascontiguousarray(masks.transpose(0, 2, 1))
    codes: list[Rle] = coco_mask.encode(columns_first.view(np.uint8).transpose(2, 1, 0))
    return codes


def areas_of(codes: list[Rle]) -> list[float]:
    """Pixels in each code; one at a time, since pycocotools overflows on lists of more than 255."""
    return [float(coco_mask.area(code)) for code in codes]


def draw(outlines: Sequence[Outline], geometry: Geometry) -> NDArray[np.bool_]:
    """Masks of `outlines` as seen through `geometry`: (N, H, W) bool of its size, empty where nothing is seen.

    Polygons are moved and drawn at the new size; run-length codes are looked up at the nearest pixel.
    """
    masks = np.zeros((len(outlines), *geometry.size), dtype=np.bool_)
    for outline, mask in zip(outlines, masks, strict=True):
        if outline.polygons:
            _draw_polygons([geometry.apply_points(polygon) for polygon in outline.polygons], mask)
    coded = [row for row, outline in enumerate(outlines) if outline.rle is not None]
    if coded:
        _draw_codes([outlines[row].rle for row in coded], geometry, [masks[row] for row in coded])
    return masks


def _draw_polygons(polygons: list[NDArray[np.float64]], canvas: NDArray[np.bool_]) -> None:
    """Draw one object's polygons, in the canvas's pixels, within their bounding box only.

    The box has a pixel to spare on each side, since corners are rounded outwards too.
    """
    points = np.concatenate(polygons)
    x0, y0 = (np.floor(points.min(axis=0)).clip(1) - 1).astype(int).tolist()
    x1, y1 = (np.ceil(points.max(axis=0)) + 1).clip(None, canvas.shape[::-1]).astype(int).tolist()
    if x1 <= x0 or y1 <= y0:
        return
    code = _polygon_rle([_shifted(polygon, (x0, y0)) for polygon in polygons], (y1 - y0, x1 - x0))
    canvas[y0:y1, x0:x1] = coco_mask.decode(code)


def _shifted(points: NDArray[np.float64], origin: tuple[int, int]) -> NDArray[np.float64]:
    """(P, 2) points seen from `origin`, such that the drawing is exactly the same as without a shift.

    pycocotools puts corners on a grid of fifths of a pixel, by cutting off the decimals of 5 x + 0.5: that depends on
    the last bit of x, and goes the wrong way below zero. So the rounding is done here, and survives its own.
    """
    fifths = np.floor(5.0 * points + 0.5) - 5.0 * np.array(origin)
    return np.where(fifths < 0, fifths - 0.6, fifths) / 5.0


def _polygon_rle(polygons: list[NDArray[np.float64]], size: tuple[int, int]) -> Rle:
    if not polygons:
        return encode_masks(np.zeros((1, *size), dtype=np.bool_))[0]
    parts = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *size)
    code: Rle = coco_mask.merge(parts)
    return code


def _compressed(code: Rle, name: str) -> Rle:
    """The code with its counts as text, after a look at whether they fill its size."""
    height, width = code["size"]
    is_list = isinstance(code["counts"], list)
    runs = np.asarray(code["counts"], dtype=np.int64) if is_list else run_lengths(code["counts"])
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"{name}: run lengths of {runs.sum()} pixels do not fill {height} x {width}")
    return coco_mask.frPyObjects(code, height, width) if is_list else code


def run_lengths(counts: str | bytes) -> NDArray[np.int64]:
    """Decode COCO's text: digits of 5 bits, the lowest first, the sixth bit set on all but a number's last.

    The highest bit of the last digit is the sign; from the fourth on, a number is the difference to the one two before.
    """
    digits = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate([[0], last + 1])[:-1]
    number = np.repeat(np.arange(len(last)), last + 1 - first)  # that each digit belongs to
    shift = 5 * (np.arange(len(number)) - first[number])
    runs = np.zeros(len(last), dtype=np.int64)
    np.add.at(runs, number, (digits[: len(number)] & 31) << shift)
    runs -= np.where(digits[last] & 16, 1 << (5 * (last + 1 - first)), 0)
    for start in (1, 2):  # differences add up among the odd and among the even places; the first of all stands alone
        runs[start::2] = runs[start::2].cumsum()
    return runs


def _turned(code: Rle, frame: tuple[int, int], picture: Picture) -> Rle:
    """A code drawn in `frame`, turned along with the picture where it was drawn on the stored pixels."""
    if frame == picture.size:
        return code
    return encode_masks(orient(coco_mask.decode(code).view(np.bool_), picture.orientation)[None])[0]


def _draw_codes(codes: list[Any], geometry: Geometry, canvases: list[NDArray[np.bool_]]) -> None:
    """Look up each code's mask within its bounding box; a code that is not seen is not even decoded."""
    rows, columns = geometry.source_indices()
    boxes = coco_mask.toBbox(codes).astype(np.int64)
    for code, (x, y, width, height), canvas in zip(codes, boxes.tolist(), canvases, strict=True):
        on_rows = np.flatnonzero((rows >= y) & (rows < y + height))
        on_columns = np.flatnonzero((columns >= x) & (columns < x + width))
        if on_rows.size and on_columns.size:
            plane = coco_mask.decode(code).view(np.bool_)
            window = (slice(on_rows[0], on_rows[-1] + 1), slice(on_columns[0], on_columns[-1] + 1))
            canvas[window] = plane[rows[window[0], None], columns[window[1]]]
