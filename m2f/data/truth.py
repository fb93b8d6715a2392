"""Annotations of one image: as targets of a crop, and as the un-augmented truth of a task.

Three kinds stand behind one interface. Id maps are cropped as maps and polygons as polygons; masks come into being at
the size of the crop, for what is left in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2f.data.images import Picture, orient, read_index_mask, read_segment_ids
from m2f.data.outlines import areas_of, draw, encode, encode_masks, read_outline
from m2f.data.transforms import Geometry
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.structures.sample import Record, Task


class Targets(NamedTuple):
    """What a crop teaches.

    Attributes:
        instances: labels and (N, H, W) bool masks; each has at least one pixel, none is a crowd.
        valid: (H, W) bool, False where the truth is unknown; None: it is known everywhere.
    """

    instances: Instances
    valid: Tensor | None


class Truth(Protocol):
    """One image's annotation."""

    def label_map(self) -> NDArray[np.int64]:
        """(H, W) labels at the image's size, -1 where the class is unknown."""
        ...

    def targets(self, geometry: Geometry) -> Targets:
        """The targets on what `geometry` shows of the image."""
        ...

    def answer(self, task: Task) -> Tensor | PanopticMap | Instances:
        """The truth of a task at the image's size, as `ModelInput` carries it.

        Raises:
            ValueError: this kind of annotation does not tell.
        """
        ...


def check_ignore_label(metadata: Metadata) -> None:
    """Refuse an ignore label that is also a label. (That it is no mask value of a class, the masks' reader checks.)

    Raises:
        ValueError: it is.
    """
    ignore = metadata.ignore_label
    if 0 <= ignore < metadata.num_classes:
        raise ValueError(
            f"dataset {metadata.name!r}: ignore_label {ignore} is also the label of one of its "
            f"{metadata.num_classes} classes; set dataset.ignore_label to a larger value, such as 65535"
        )


def read_truth(record: Record, metadata: Metadata, picture: Picture) -> Truth | None:
    """Read the annotation of `record`, in the frame of its decoded `picture`; None where it has none.

    Raises:
        FileNotFoundError: the mask file is missing.
        ValueError: it is broken, of another size, or holds ids that are not listed.
    """
    if "sem_seg_file_name" in record:
        return SemanticTruth(record, metadata, picture)
    if "pan_seg_file_name" in record:
        return PanopticTruth(record, metadata, picture)
    return InstanceTruth(record, metadata, picture) if "annotations" in record else None


class SemanticTruth:
    """A mask of class ids; every class in a crop is one target."""

    def __init__(self, record: Record, metadata: Metadata, picture: Picture) -> None:
        path = record["sem_seg_file_name"]
        values = _fitted(read_index_mask(path), picture, path)
        self._index = _label_rows(values, metadata, path)
        self._ignore_label = metadata.ignore_label
        self._labels = np.arange(-1, metadata.num_classes)
        self._file_name = record["file_name"]

    def label_map(self) -> NDArray[np.int64]:
        """(H, W) labels, -1 where void."""
        labels: NDArray[np.int64] = self._labels[self._index]
        return labels

    def targets(self, geometry: Geometry) -> Targets:
        """One target per class; unknown are void pixels."""
        return _index_targets(geometry.apply_ids(self._index), self._labels, self._labels >= 0)

    def answer(self, task: Task) -> Tensor:
        """Tells `semantic` only."""
        if task != "semantic":
            raise ValueError(_cannot_tell(self._file_name, "semantic masks", task, ("semantic",)))
        return _semantic_answer(self.label_map(), self._ignore_label)


class PanopticTruth:
    """A map of segment ids and a row for each segment; every segment in a crop is one target."""

    def __init__(self, record: Record, metadata: Metadata, picture: Picture) -> None:
        path, rows = record["pan_seg_file_name"], record["segments_info"]
        ids = np.array([row["id"] for row in rows], dtype=np.int64)
        self._index = _fitted(_segment_rows(read_segment_ids(path), ids, path), picture, path)
        self._ids = np.concatenate([[0], ids])
        self._labels = np.array([-1, *(_label(metadata, row["category_id"], path) for row in rows)])
        self._crowd = np.array([False, *(bool(row.get("iscrowd", 0)) for row in rows)])
        self._areas = [row.get("area", -1.0) for row in rows]
        self._metadata = metadata

    def label_map(self) -> NDArray[np.int64]:
        """(H, W) labels, -1 where void."""
        labels: NDArray[np.int64] = self._labels[self._index]
        return labels

    def targets(self, geometry: Geometry) -> Targets:
        """One target per segment; unknown are void and crowd pixels."""
        return _index_targets(geometry.apply_ids(self._index), self._labels, (self._labels >= 0) & ~self._crowd)

    def answer(self, task: Task) -> Tensor | PanopticMap | Instances:
        """Tells all three; a crowd's pixels keep their class in `semantic`."""
        if task == "semantic":
            return _semantic_answer(self.label_map(), self._metadata.ignore_label)
        return self._panoptic() if task == "panoptic" else self._instances()

    def _panoptic(self) -> PanopticMap:
        rows = zip(self._ids[1:].tolist(), self._labels[1:].tolist(), self._crowd[1:].tolist(), strict=True)
        things = self._metadata.thing_labels
        segments = [Segment(id, label, label in things, is_crowd) for id, label, is_crowd in rows]
        return PanopticMap(torch.from_numpy(self._ids[self._index]), segments)

    def _instances(self) -> Instances:
        """The things among the segments."""
        pixels = np.bincount(self._index.ravel(), minlength=len(self._labels))
        things = self._metadata.thing_labels
        rows = [row for row in range(1, len(pixels)) if pixels[row] and int(self._labels[row]) in things]
        areas = [float(self._areas[row - 1] if self._areas[row - 1] >= 0 else pixels[row]) for row in rows]
        return Instances(
            labels=torch.from_numpy(self._labels[rows].astype(np.int64)),
            masks=encode_masks(self._index == np.array(rows, dtype=self._index.dtype)[:, None, None]) if rows else [],
            is_crowd=torch.from_numpy(self._crowd[rows]) if rows else torch.zeros(0, dtype=torch.bool),
            areas=torch.tensor(areas, dtype=torch.float64),
            ids=torch.from_numpy(self._ids[rows].astype(np.int64)),
        )


class InstanceTruth:
    """Polygons and run-length codes, which may overlap; every object in a crop that is no crowd is one target."""

    def __init__(self, record: Record, metadata: Metadata, picture: Picture) -> None:
        rows, name = record["annotations"], record["file_name"]
        frame = (record.get("height") or picture.size[0], record.get("width") or picture.size[1])
        labels = [_label(metadata, row["category_id"], name) for row in rows]
        self._labels = np.array(labels, dtype=np.int64)
        self._crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=np.bool_)
        self._outlines = [
            read_outline(row.get("segmentation") or [], frame, picture, f"{name}: annotation {row.get('id', place)}")
            for place, row in enumerate(rows)
        ]
        self._rows, self._size, self._file_name = rows, picture.size, name
        self._ignore_label = metadata.ignore_label

    def label_map(self) -> NDArray[np.int64]:
        """Small objects lie over large ones, and all over crowds."""
        masks = draw(self._outlines, Geometry.identity(self._size))
        labels = np.full(self._size, -1, dtype=np.int64)
        for row in np.lexsort((-masks.sum(axis=(1, 2)), ~self._crowd)):
            labels[masks[row]] = self._labels[row]
        return labels

    def targets(self, geometry: Geometry) -> Targets:
        """Unknown are pixels of a crowd that no target claims."""
        masks = draw(self._outlines, geometry)
        kept = ~self._crowd & masks.any(axis=(1, 2))
        crowd = masks[self._crowd].any(axis=0) & ~masks[kept].any(axis=0)
        instances = Instances(torch.from_numpy(self._labels[kept]), torch.from_numpy(masks[kept]))
        return Targets(instances, torch.from_numpy(~crowd) if crowd.any() else None)

    def answer(self, task: Task) -> Tensor | Instances:
        """Tells `instance`, and `semantic` with everything unlabelled void."""
        if task == "panoptic":
            raise ValueError(_cannot_tell(self._file_name, "instances", task, ("instance", "semantic")))
        if task == "semantic":
            return _semantic_answer(self.label_map(), self._ignore_label)
        codes = [encode(outline, self._size) for outline in self._outlines]
        areas = [row.get("area", code_area) for row, code_area in zip(self._rows, areas_of(codes), strict=True)]
        return Instances(
            labels=torch.from_numpy(self._labels),
            masks=codes,
            is_crowd=torch.from_numpy(self._crowd),
            areas=torch.tensor(areas, dtype=torch.float64),
            ids=torch.tensor([row.get("id", place + 1) for place, row in enumerate(self._rows)], dtype=torch.int64),
        )


def _label(metadata: Metadata, category_id: int, path: str) -> int:
    if category_id not in metadata.label_of:
        raise ValueError(f"{path}: category id {category_id} is not among the categories of dataset {metadata.name!r}")
    return metadata.label_of[category_id]


def _cannot_tell(path: str, kind: str, task: Task, known: tuple[str, ...]) -> str:
    return f"{path}: {kind} tell no {task!r} truth; evaluate.tasks could be {list(known)}"


def _fitted(array: NDArray[Any], picture: Picture, path: str) -> NDArray[Any]:
    """An (H, W) map in the frame of the turned image."""
    if array.shape == picture.size:
        return array
    if array.shape == picture.stored_size:
        return np.ascontiguousarray(orient(array, picture.orientation))
    raise ValueError(f"{path}: the mask has {array.shape} pixels (height, width), but its image has {picture.size}")


def _label_rows(values: NDArray[Any], metadata: Metadata, path: str) -> NDArray[Any]:
    """Mask values -> label + 1, and 0 where void: the ignore label, and 0 if no category has id 0."""
    dtype = np.uint8 if metadata.num_classes < 254 else np.uint16
    unknown = np.iinfo(dtype).max
    limit = np.iinfo(values.dtype).max
    table = np.full(limit + 1, unknown, dtype=dtype)
    table[0] = 0
    if 0 <= metadata.ignore_label <= limit:
        table[metadata.ignore_label] = 0
    for category_id, label in metadata.label_of.items():
        if category_id <= limit:
            table[category_id] = label + 1
    rows = table.take(values)
    if (rows == unknown).any():
        strangers = np.unique(values[rows == unknown])[:10].tolist()
        raise ValueError(
            f"{path}: mask values {strangers} are no category of dataset {metadata.name!r} "
            f"({metadata.num_classes} classes), nor dataset.ignore_label = {metadata.ignore_label}"
        )
    return rows


def _segment_rows(ids: NDArray[np.uint32], known: NDArray[np.int64], path: str) -> NDArray[Any]:
    """Segment ids of a PNG -> place in `known` + 1, and 0 where void."""
    flat = ids.ravel()
    # Neighbours mostly agree: look up each run of equal ids once.
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    values = flat[starts].astype(np.int64)
    listed = np.concatenate([[0], known])
    order = np.argsort(listed, kind="stable")
    places = order[np.searchsorted(listed[order], values).clip(0, len(order) - 1)]
    if (listed[places] != values).any():
        strangers = np.unique(values[listed[places] != values])[:10].tolist()
        raise ValueError(f"{path}: pixels have the segment ids {strangers}, which segments_info does not list")
    lengths = np.diff(starts, append=flat.size)
    rows: NDArray[Any] = places.astype(np.min_scalar_type(len(known))).repeat(lengths)
    return rows.reshape(ids.shape)


def _index_targets(index: NDArray[Any], labels: NDArray[np.int64], is_target: NDArray[np.bool_]) -> Targets:
    """Targets of an (H, W) map of rows: row r has label `labels[r]`, and counts if `is_target[r]`."""
    present = np.bincount(index.ravel(), minlength=len(labels)) > 0
    rows = np.flatnonzero(present & is_target)
    masks = index == rows.astype(index.dtype)[:, None, None]
    instances = Instances(torch.from_numpy(labels[rows].astype(np.int64)), torch.from_numpy(masks))
    if not (present & ~is_target).any():
        return Targets(instances, None)
    return Targets(instances, torch.from_numpy(is_target.take(index)))


def _semantic_answer(labels: NDArray[np.int64], ignore_label: int) -> Tensor:
    return torch.from_numpy(np.where(labels < 0, ignore_label, labels))
