"""Names, colours and things of categories: TAO's label map and packaged tables, checked against the annotation file.

A label map is a JSON list of {"id", "name", "color": [R, G, B], "isthing"}; the last two may be absent. The same form
serves m2f's own tables (`categories/*.json`) and the `categories` of a COCO file.
"""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from m2f.data.catalog import DatasetEntry
from m2f.data.datasets.json_file import parse_json, read_json, whole_number
from m2f.structures.metadata import Category, Metadata, contiguous_metadata, raw_id_metadata

logger = logging.getLogger(__name__)
Color = tuple[int, int, int]
_GOLDEN_RATIO = 0.6180339887498949
_SHOWN_FAULTS = 5


class CategoryRow(NamedTuple):
    """One category as a file states it; None where the file is silent."""

    id: int
    name: str
    is_thing: bool | None = None
    color: Color | None = None


def palette_color(index: int) -> Color:
    """A colour of its own for each index: hues a golden ratio apart, in four bands of saturation and value.

    Returns:
        RGB in 0 .. 255; neighbours in `index` look different.
    """
    hue = (index * _GOLDEN_RATIO) % 1.0
    saturation = (0.85, 0.6, 0.95, 0.7)[index % 4]
    value = (0.95, 0.75, 0.6, 1.0)[index // 4 % 4]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def parse_rows(rows: Any, source: str, least_id: int = 1) -> list[CategoryRow]:
    """Check a JSON list of categories.

    Args:
        rows: the parsed list.
        source: file and list, for messages.
        least_id: lowest id that may be used.

    Raises:
        ValueError: not a list of named categories, or an id that is too low, not a number or used twice.
    """
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{source}: expected a list of {{"id", "name", ...}}, got {_short(rows)}')
    parsed = [_parse_row(row, f"{source}[{index}]", least_id) for index, row in enumerate(rows)]
    seen: dict[int, str] = {}
    for row in parsed:
        if row.id in seen:
            raise ValueError(f"{source}: id {row.id} belongs to both {seen[row.id]!r} and {row.name!r}")
        seen[row.id] = row.name
    return parsed


def _parse_row(row: Any, where: str, least_id: int) -> CategoryRow:
    if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("name"), str):
        raise ValueError(f'{where}: a category needs a numeric "id" and a "name", got {_short(row)}')
    if not whole_number(row["id"], least_id):
        why = "0 means unlabelled" if least_id else "it is a value of a mask"
        raise ValueError(
            f"{where}: category {row['name']!r} has id {row['id']!r}; ids must be whole numbers greater than "
            f"{least_id - 1} ({why})"
        )
    is_thing, color = row.get("isthing"), row.get("color")
    if is_thing not in (None, 0, 1):
        raise ValueError(f"{where}: isthing is 0 or 1, got {is_thing!r}")
    return CategoryRow(row["id"], row["name"], None if is_thing is None else bool(is_thing), _parse_color(color, where))


def _parse_color(color: Any, where: str) -> Color | None:
    if color is None:
        return None
    if not (isinstance(color, list) and len(color) == 3 and all(whole_number(c) and c <= 255 for c in color)):
        raise ValueError(f"{where}: color is [red, green, blue] in 0 .. 255, got {_short(color)}")
    return color[0], color[1], color[2]


def packaged_table(name: str, least_id: int = 1) -> list[CategoryRow]:
    """The category table that m2f brings as `categories/<name>.json`."""
    file = resources.files("m2f.data.datasets") / "categories" / f"{name}.json"
    return parse_rows(parse_json(file.read_bytes(), str(file)), str(file), least_id)


def entry_metadata(entry: DatasetEntry, rows: Sequence[CategoryRow] | None, first_id: int = 1) -> Metadata:
    """What the labels of a dataset mean.

    Args:
        entry: names the label map or packaged table, and says how ids become labels.
        rows: the categories of the annotation file; None for formats without, such as pairs of image and mask.
        first_id: the lowest id; label 0 when ids are raw.

    Raises:
        ValueError: label map and annotation file disagree (every disagreement is listed), an id does not fit into
            `entry.num_classes`, or `entry.ignore_label` is the label of a category.
    """
    named, source = _named_rows(entry, first_id)
    if rows is None:
        merged = named or _generic_rows(entry, first_id)
    elif named is None:
        merged = list(rows)
    else:
        _check_agreement(entry, rows, named, source)
        merged = _merge(rows, named, entry.contiguous_id)
    categories = [
        Category(row.id, row.name, row.is_thing is not False, row.color or palette_color(index))
        for index, row in enumerate(merged)
    ]
    if entry.contiguous_id:
        metadata = contiguous_metadata(entry.name, categories, entry.ignore_label)
    else:
        num_classes = entry.num_classes or max(row.id for row in merged) - first_id + 1
        metadata = raw_id_metadata(entry.name, categories, num_classes, first_id, entry.ignore_label)
    if 0 <= entry.ignore_label < metadata.num_classes:
        raise ValueError(
            f"dataset {entry.name!r}: {entry.key('ignore_label')} = {entry.ignore_label} is also the label of a "
            f"category; with {metadata.num_classes} labels it must be at least that"
        )
    return metadata


def _named_rows(entry: DatasetEntry, first_id: int) -> tuple[list[CategoryRow] | None, str]:
    """The rows of the entry's label map or table, and where they stand; None when it has neither."""
    if entry.label_map:
        path = entry.existing("label_map")
        return parse_rows(read_json(path), f"{entry.key('label_map')} = {path}", first_id), path
    if entry.categories:
        return packaged_table(entry.categories, first_id), f"m2f's table {entry.categories!r}"
    return None, ""


def _generic_rows(entry: DatasetEntry, first_id: int) -> list[CategoryRow]:
    if entry.num_classes < 1:
        raise ValueError(
            f"dataset {entry.name!r}: masks alone do not name classes; set {entry.key('label_map')}, or num_classes"
        )
    return [CategoryRow(index, f"class {index}") for index in range(first_id, first_id + entry.num_classes)]


def _merge(rows: Sequence[CategoryRow], named: Sequence[CategoryRow], contiguous: bool) -> list[CategoryRow]:
    """The label map's word where it has one, else the file's; raw ids keep what only the label map names."""
    by_id = {row.id: row for row in named}
    merged = []
    for row in rows:
        other = by_id.pop(row.id)
        thing = row.is_thing if other.is_thing is None else other.is_thing
        merged.append(CategoryRow(row.id, other.name, thing, other.color or row.color))
    return merged if contiguous else merged + list(by_id.values())


def _check_agreement(
    entry: DatasetEntry, rows: Sequence[CategoryRow], named: Sequence[CategoryRow], source: str
) -> None:
    by_id = {row.id: row for row in named}
    faults = [fault for row in rows if (fault := _disagreement(row, by_id.get(row.id)))]
    order, expected = [row.id for row in named], [row.id for row in rows]
    if not faults and entry.contiguous_id and order != expected:
        at = next(
            (i for i, (a, b) in enumerate(zip(order, expected, strict=False)) if a != b), min(len(order), len(rows))
        )
        faults = [
            f"with contiguous_id the position is the label, and the lists differ from position {at} on: "
            f"ids {_short(order[at : at + 3])} here, {_short(expected[at : at + 3])} in the annotation file "
            f"({len(order)} and {len(expected)} categories)"
        ]
    if faults:
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise ValueError(
            f"label map {source} disagrees with the categories of {entry.annotations}: "
            f"{'; '.join(faults[:_SHOWN_FAULTS])}{more}"
        )
    renamed = [f"{row.name!r} to {by_id[row.id].name!r}" for row in rows if by_id[row.id].name != row.name]
    if renamed:  # TAO never compares names, so a map may translate them
        logger.warning("label map %s renames %d categories: %s", source, len(renamed), _short(", ".join(renamed)))


def _disagreement(row: CategoryRow, named: CategoryRow | None) -> str:
    if named is None:
        return f"id {row.id} ({row.name!r}) is missing"
    if None not in (named.is_thing, row.is_thing) and named.is_thing != row.is_thing:
        stated = f"isthing {named.is_thing:d} here and {row.is_thing:d} in the annotation file"
        return f"id {row.id} ({row.name!r}) has {stated}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
