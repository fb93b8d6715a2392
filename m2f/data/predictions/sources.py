"""Saved answers of one task, looked up by image and read the way a truth is read.

Image ids are compared as text: "139" is 139.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pycocotools.mask as coco_mask
import torch
from torch import Tensor

from m2f.data.datasets.image_folder import images_below
from m2f.data.images import Picture
from m2f.data.predictions.checks import checked_maps, checked_results, indexed_masks
from m2f.data.predictions.rows import RowsByImage
from m2f.data.truth import InstanceTruth, PanopticTruth, SemanticTruth
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap
from m2f.structures.sample import ModelInput, Record, Task

logger = logging.getLogger(__name__)
_SHOWN = 3  # names in a message


class Source(ABC):
    """The saved answers of one task.

    Attributes:
        task: which.
        path: of the file or folder.
        keys: what the images are called there.
    """

    task: ClassVar[Task]

    def __init__(self, path: str, keys: Collection[str], metadata: Metadata) -> None:
        self.path, self.keys, self._metadata = path, keys, metadata

    @abstractmethod
    def answer(self, sample: ModelInput) -> Any:
        """The answer for an image at its (height, width), as `ModelOutput` states its type.

        Raises:
            FileNotFoundError: its PNG is missing.
            ValueError: there is none, or it is damaged, of another size, or outside its folder.
        """

    def key_of(self, sample: ModelInput | Record) -> str | None:
        """What an image is called here; None where it has no answer."""
        key = str(sample["image_id"])
        return key if key in self.keys else None

    def check(self, records: Iterable[Record]) -> None:
        """Compare with the images of a dataset. Answers for others are passed over with a warning.

        Raises:
            ValueError: an image has no answer though the task asks for one, two images share one, or the answers are
                for other images altogether.
        """
        found: set[str] = set()
        missing = []
        for record in records:
            key = self.key_of(record)
            if key is None:
                missing.append(_name(record))
            elif key in found:
                raise ValueError(f"{self.path}: {key!r} is the {self.task} prediction of two images: {_name(record)}")
            else:
                found.add(key)
        dataset, images = repr(self._metadata.name), len(found) + len(missing)
        strange = sorted(set(self.keys) - found)
        if strange and not found:
            raise ValueError(
                f"{self.path} has {self.task} predictions for {_listed(strange)}, none of which is among the {images} "
                f"images of dataset {dataset}"
            )
        if missing and self.task != "instance":  # where nothing was found, COCO's results say nothing
            raise ValueError(
                f"{self.path} has no {self.task} prediction for {len(missing)} of the {images} images of dataset "
                f"{dataset}: {_listed(missing)}"
            )
        if strange:
            logger.warning("%s: passed over, as dataset %s lacks the image: %s", self.path, dataset, _listed(strange))

    def _known_key(self, sample: ModelInput) -> str:
        key = self.key_of(sample)
        if key is None:
            raise ValueError(f"{self.path} has no {self.task} prediction for {_name(sample)}")
        return key


class InstanceSource(Source):
    """A list of COCO results; masks are run lengths of any kind, or polygons."""

    task = "instance"

    def __init__(self, path: str, rows: Iterable[dict[str, Any]], metadata: Metadata) -> None:
        self._rows = RowsByImage(checked_results(rows, path, metadata))
        super().__init__(path, self._rows.keys, metadata)

    def answer(self, sample: ModelInput) -> Instances:
        """The rows of an image in the file's order, with run-length masks; no row is no instance.

        Note: scores stay float64. As float32, scores that differ could become equal and change places.
        """
        key = str(sample["image_id"])
        rows = self._rows.of(key)
        record: Record = {"file_name": f"{self.path}: image_id {key}", "annotations": rows}
        found = InstanceTruth(record, self._metadata, _blank(sample)).answer("instance")
        assert isinstance(found, Instances)
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
        return Instances(found.labels, found.masks, scores, _boxes(found.masks))


class PanopticSource(Source):
    """COCO's panoptic format. What the file says of things, areas and boxes, metadata and pixels know better.

    Args:
        path: of the JSON file.
        rows: its annotations.
        folders: where its PNGs may lie; the first that has one of them is taken.
        metadata: classes.
    """

    task = "panoptic"

    def __init__(self, path: str, rows: Iterable[Any], folders: Sequence[str], metadata: Metadata) -> None:
        self._rows = RowsByImage(checked_maps(rows, path, metadata))
        super().__init__(path, self._rows.keys, metadata)
        self._folder = self._folder_of_pngs(folders)

    def answer(self, sample: ModelInput) -> PanopticMap:
        """The map of an image; segments without a score have 1."""
        row = self._rows.of(self._known_key(sample))[0]
        path, segments = os.path.join(self._folder, row["file_name"]), row["segments_info"]
        record: Record = {"file_name": path, "pan_seg_file_name": path, "segments_info": segments}
        found = PanopticTruth(record, self._metadata, _blank(sample)).answer("panoptic")
        assert isinstance(found, PanopticMap)
        scored = zip(found.segments, segments, strict=True)
        return replace(found, segments=[s._replace(is_crowd=False, score=row.get("score", 1.0)) for s, row in scored])

    def _folder_of_pngs(self, folders: Sequence[str]) -> str:
        names = [self._rows.of(key)[0]["file_name"] for key in sorted(self.keys)[:_SHOWN]]
        for folder in folders:
            if not names or any(os.path.isfile(os.path.join(folder, name)) for name in names):
                return folder
        raise FileNotFoundError(f"{self.path}: its PNGs ({_listed(names)}) are in none of {', '.join(folders)}")


class SemanticSource(Source):
    """A folder of masks of category ids, called as the images are, or as an index says.

    Args:
        folder: of the masks.
        index: JSON file of annotations with image_id and file_name; "" where names have to do.
        metadata: classes and the ignore label, which like a 0 that is no category means no answer.

    Raises:
        ValueError: two masks have one stem, or the index is faulty.
    """

    task = "semantic"

    def __init__(self, folder: str, index: str, metadata: Metadata) -> None:
        self._is_indexed = bool(index)
        self._masks = indexed_masks(index) if index else _masks_by_stem(folder)
        super().__init__(folder, self._masks, metadata)

    def key_of(self, sample: ModelInput | Record) -> str | None:
        """The longest end of the image's path, but for its extension, that is a mask's; else the image's id."""
        if self._is_indexed:
            return super().key_of(sample)
        parts = os.path.splitext(sample["file_name"])[0].replace("\\", "/").split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((end for end in ends if end in self._masks), super().key_of(sample))

    def answer(self, sample: ModelInput) -> Tensor:
        """(height, width) int64 labels."""
        path = os.path.join(self.path, self._masks[self._known_key(sample)])
        record: Record = {"file_name": path, "sem_seg_file_name": path}
        return SemanticTruth(record, self._metadata, _blank(sample)).answer("semantic")


def _masks_by_stem(folder: str) -> dict[str, str]:
    """Relative path without extension -> relative path."""
    masks: dict[str, str] = {}
    for name in images_below(folder):
        other = masks.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise ValueError(f"{folder}: {other} and {name} are masks of one image")
    return masks


def _blank(sample: ModelInput) -> Picture:
    """A picture of the image's size for the readers of truths, who look at nothing else; it takes no memory."""
    size = sample["height"], sample["width"]
    return Picture(np.broadcast_to(np.uint8(0), (*size, 3)), size, 1)


def _boxes(codes: Any) -> Tensor:
    """(N, 4) x0 y0 x1 y1, half-open, of N run-length codes."""
    boxes = torch.from_numpy(coco_mask.toBbox(codes)).float() if codes else torch.zeros(0, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def _name(sample: ModelInput | Record) -> str:
    return sample.get("file_name") or str(sample["image_id"])


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
