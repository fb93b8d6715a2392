"""Answers, truths and training targets as pictures. Colours are RGB throughout, arrays are (H, W, 3) uint8."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from scipy import ndimage
from torch import Tensor

from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap
from m2f.structures.sample import ModelInput, Task

OPACITY = 0.5
HATCH = (90, 90, 90)  # void, ignored and crowd regions are striped with it
FONT_SIZE = 11  # of pictures up to FONT_SIZE * FONT_SHARE pixels
FONT_SHARE = 80  # a larger picture's font is that part of its longer side
LINE_SHARE = 800  # a box's line is that part of the longer side, and at least a pixel
LEAST_AREA_FOR_TEXT = 400  # pixels, at FONT_SIZE
READABLE_SIDE = 320  # pixels; a picture this many times smaller is drawn that many times larger, to hold its texts
GAP = 4  # white pixels between two pictures side by side
_SEARCHED = 2**20  # pixels of a mask that are looked at for its middle

Box = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class _Region:
    """One coloured region: its tight box in the picture, and the mask in that box, bool."""

    box: Box
    mask: np.ndarray
    color: tuple[int, int, int]
    text: str = ""
    is_hatched: bool = False
    is_boxed: bool = False


def draw_semantic(image: Tensor, value: Tensor, metadata: Metadata) -> np.ndarray:
    """Classes over an image.

    Args:
        image: (3, h, w) uint8 RGB, of any size; it is resized to the answer's.
        value: (K, H, W) scores, or (H, W) labels; what is no label, as `metadata.ignore_label`, is striped.
        metadata: names and colours.

    Returns:
        (f H, f W, 3) uint8 RGB; f is 1, or for pictures too small for their texts the factor of `READABLE_SIDE`.
    """
    labels = (value.max(0).indices if value.ndim == 3 else value).cpu().numpy()
    known = (labels >= 0) & (labels < metadata.num_classes)
    index = np.where(known, labels + 1, 0)
    regions = [
        _Region(box, index[box] == row, metadata.categories[row - 1].color, metadata.names[row - 1])
        for row, box in _boxes(index)
    ]
    return _draw(image, [*regions, *_striped(~known)], labels.shape)


def draw_panoptic(
    image: Tensor, value: PanopticMap, metadata: Metadata, min_score: float = 0.0, boxes: bool = False
) -> np.ndarray:
    """Segments over an image: things in shades of their class's colour, crowds striped, void left as it is.

    Args:
        image: as for `draw_semantic`.
        value: segments and their pixels.
        metadata: names and colours.
        min_score: things below it are left out.
        boxes: draw them around things.

    Returns:
        As `draw_semantic`.
    """
    ids = value.ids.cpu().numpy()
    rows = np.zeros(max(int(ids.max()), *(s.id for s in value.segments), 0) + 1, dtype=np.int32)
    rows[[s.id for s in value.segments]] = np.arange(1, len(value.segments) + 1)
    index = rows[ids]
    regions = []
    for row, box in _boxes(index):
        segment = value.segments[row - 1]
        if segment.is_thing and segment.score < min_score:
            continue
        color = _shade(metadata.categories[segment.label].color, row - 1 if segment.is_thing else None)
        text = _text(metadata.names[segment.label], segment.score if segment.score < 1 else None)
        is_boxed = boxes and segment.is_thing and not segment.is_crowd
        regions.append(_Region(box, index[box] == row, color, text, segment.is_crowd, is_boxed))
    return _draw(image, regions, ids.shape)


def draw_instances(
    image: Tensor, value: Instances, metadata: Metadata, min_score: float = 0.5, boxes: bool = False
) -> np.ndarray:
    """Objects over an image, the large ones first; crowds striped; predictions below `min_score` left out.

    Args and returns: as `draw_panoptic`, with `Instances` as value. Without objects the size is the image's.
    """
    regions = list(_instance_regions(value, metadata, min_score, boxes))
    return _draw(image, regions, _size(value) or tuple(image.shape[-2:]))


def draw_task(
    task: Task, image: Tensor, value: Any, metadata: Metadata, min_score: float | None = None, boxes: bool = False
) -> np.ndarray:
    """Draw output[task] or input[task], whichever task it is.

    Args:
        task: whose function draws.
        image: as there.
        value: as there.
        metadata: as there.
        min_score: as there; None: its default.
        boxes: as there; classes have none.
    """
    if task == "semantic":
        return draw_semantic(image, value, metadata)
    drawers: dict[Task, Callable[..., np.ndarray]] = {"panoptic": draw_panoptic, "instance": draw_instances}
    options = {} if min_score is None else {"min_score": min_score}
    return drawers[task](image, value, metadata, boxes=boxes, **options)


def draw_sample(sample: ModelInput, metadata: Metadata) -> np.ndarray:
    """What the model is trained on: targets over the resized image, pixels that do not count striped."""
    regions = list(_instance_regions(sample["instances"], metadata, 0.0)) if "instances" in sample else []
    if "valid" in sample:
        regions += _striped(~sample["valid"].cpu().numpy())
    return _draw(sample["image"], regions, tuple(sample["image"].shape[-2:]))


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) uint8 in a row, scaled to the height of the first, with white gaps.

    Raises:
        ValueError: there is no picture.
    """
    if not pictures:
        raise ValueError("side_by_side needs at least one picture")
    height = pictures[0].shape[0]
    row: list[np.ndarray] = []
    for picture in pictures:
        width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
        row += [_resized(picture, (height, width)), np.full((height, GAP, 3), 255, dtype=np.uint8)]
    return np.concatenate(row[:-1], axis=1)


def _instance_regions(value: Instances, metadata: Metadata, min_score: float, boxes: bool = False) -> Iterator[_Region]:
    """The large ones first; those of no pixel are none."""
    scores = [None] * len(value) if value.scores is None else value.scores.tolist()
    rows = [row for row, score in enumerate(scores) if score is None or score >= min_score]
    cuts = {row: cut for row in rows if (cut := _cut(value.masks[row])) is not None}
    for row in sorted(cuts, key=lambda row: -int(cuts[row][1].sum())):
        category = metadata.categories[int(value.labels[row])]
        is_crowd = value.is_crowd is not None and bool(value.is_crowd[row])
        color = _shade(category.color, row if category.is_thing else None)
        yield _Region(*cuts[row], color, _text(category.name, scores[row]), is_crowd, boxes and not is_crowd)


def _size(value: Instances) -> tuple[int, ...]:
    """(height, width) of the masks; () where a list of none does not say."""
    if isinstance(value.masks, list):
        return tuple(value.masks[0]["size"]) if value.masks else ()
    return tuple(value.masks.shape[-2:])


def _cut(mask: Tensor | dict[str, Any]) -> tuple[Box, np.ndarray] | None:
    """The tight box of a mask, (H, W) or a COCO RLE, and what it holds; None where it is empty."""
    if isinstance(mask, dict):
        x, y, width, height = coco_mask.toBbox(mask).astype(int).tolist()
        box = slice(y, y + height), slice(x, x + width)
        return (box, np.ascontiguousarray(coco_mask.decode(mask)[box]).astype(bool)) if width else None
    plane = mask.cpu().numpy().astype(bool, copy=False)
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    if len(rows) == 0:
        return None
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return box, plane[box]


def _boxes(index: np.ndarray) -> Iterator[tuple[int, Box]]:
    """The values above 0 of an (H, W) map of small integers, ascending, each with its tight box."""
    for place, box in enumerate(ndimage.find_objects(index)):
        if box is not None:
            yield place + 1, box


def _striped(mask: np.ndarray) -> list[_Region]:
    """The region of pixels that do not count; none where all do."""
    return [_Region(box, mask[box], HATCH, is_hatched=True) for _, box in _boxes(mask.view(np.uint8))]


def _shade(color: tuple[int, int, int], index: int | None) -> tuple[int, int, int]:
    """A colour near `color`, another for each index, the same in every run; None leaves it alone."""
    if index is None:
        return color
    moved = np.array(color) + np.random.default_rng(index).integers(-50, 51, size=3)
    red, green, blue = moved.clip(0, 255).tolist()
    return red, green, blue


def _text(name: str, score: float | None) -> str:
    return name if score is None else f"{name} {score:.0%}"


def _draw(image: Tensor, regions: Sequence[_Region], size: tuple[int, ...]) -> np.ndarray:
    """Blend the regions over the image, later ones on top, then boxes, then texts; small pictures are magnified."""
    factor = max(1, READABLE_SIDE // max(size))
    height, width = factor * size[0], factor * size[1]
    regions = [_magnified(region, factor) for region in regions] if factor > 1 else regions
    picture = np.array(_resized(image.permute(1, 2, 0).cpu().numpy(), (height, width)))
    for region in regions:
        _paint(picture, region)
    canvas = Image.fromarray(picture)
    for region in regions:
        _frame(canvas, region)
    for region in regions:
        _write(canvas, region)
    return np.asarray(canvas)


def _magnified(region: _Region, factor: int) -> _Region:
    rows, columns = (slice(factor * side.start, factor * side.stop) for side in region.box)
    return replace(region, box=(rows, columns), mask=region.mask.repeat(factor, 0).repeat(factor, 1))


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == size:
        return picture
    height, width = size
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def _paint(picture: np.ndarray, region: _Region) -> None:
    """Stripes for a hatched region, else a transparent surface; an opaque outline for both."""
    surface, (rows, columns) = region.mask, region.box
    if region.is_hatched:
        row, column = np.ogrid[rows, columns]
        surface = surface & ((row + column) % 8 < 3)
    window = picture[region.box]
    blended = np.rint((1 - OPACITY) * np.arange(256)[:, None] + OPACITY * np.array(region.color)).astype(np.uint8)
    for channel in range(3):  # several times as fast as all three at once
        plane = window[..., channel]
        plane[surface] = blended[plane[surface], channel]
    window[_outline(region, picture.shape)] = region.color


def _outline(region: _Region, size: tuple[int, ...]) -> np.ndarray:
    """(h, w) bool: pixels of the mask with a neighbour outside it; the picture's border is no outside."""
    (rows, columns), padded = region.box, np.pad(region.mask, 1)
    padded[0] |= rows.start == 0
    padded[-1] |= rows.stop == size[0]
    padded[:, 0] |= columns.start == 0
    padded[:, -1] |= columns.stop == size[1]
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outline: np.ndarray = region.mask & ~inner
    return outline


def _frame(canvas: Image.Image, region: _Region) -> None:
    """The box, its line inside it."""
    if region.is_boxed:
        rows, columns = region.box
        corners = columns.start, rows.start, columns.stop - 1, rows.stop - 1
        ImageDraw.Draw(canvas).rectangle(corners, outline=region.color, width=max(1, max(canvas.size) // LINE_SHARE))


def _write(canvas: Image.Image, region: _Region) -> None:
    """The text on a dark plate at the mask's pixel nearest to its centre."""
    font_size = max(FONT_SIZE, max(canvas.size) // FONT_SHARE)
    if not region.text or region.mask.sum() < LEAST_AREA_FOR_TEXT * (font_size / FONT_SIZE) ** 2:
        return
    draw, font = ImageDraw.Draw(canvas), _font(font_size)
    left, top, right, bottom = draw.textbbox((0, 0), region.text, font=font)
    row, column = _middle(region)
    x = np.clip(column - (right - left) / 2, 1, max(canvas.width - right - 2, 1))
    y = np.clip(row - (bottom - top) / 2, 1, max(canvas.height - bottom - 2, 1))
    draw.rectangle((x + left - 1, y + top - 1, x + right + 1, y + bottom + 1), fill=(0, 0, 0))
    draw.text((x, y), region.text, fill=(255, 255, 255), font=font)


def _middle(region: _Region) -> tuple[int, int]:
    """Row and column of the pixel of a mask that is nearest to its centre; of large masks every n-th is looked at."""
    step = math.isqrt(region.mask.size // _SEARCHED) + 1
    rows, columns = region.mask[::step, ::step].nonzero()
    if len(rows) == 0:
        step, (rows, columns) = 1, region.mask.nonzero()
    nearest = ((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin()
    return region.box[0].start + step * int(rows[nearest]), region.box[1].start + step * int(columns[nearest])


@functools.lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
