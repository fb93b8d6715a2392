"""Scenes, predictors that know the truth of a tile, and what can at best be made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m2f.merging.grid import Tile
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.structures.sample import ModelInput, ModelOutput

METADATA = Metadata("scene", tuple(Category(i + 1, f"class {i}", is_thing=i < 2) for i in range(4)))
Spoil = Callable[[PanopticMap, Tensor], PanopticMap]


def cells(seed: int, size: tuple[int, int] = (230, 310), count: int = 60) -> PanopticMap:
    """Touching convex things of two classes, two classes of stuff that come several times, and void."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform((0, 0), size, (count, 2))
    y, x = np.mgrid[: size[0], : size[1]]
    nearest = np.argmin([(y - top) ** 2 + (x - left) ** 2 for top, left in centres], axis=0)
    labels = rng.choice(5, count, p=[0.4, 0.3, 0.1, 0.1, 0.1]).tolist()  # 4 is void
    id_of = [{2: count + 2, 3: count + 3, 4: 0}.get(label, number) for number, label in enumerate(labels, 1)]
    rows = [Segment(n, label, True, score=rng.uniform(0.5, 1)) for n, label in enumerate(labels, 1) if label < 2]
    rows += [Segment(count + label, label, False, score=0.75) for label in (2, 3)]
    return seen(torch.tensor(id_of)[torch.from_numpy(nearest)], rows)


def seen(ids: Tensor, segments: Sequence[Segment]) -> PanopticMap:
    """The map, with the rows of those segments that have a pixel."""
    present = set(ids.unique().tolist())
    return PanopticMap(ids, [segment for segment in segments if segment.id in present])


def coded(height: int, width: int) -> ModelInput:
    """An image in which every pixel says where it lies."""
    places = torch.arange(height * width).view(height, width)
    image = torch.stack([places & 255, places >> 8 & 255, places >> 16]).to(torch.uint8)
    return {"image": image, "height": height, "width": width}


class Oracle:
    """Answers the truth of whatever part of a `coded` image it is shown.

    Args:
        truth: of the whole.
        metadata: K classes.
        spoil: what it does to the truth of a part, given the (h, w) places of its pixels in the whole.
    """

    def __init__(self, truth: PanopticMap, metadata: Metadata = METADATA, spoil: Spoil | None = None) -> None:
        self.truth, self.metadata, self.spoil = truth, metadata, spoil
        self.shown: list[tuple[int, ...]] = []  # images at a time, height, width

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        self.shown.append((len(inputs), *inputs[0]["image"].shape[1:]))
        return [self._answer(sample["image"].long()) for sample in inputs]

    def _answer(self, image: Tensor) -> ModelOutput:
        places = image[0] + 256 * image[1] + 65536 * image[2]
        panoptic = seen(self.truth.ids.flatten()[places], self.truth.segments)
        return answers(self.spoil(panoptic, places) if self.spoil else panoptic, self.metadata)


def answers(panoptic: PanopticMap, metadata: Metadata) -> ModelOutput:
    """The three answers that a map stands for."""
    semantic = torch.zeros(metadata.num_classes, *panoptic.ids.shape)
    for segment in panoptic.segments:
        semantic[segment.label][panoptic.ids == segment.id] = 1
    things = [segment for segment in panoptic.segments if segment.is_thing]
    masks = panoptic.ids == torch.tensor([thing.id for thing in things]).view(-1, 1, 1)
    labels = torch.tensor([thing.label for thing in things], dtype=torch.int64)
    scores = torch.tensor([thing.score for thing in things])
    return {"semantic": semantic, "panoptic": panoptic, "instance": Instances(labels, masks, scores)}


class Unsteady:
    """Spoils a tile's things: each grows or shrinks by a pixel, loses pixels near a cut, or, cut to a piece, is missed.

    Args:
        truth: of the whole.
        seed: of the chance.
    """

    def __init__(self, truth: PanopticMap, seed: int) -> None:
        self._size, self._rng = truth.ids.shape, np.random.default_rng(seed)
        self._areas = truth.ids.flatten().bincount()

    def __call__(self, panoptic: PanopticMap, places: Tensor) -> PanopticMap:
        depth = self._depth(places)
        ids = panoptic.ids.clone()
        for number in self._rng.permutation(len(panoptic.segments)).tolist():
            segment = panoptic.segments[number]
            mask = panoptic.ids == segment.id
            if not segment.is_thing:
                continue
            is_cut = int(mask.sum()) < self._areas[segment.id]
            changed = _grown(mask, int(self._rng.integers(-1, 2)))
            if is_cut:
                changed &= depth >= self._rng.integers(5)
                changed &= int(mask.sum()) > 0.3 * self._areas[segment.id]
            ids[mask] = 0
            ids[changed] = segment.id
        return seen(ids, panoptic.segments)

    def _depth(self, places: Tensor) -> Tensor:
        """(h, w): pixels to the nearest border beyond which the image goes on."""
        top, left = divmod(int(places[0, 0]), self._size[1])
        bottom, right = divmod(int(places[-1, -1]), self._size[1])
        rows, columns = torch.arange(places.shape[0])[:, None], torch.arange(places.shape[1])
        depth = torch.full(places.shape, 10**6)
        for is_inside, distance in (
            (top > 0, rows),
            (left > 0, columns),
            (bottom < self._size[0] - 1, rows.flip(0)),
            (right < self._size[1] - 1, columns.flip(0)),
        ):
            depth = torch.minimum(depth, distance) if is_inside else depth
        return depth


def _grown(mask: Tensor, by: int) -> Tensor:
    """(h, w) bool, grown by a pixel, or shrunk if `by` is negative; borders of the tile stay."""
    if by == 0:
        return mask.clone()
    solid = (mask if by > 0 else ~mask)[None].float()
    wider = F.max_pool2d(solid, 3, 1, 1)[0] > 0
    return wider if by > 0 else ~wider


def pieces(mask: Tensor, tiles: Sequence[Tile]) -> int:
    """Of how many parts nobody can tell, from tiles alone, that they are one object: none overlaps with another."""
    view = [mask[t.box.top : t.box.bottom, t.box.left : t.box.right] for t in tiles]
    open_, count = {number for number, part in enumerate(view) if part.any()}, 0
    while open_:
        count, reached = count + 1, [open_.pop()]
        while reached:
            box = tiles[reached.pop()].box
            near = {n for n in open_ if _any(mask, box.common(tiles[n].box))}
            open_ -= near
            reached += near
    return count


def _any(mask: Tensor, box: tuple[int, int, int, int]) -> bool:
    top, left, bottom, right = box
    return top < bottom and left < right and bool(mask[top:bottom, left:right].any())


def overlaps(truth: PanopticMap, found: PanopticMap) -> tuple[Tensor, Tensor]:
    """(T, F) pixels in common and IoU of the segments of both; IoU is 0 between labels."""
    rows, columns = ([segment.id for segment in panoptic.segments] for panoptic in (truth, found))
    ones = [(truth.ids == id).flatten().float() for id in rows]
    others = [(found.ids == id).flatten().float() for id in columns]
    common = torch.stack(ones) @ torch.stack(others).T
    union = torch.stack(ones).sum(1, keepdim=True) + torch.stack(others).sum(1) - common
    labels = ([segment.label for segment in panoptic.segments] for panoptic in (truth, found))
    same = torch.tensor(next(labels)).unsqueeze(1) == torch.tensor(next(labels))
    return common, common / union * same
