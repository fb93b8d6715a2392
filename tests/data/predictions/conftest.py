"""Made-up scenes with truths, and answers that are these truths with errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from m2f.data.outlines import encode_masks
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata, contiguous_metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.structures.sample import ModelInput, ModelOutput

CATEGORIES = [
    Category(3, "disc", True, (255, 0, 0)),
    Category(7, "box", True, (0, 0, 255)),
    Category(90, "sky", False, (0, 255, 255)),
    Category(200, "grass", False, (0, 255, 0)),
]


class Scenes:
    """Makes samples, and answers for them."""

    metadata: Metadata = contiguous_metadata("toy", CATEGORIES)

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def sample(self, image_id: int | str, file_name: str, size: tuple[int, int] = (40, 50)) -> ModelInput:
        """Sky, grass, up to eight things and some void."""
        ids = np.full(size, 1)
        ids[size[0] // 2 :] = 2
        labels = {1: 2, 2: 3}
        for number in range(3, 3 + int(self.rng.integers(0, 9))):
            y, x = self.rng.integers(0, size[0] - 4), self.rng.integers(0, size[1] - 4)
            ids[y : y + self.rng.integers(4, 20), x : x + self.rng.integers(4, 20)] = number
            labels[number] = int(self.rng.integers(0, 2))
        ids[:2] = 0
        seen = [n for n in labels if (ids == n).any()]
        table = np.full(20, 255)
        table[seen] = [labels[n] for n in seen]
        things = [n for n in seen if labels[n] < 2]
        masks = [ids == n for n in things]
        return {
            "image": torch.zeros(3, *size, dtype=torch.uint8),
            "height": size[0],
            "width": size[1],
            "file_name": file_name,
            "image_id": image_id,
            "semantic": torch.from_numpy(table[ids]),
            "panoptic": PanopticMap(torch.from_numpy(ids), [Segment(n, labels[n], labels[n] < 2) for n in seen]),
            "instance": Instances(
                torch.tensor([labels[n] for n in things], dtype=torch.int64),
                encode_masks(np.stack(masks)) if masks else [],
                is_crowd=torch.zeros(len(things), dtype=torch.bool),
                areas=torch.tensor([float(m.sum()) for m in masks], dtype=torch.float64),
            ),
        }

    def answer(self, sample: ModelInput, metadata: Metadata | None = None) -> ModelOutput:
        """The truths moved a little, some with another class; whichever the sample has."""
        metadata = metadata or self.metadata
        answers: dict[str, Any] = {}
        if "semantic" in sample:
            answers["semantic"] = self._semantic(sample["semantic"], metadata)
        if "panoptic" in sample:
            answers["panoptic"] = self._panoptic(sample["panoptic"], metadata)
        if "instance" in sample:
            answers["instance"] = self._instance(sample, metadata)
        return answers  # type: ignore[return-value]

    def _label(self, label: int, metadata: Metadata) -> int:
        return label if self.rng.random() < 0.85 else int(self.rng.integers(0, metadata.num_classes))

    def _semantic(self, truth: torch.Tensor, metadata: Metadata) -> torch.Tensor:
        moved = truth.roll((2, -3), (0, 1))
        moved = torch.where(moved == metadata.ignore_label, 0, moved)
        if metadata.num_classes > 10:
            return moved  # labels
        scores = torch.rand(metadata.num_classes, *truth.shape)
        return scores + 0.6 * (moved == torch.arange(metadata.num_classes)[:, None, None])

    def _panoptic(self, truth: PanopticMap, metadata: Metadata) -> PanopticMap:
        ids = truth.ids.roll((1, 2), (0, 1))
        segments = []
        for segment in truth.segments:
            label = self._label(segment.label, metadata)
            score = float(np.float32(self.rng.random()))
            segments.append(Segment(segment.id, label, label in metadata.thing_labels, score=score))
        return PanopticMap(ids, segments)

    def _instance(self, sample: ModelInput, metadata: Metadata) -> Instances:
        truth = sample["instance"]
        things = [n for n in truth.labels.tolist() if n in metadata.thing_labels]
        rows = [row for row in range(len(truth)) for _ in "ab"]
        masks = torch.zeros(len(rows), sample["height"], sample["width"], dtype=torch.bool)
        for place, row in enumerate(rows):
            masks[place] = _decoded(truth.masks[row]).roll(tuple(self.rng.integers(-2, 3, 2).tolist()), (0, 1))
        labels = [n if self.rng.random() < 0.9 else things[0] for n in truth.labels[rows].tolist()] if rows else []
        scores = torch.from_numpy(self.rng.choice(np.linspace(0, 1, 17), len(rows))).float()  # some are equal
        return Instances(torch.tensor(labels, dtype=torch.int64), masks, scores)

    def many(self, count: int) -> tuple[list[ModelInput], list[ModelOutput]]:
        """Samples with int ids in no order, and answers."""
        samples = [self.sample(n * 37 % 101, f"data/pictures/{n:04d}.jpg") for n in range(count)]
        return samples, [self.answer(sample) for sample in samples]

    @staticmethod
    def smaller(output: ModelOutput) -> ModelOutput:
        """The same answer as run lengths and labels, without an answer here and there."""
        found, scores = output["instance"], output["semantic"]
        codes = [encode_masks(mask.numpy()[None])[0] for mask in found.masks]
        labels = torch.where(torch.rand(scores.shape[1:]) < 0.1, 255, scores.max(0).indices)
        return {**output, "instance": replace(found, masks=codes), "semantic": labels}


def _decoded(code: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(coco_mask.decode(code)).bool()


@pytest.fixture
def scenes() -> Scenes:
    return Scenes()
