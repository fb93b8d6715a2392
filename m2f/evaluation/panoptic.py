"""Panoptic quality from memory: no PNG is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2f import distributed
from m2f.config import CfgNode
from m2f.evaluation.build import EVALUATOR_REGISTRY
from m2f.evaluation.evaluator import Evaluator, truth_of
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap
from m2f.structures.sample import ModelInput, ModelOutput


class _Counts(NamedTuple):
    """Per class (K,): summed IoU of the matches, true positives, false positives, false negatives."""

    iou: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray


@EVALUATOR_REGISTRY.register("panoptic")
class PanopticEvaluator(Evaluator):
    """PQ, SQ and RQ of all classes, of things, of stuff and of each class.

    A class counts in a mean when it has a match or an error. Numbers are panopticapi's, its way with crowds included
    (of several crowd regions of one class in an image only the last excuses false positives).

    Args:
        metadata: classes; gaps never enter a mean.

    Source: Kirillov et al., Panoptic Segmentation, arXiv:1801.00868.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.reset()

    @classmethod
    def from_config(cls, _cfg: CfgNode, metadata: Metadata) -> dict[str, Any]:
        """It reads no key."""
        return {"metadata": metadata}

    def reset(self) -> None:
        """Forget everything."""
        classes = self._metadata.num_classes
        self._counts = _Counts(np.zeros(classes), *(np.zeros(classes, dtype=np.int64) for _ in range(3)))

    def process(self, inputs: list[ModelInput], outputs: list[ModelOutput]) -> None:
        """Match the segments of output["panoptic"] with those of input["panoptic"].

        Raises:
            ValueError: there is no truth, or a map holds an id without a segment, or a prediction a segment without
                a pixel.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            truth: PanopticMap = truth_of(sample, "panoptic")
            try:
                _count_image(self._counts, truth, output["panoptic"])
            except ValueError as error:
                raise ValueError(f"{sample.get('file_name', 'an image')}: {error}") from error

    def evaluate(self) -> dict[str, float] | None:
        """Percentages "panoptic/PQ", "PQ_things", "PQ_stuff", "PQ-<name>", and of SQ and RQ; None except on rank 0."""
        shards = distributed.gather(tuple(self._counts))
        return (
            self._metrics(_Counts(*(np.sum(column, axis=0) for column in zip(*shards, strict=True))))
            if shards
            else None
        )

    def _metrics(self, counts: _Counts) -> dict[str, float]:
        seen = counts.tp + counts.fp + counts.fn > 0
        weight = np.maximum(counts.tp + 0.5 * counts.fp + 0.5 * counts.fn, 0.5)  # 0.5: the least of a seen class
        quality = {
            "PQ": counts.iou / weight,
            "SQ": counts.iou / np.maximum(counts.tp, 1),
            "RQ": counts.tp / weight,
        }
        classes = {label: c for label, c in enumerate(self._metadata.categories) if not c.is_gap}
        groups = {
            "": list(classes),
            "_things": [label for label, c in classes.items() if c.is_thing],
            "_stuff": [label for label, c in classes.items() if not c.is_thing],
        }
        metrics = {
            f"{name}{suffix}": _mean(values[label] for label in labels if seen[label])
            for suffix, labels in groups.items()
            for name, values in quality.items()
        }
        for name, values in quality.items():
            metrics |= {f"{name}-{c.name}": _mean([values[n]] if seen[n] else []) for n, c in classes.items()}
        return {f"panoptic/{name}": 100 * value for name, value in metrics.items()}


def _mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")


def _count_image(counts: _Counts, truth: PanopticMap, answer: PanopticMap) -> None:
    """Add one image. Index 0 of the overlap matrix is void on both sides, i + 1 is the i-th segment's row."""
    true_rows, found_rows = len(truth.segments) + 1, len(answer.segments) + 1
    rows = _rows_of_pixels(truth, "the panoptic truth") * found_rows
    rows += _rows_of_pixels(answer, "the panoptic prediction")
    overlap = np.bincount(rows.numpy().ravel(), minlength=true_rows * found_rows).reshape(true_rows, found_rows)
    true_area, found_area = overlap.sum(1)[1:, None], overlap.sum(0)[1:]
    if (found_area == 0).any():
        raise ValueError("the panoptic prediction lists a segment that has no pixel")

    true_label = np.array([s.label for s in truth.segments], dtype=np.int64)
    found_label = np.array([s.label for s in answer.segments], dtype=np.int64)
    is_crowd = np.array([s.is_crowd for s in truth.segments], dtype=bool)
    union = true_area + found_area - overlap[1:, 1:] - overlap[0, 1:]  # void pixels are no error
    iou = overlap[1:, 1:] / np.maximum(union, 1)
    match = (iou > 0.5) & (true_label[:, None] == found_label) & ~is_crowd[:, None]  # at most one per row and column

    hit, hit_by = match.nonzero()
    np.add.at(counts.iou, true_label[hit], iou[hit, hit_by])
    np.add.at(counts.tp, true_label[hit], 1)
    np.add.at(counts.fn, true_label[~match.any(1) & ~is_crowd], 1)
    excused = overlap[0, 1:].copy()
    crowd_row = {segment.label: row for row, segment in enumerate(truth.segments, start=1) if segment.is_crowd}
    for column, label in enumerate(found_label.tolist()):
        if label in crowd_row:
            excused[column] += overlap[crowd_row[label], column + 1]
    np.add.at(counts.fp, found_label[~match.any(0) & (2 * excused <= found_area)], 1)


def _rows_of_pixels(panoptic: PanopticMap, whose: str) -> Tensor:
    """(H, W) int64: 0 for void, i + 1 for the pixels of the i-th segment."""
    ids = panoptic.ids.to(torch.int64)
    known = torch.tensor([0, *(segment.id for segment in panoptic.segments)], device=ids.device)
    ordered, rows = known.sort()
    place = torch.searchsorted(ordered, ids).clamp_(max=len(ordered) - 1)
    unknown = ordered[place] != ids
    if unknown.any():
        raise ValueError(f"{whose} has pixels of id {int(ids[unknown][0])}, which is none of its segments")
    return rows[place].cpu()
