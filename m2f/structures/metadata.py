"""What a dataset's labels mean: a frozen value, passed from room to room and saved in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Category:
    """One class: `id` is what the files say, its place in `Metadata.categories` is its label."""

    id: int
    name: str
    is_thing: bool = True
    color: tuple[int, int, int] = (128, 128, 128)  # RGB
    is_gap: bool = False  # a label that no category of the dataset uses (raw ids with holes)


@dataclass(frozen=True)
class Metadata:
    """Attributes:
    name: the dataset's name, for logs and result tables.
    categories: K categories in label order.
    ignore_label: the label of pixels that count neither in loss nor in metric.
    """

    name: str
    categories: tuple[Category, ...]
    ignore_label: int = 255

    @property
    def num_classes(self) -> int:
        """K, gaps included."""
        return len(self.categories)

    @cached_property
    def label_of(self) -> dict[int, int]:
        """category_id -> label, gaps left out."""
        return {category.id: label for label, category in enumerate(self.categories) if not category.is_gap}

    @cached_property
    def thing_labels(self) -> frozenset[int]:
        """The labels of countable objects."""
        return frozenset(label for label, category in enumerate(self.categories) if category.is_thing)

    @cached_property
    def names(self) -> list[str]:
        """Category names in label order."""
        return [category.name for category in self.categories]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for checkpoints."""
        rows = [[c.id, c.name, c.is_thing, list(c.color), c.is_gap] for c in self.categories]
        return {"name": self.name, "categories": rows, "ignore_label": self.ignore_label}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Metadata:
        """The inverse of `to_dict`."""
        rows = data["categories"]
        categories = tuple(Category(i, name, thing, tuple(color), gap) for i, name, thing, color, gap in rows)
        return cls(data["name"], categories, data["ignore_label"])


def contiguous_metadata(name: str, categories: Sequence[Category], ignore_label: int = 255) -> Metadata:
    """Labels by position: label i is the i-th category (TAO's `contiguous_id: True`)."""
    return Metadata(name, tuple(categories), ignore_label)


def raw_id_metadata(
    name: str, categories: Sequence[Category], num_classes: int, first_id: int = 1, ignore_label: int = 255
) -> Metadata:
    """Labels by id: label = id - first_id, holes filled with gap categories (TAO's `contiguous_id: False`).

    Raises:
        ValueError: an id does not fit into `num_classes` labels.
    """
    ids = range(first_id, first_id + num_classes)
    rows = [Category(i, f"(unused id {i})", is_thing=False, is_gap=True) for i in ids]
    for category in categories:
        label = category.id - first_id
        if not 0 <= label < num_classes:
            raise ValueError(
                f"dataset {name!r}: category {category.name!r} has id {category.id}, but "
                f"model.sem_seg_head.num_classes = {num_classes} leaves room for ids {ids.start} to {ids.stop - 1}; "
                "set it to the largest id, or set dataset.contiguous_id: True"
            )
        rows[label] = category
    return Metadata(name, tuple(rows), ignore_label)
