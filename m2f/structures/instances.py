"""Objects of one image as columns of one length."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Instances:
    """N objects; every field that is given has length N.

    Attributes:
        labels: (N,) int64 in 0 .. K-1.
        masks: (N, H, W) bool, or a list of N COCO RLE dicts at the image's own size.
        scores: (N,) float32 in [0, 1]; predictions only.
        boxes: (N, 4) float32, x0 y0 x1 y1 in pixels, half-open (x1 and y1 lie just outside); predictions only.
        is_crowd: (N,) bool; truths only.
        areas: (N,) float64 pixels, as the annotation file states them; truths only.
        ids: (N,) int64 annotation ids; truths only.

    Raises:
        ValueError: two fields differ in length.
    """

    labels: Tensor
    masks: Tensor | list[dict[str, Any]]
    scores: Tensor | None = None
    boxes: Tensor | None = None
    is_crowd: Tensor | None = None
    areas: Tensor | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {f.name: len(value) for f in fields(self) if (value := getattr(self, f.name)) is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"Instances fields differ in length: {sizes}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Instances:
        """Rows chosen by a bool (N,) or an int64 index tensor."""
        rows = index.nonzero().flatten() if index.dtype == torch.bool else index
        chosen: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            chosen[field.name] = [value[i] for i in rows.tolist()] if isinstance(value, list) else _take(value, rows)
        return Instances(**chosen)


def _take(value: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if value is None else value[rows.to(value.device)]
