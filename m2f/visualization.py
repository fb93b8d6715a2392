"""Answers, truths and training targets as pictures. Colours are RGB throughout, arrays are (H, W, 3) uint8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from torch import Tensor

from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap
from m2f.structures.sample import ModelInput, Task

OPACITY = 0.5
HATCH = (90, 90, 90)  # void, ignored and crowd regions are striped with it
FONT_SIZE = 11
LEAST_AREA_FOR_TEXT = 400  # pixels
READABLE_SIDE = 320  # pixels; a picture this many times smaller is drawn that many times larger, to hold its texts
GAP = 4  # white pixels between two pictures side by side


@dataclass(frozen=True)
class _Region:
    """One coloured region: mask (H, W) bool."""

    mask: np.ndarray
    color: tuple[int, int, int]
    text: str
    is_hatched: bool = False


def draw_semantic(image: Tensor, value: Tensor, metadata: Metadata) -> np.ndarray:
    """Classes over an image.

    Args:
        image: (3, h, w) uint8 RGB, of any size; it is resized to the answer's.
        value: (K, H, W) scores, or (H, W) labels with `metadata.ignore_label`, which is striped.
        metadata: names and colours.

    Returns:
        (f H, f W, 3) uint8 RGB; f is 1, or for pictures too small for their texts the factor of `READABLE_SIDE`.
    """
    labels = (value.max(0).indices if value.ndim == 3 else value).cpu().numpy()
    regions = [
        _Region(labels == label, metadata.categories[label].color, metadata.names[label])
        for label in np.unique(labels).tolist()
        if label != metadata.ignore_label
    ]
    return _draw(image, [*regions, _void(labels == metadata.ignore_label)])


def draw_panoptic(image: Tensor, value: PanopticMap, metadata: Metadata) -> np.ndarray:
    """Segments over an image: things in shades of their class's colour, crowds striped, void left as it is.

    Args and returns: as `draw_semantic`, with a `PanopticMap` as value.
    """
    ids = value.ids.cpu().numpy()
    regions = []
    for index, segment in enumerate(value.segments):
        color = _shade(metadata.categories[segment.label].color, index if segment.is_thing else None)
        text = _text(metadata.names[segment.label], segment.score if segment.score < 1 else None)
        regions.append(_Region(ids == segment.id, color, text, segment.is_crowd))
    return _draw(image, regions, ids.shape)


def draw_instances(image: Tensor, value: Instances, metadata: Metadata, min_score: float = 0.5) -> np.ndarray:
    """Objects over an image, the large ones first; crowds striped; predictions below `min_score` left out.

    Args and returns: as `draw_semantic`, with `Instances` as value. Without objects the size is the image's.
    """
    regions = list(_instance_regions(value, metadata, min_score))
    return _draw(image, regions, tuple(image.shape[-2:]))


def draw_task(task: Task, image: Tensor, value: Any, metadata: Metadata) -> np.ndarray:
    """Draw output[task] or input[task], whichever task it is."""
    drawers: dict[Task, Callable[[Tensor, Any, Metadata], np.ndarray]] = {
        "semantic": draw_semantic,
        "panoptic": draw_panoptic,
        "instance": draw_instances,
    }
    return drawers[task](image, value, metadata)


def draw_sample(sample: ModelInput, metadata: Metadata) -> np.ndarray:
    """What the model is trained on: targets over the resized image, pixels that do not count striped."""
    regions = list(_instance_regions(sample["instances"], metadata, 0.0)) if "instances" in sample else []
    if "valid" in sample:
        regions.append(_void(~sample["valid"].cpu().numpy()))
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


def _instance_regions(value: Instances, metadata: Metadata, min_score: float) -> Iterator[_Region]:
    scores = [None] * len(value) if value.scores is None else value.scores.tolist()
    masks = {row: _decoded(value.masks[row]) for row, score in enumerate(scores) if score is None or score >= min_score}
    for row in sorted(masks, key=lambda row: -int(masks[row].sum())):
        label = int(value.labels[row])
        is_crowd = value.is_crowd is not None and bool(value.is_crowd[row])
        color = _shade(metadata.categories[label].color, row if metadata.categories[label].is_thing else None)
        yield _Region(masks[row], color, _text(metadata.names[label], scores[row]), is_crowd)


def _decoded(mask: Tensor | dict[str, Any]) -> np.ndarray:
    """(H, W) bool of a mask tensor or a COCO RLE."""
    return (coco_mask.decode(mask) if isinstance(mask, dict) else mask.cpu().numpy()).astype(bool)


def _void(mask: np.ndarray) -> _Region:
    return _Region(mask, HATCH, "", is_hatched=True)


def _shade(color: tuple[int, int, int], index: int | None) -> tuple[int, int, int]:
    """A colour near `color`, another for each index, the same in every run; None leaves it alone."""
    if index is None:
        return color
    moved = np.array(color) + np.random.default_rng(index).integers(-50, 51, size=3)
    red, green, blue = moved.clip(0, 255).tolist()
    return red, green, blue


def _text(name: str, score: float | None) -> str:
    return name if score is None else f"{name} {score:.0%}"


def _draw(image: Tensor, regions: Sequence[_Region], size: tuple[int, ...] | None = None) -> np.ndarray:
    """Blend the regions over the image, later ones on top, then write all texts; small pictures are magnified."""
    height, width = regions[0].mask.shape if regions else size or image.shape[-2:]
    factor = max(1, READABLE_SIDE // max(height, width))
    height, width = factor * height, factor * width
    regions = [replace(r, mask=r.mask.repeat(factor, 0).repeat(factor, 1)) for r in regions] if factor > 1 else regions
    picture = _resized(image.permute(1, 2, 0).cpu().numpy(), (height, width)).astype(np.float32)
    for region in regions:
        _paint(picture, region)
    canvas = Image.fromarray(picture.round().astype(np.uint8))
    for region in regions:
        _write(canvas, region)
    return np.asarray(canvas)


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == size:
        return picture
    height, width = size
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def _paint(picture: np.ndarray, region: _Region) -> None:
    """Stripes for a hatched region, else a transparent surface; an opaque outline for both."""
    surface = region.mask
    if region.is_hatched:
        row, column = np.ogrid[: surface.shape[0], : surface.shape[1]]
        surface = surface & ((row + column) % 8 < 3)
    color = np.array(region.color, dtype=np.float32)
    picture[surface] = (1 - OPACITY) * picture[surface] + OPACITY * color
    picture[_outline(region.mask)] = color


def _outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of the mask with a neighbour outside it; the picture's border is no outside."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outline: np.ndarray = mask & ~inner
    return outline


def _write(canvas: Image.Image, region: _Region) -> None:
    """The text on a dark plate at the mask's pixel nearest to its centre."""
    if not region.text or region.mask.sum() < LEAST_AREA_FOR_TEXT:
        return
    rows, columns = region.mask.nonzero()
    nearest = ((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin()
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    left, top, right, bottom = draw.textbbox((0, 0), region.text, font=font)
    x = np.clip(columns[nearest] - (right - left) / 2, 1, max(canvas.width - right - 2, 1))
    y = np.clip(rows[nearest] - (bottom - top) / 2, 1, max(canvas.height - bottom - 2, 1))
    draw.rectangle((x + left - 1, y + top - 1, x + right + 1, y + bottom + 1), fill=(0, 0, 0))
    draw.text((x, y), region.text, fill=(255, 255, 255), font=font)
