"""Which segments of several views of one image are the same object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from m2f.merging.runs import Box, Runs, area, clip, intersection, split
from m2f.structures.instances import Instances
from m2f.structures.panoptic import PanopticMap

_LEAST_IOU = 0.5  # of what two views show of one object. With less, weak models' neighbours are joined as well


class Part(NamedTuple):
    """What one view shows of one object."""

    view: int  # its number
    label: int
    score: float
    runs: Runs  # in the whole image; not empty


class _Agreement(NamedTuple):
    """Two parts that may be one object; the surest and largest come first."""

    strength: float  # pixels on which both agree, times IoU, times both scores
    one: int
    other: int


def instance_parts(instances: Instances, view: int, box: Box, mirrored: bool = False) -> list[Part]:
    """The objects of a view that lies at `box`; those without a pixel are left out.

    Args:
        instances: with scores.
        view: its number.
        box: where in the whole image it lies.
        mirrored: its masks are mirrored left to right.
    """
    assert instances.scores is not None
    rows = zip(_planes(instances.masks), instances.labels.tolist(), instances.scores.tolist(), strict=True)
    shown = ((split(mask[:, ::-1] if mirrored else mask, *box[:2]), label, score) for mask, label, score in rows)
    return [Part(view, label, score, runs[1]) for runs, label, score in shown if runs]


def segment_parts(panoptic: PanopticMap, view: int, box: Box) -> dict[int, Part]:
    """The segments of a view that lies at `box`, things and stuff, by their ids; those without a pixel are left out."""
    runs = split(panoptic.ids.cpu().numpy(), *box[:2])
    return {s.id: Part(view, s.label, s.score, runs[s.id]) for s in panoptic.segments if s.id in runs}


def join(parts: Sequence[Part], views: Sequence[Box]) -> list[list[int]]:
    """Group the parts, by number, into objects.

    Two parts of one label belong together if their IoU within the pixels that both views show is high enough. The
    surest pairs are joined first, whatever the order of the views, and two parts of one view never become one object: a
    view that tells two objects apart is believed.
    """
    groups = _Groups([part.view for part in parts])
    for _, one, other in sorted(_agreements(parts, views), key=lambda pair: -pair.strength):
        groups.join(one, other)
    return groups.members()


def _agreements(parts: Sequence[Part], views: Sequence[Box]) -> Iterator[_Agreement]:
    """Pairs of parts of one label whose IoU, within what both views show, is high enough."""
    of_view: list[list[int]] = [[] for _ in views]
    for number, part in enumerate(parts):
        of_view[part.view].append(number)
    for here, there in combinations(range(len(views)), 2):
        common = views[here].common(views[there])
        if common.is_empty:
            continue
        shown = [
            [(n, runs, area(runs)) for n in of_view[v] if len(runs := clip(parts[n].runs, common))]
            for v in (here, there)
        ]
        for (one, runs, pixels), (other, other_runs, other_pixels) in product(*shown):
            can_agree = min(pixels, other_pixels) >= _LEAST_IOU * max(pixels, other_pixels)
            if parts[one].label == parts[other].label and can_agree:
                agreed = intersection(runs, other_runs)
                iou = agreed / (pixels + other_pixels - agreed)
                if iou >= _LEAST_IOU:
                    yield _Agreement(agreed * iou * parts[one].score * parts[other].score, one, other)


class _Groups:
    """Union-find over things that carry a view each; no group holds two of one view."""

    def __init__(self, views: Sequence[int]) -> None:
        self._parent = list(range(len(views)))
        self._views = [{view} for view in views]

    def _root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = item = self._parent[self._parent[item]]
        return item

    def join(self, one: int, other: int) -> None:
        one, other = sorted((self._root(one), self._root(other)))
        if one != other and self._views[one].isdisjoint(self._views[other]):
            self._parent[other] = one
            self._views[one] |= self._views[other]

    def members(self) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            groups.setdefault(self._root(item), []).append(item)
        return list(groups.values())


def _planes(masks: Tensor | list[dict[str, Any]]) -> Iterator[NDArray[Any]]:
    """(h, w) bool or uint8, one after the other."""
    for mask in masks:
        yield mask.cpu().numpy() if isinstance(mask, Tensor) else coco_mask.decode(mask)
