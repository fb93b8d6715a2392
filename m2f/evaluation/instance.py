"""Instance segmentation: COCO's average precision of masks, and of the boxes around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from m2f import distributed
from m2f.config import CfgNode
from m2f.evaluation.build import EVALUATOR_REGISTRY
from m2f.evaluation.coco_backend import CocoTables, choose_backend, coco_tables
from m2f.evaluation.evaluator import Evaluator, truth_of
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput

Row = dict[str, Any]


class _Image(NamedTuple):
    """One image's COCO rows, without image ids."""

    height: int
    width: int
    truths: list[Row]
    answers: list[Row]


@EVALUATOR_REGISTRY.register("instance")
class InstanceEvaluator(Evaluator):
    """AP, AP50, AP75, APs, APm, APl, AR@n, ARs, ARm, ARl and AP per class, of masks; AP of boxes as "box_AP...".

    Boxes are taken from the masks, on both sides. Only things that are no gap have a category. All figures are
    pycocotools', but AP is read at the last of `max_dets`, whatever that is.

    Args:
        metadata: classes.
        max_dets: results per image and class that count, ascending; AP is that of the last, AR of each.
        backend: auto | hotcoco | faster_coco_eval | pycocotools.

    Raises:
        ValueError: `max_dets` is empty, not ascending or not positive, or there is no such back-end.
    """

    def __init__(self, metadata: Metadata, max_dets: Sequence[int] = (1, 10, 100), backend: str = "auto") -> None:
        if not max_dets or min(max_dets) < 1 or sorted(set(max_dets)) != list(max_dets):
            raise ValueError(f"evaluate.max_dets is {list(max_dets)}; it must be ascending counts from 1")
        self._metadata = metadata
        self._max_dets = list(max_dets)
        self._backend = choose_backend(backend)
        self._labels = [n for n, c in enumerate(metadata.categories) if c.is_thing and not c.is_gap]
        self.reset()

    @classmethod
    def from_config(cls, cfg: CfgNode, metadata: Metadata) -> dict[str, Any]:
        """Reads evaluate.max_dets and evaluate.coco_backend."""
        return {"metadata": metadata, "max_dets": cfg.evaluate.max_dets, "backend": cfg.evaluate.coco_backend}

    def reset(self) -> None:
        """Forget everything."""
        self._images: dict[int | str, _Image] = {}

    def process(self, inputs: list[ModelInput], outputs: list[ModelOutput]) -> None:
        """Keep input["instance"] and output["instance"] as run lengths.

        Raises:
            ValueError: an image comes twice, or without a truth.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id in self._images:
                raise ValueError(f"image_id {image_id!r} comes twice in dataset {self._metadata.name!r}")
            truths, answers = list(self._rows(truth_of(sample, "instance"))), list(self._rows(output["instance"]))
            self._images[image_id] = _Image(sample["height"], sample["width"], truths, answers)

    def evaluate(self) -> dict[str, float] | None:
        """Percentages "instance/AP", ..., "instance/AP-<name>", "instance/box_AP", ...; None except on rank 0."""
        shards = distributed.gather(self._images)
        if not shards:
            return None
        # In the order of the ids, as pycocotools would: it decides between equal scores.
        images = [image for _, image in sorted(_flat(shards), key=lambda item: _order(item[0]))]
        truth, answers = self._coco_dataset(images), _numbered(images, "answers")
        metrics: dict[str, float] = {}
        for iou_type, prefix in (("segm", ""), ("bbox", "box_")):
            own = "segmentation" if iou_type == "segm" else "bbox"  # given both, loadRes takes areas from boxes
            rows = [{k: v for k, v in row.items() if k in ("image_id", "category_id", "score", own)} for row in answers]
            tables = coco_tables(self._backend, truth, rows, iou_type, self._max_dets)
            metrics |= {f"instance/{prefix}{name}": value for name, value in self._metrics(tables).items()}
        return metrics

    def _rows(self, instances: Instances) -> Iterator[Row]:
        """COCO rows of truths or answers; label n has category_id n + 1 (ids of 0 mean "none" to COCO)."""
        chosen = instances[torch.isin(instances.labels.cpu(), torch.tensor(self._labels, dtype=torch.int64))]
        runs = chosen.masks if isinstance(chosen.masks, list) else _encode(chosen.masks)
        boxes = coco_mask.toBbox(runs).tolist() if runs else []
        areas = [int(coco_mask.area(run)) for run in runs]  # given more than 255 at once, it fails
        stated = areas if chosen.areas is None else chosen.areas.tolist()
        crowd = [False] * len(chosen) if chosen.is_crowd is None else chosen.is_crowd.tolist()
        scores = [1.0] * len(chosen) if chosen.scores is None else chosen.scores.tolist()
        for row, label in enumerate(chosen.labels.tolist()):
            yield {
                "category_id": label + 1,
                "segmentation": {"size": list(runs[row]["size"]), "counts": _text(runs[row]["counts"])},
                "bbox": boxes[row],
                "area": stated[row],
                "iscrowd": int(crowd[row]),
                "score": scores[row],
            }

    def _coco_dataset(self, images: list[_Image]) -> dict[str, Any]:
        truths = _numbered(images, "truths")
        return {
            "info": {},
            "images": [{"id": n, "height": i.height, "width": i.width} for n, i in enumerate(images, start=1)],
            "annotations": [{**row, "id": number} for number, row in enumerate(truths, start=1)],
            "categories": [{"id": n + 1, "name": self._metadata.categories[n].name} for n in self._labels],
        }

    def _metrics(self, tables: CocoTables) -> dict[str, float]:
        """Percentages; NaN where there is no truth."""
        precision, recall = tables.precision[..., -1], tables.recall[..., -1]
        at = {f"AP{percent}": int(np.abs(tables.iou_thresholds - percent / 100).argmin()) for percent in (50, 75)}
        metrics = {"AP": _mean(precision[:, :, :, 0])}
        metrics |= {name: _mean(precision[row, :, :, 0]) for name, row in at.items()}
        metrics |= {f"AP{size}": _mean(precision[:, :, :, area]) for area, size in enumerate("sml", start=1)}
        metrics |= {f"AR@{n}": _mean(tables.recall[:, :, 0, column]) for column, n in enumerate(self._max_dets)}
        metrics |= {f"AR{size}": _mean(recall[:, :, area]) for area, size in enumerate("sml", start=1)}
        for column, label in enumerate(self._labels):
            metrics[f"AP-{self._metadata.categories[label].name}"] = _mean(precision[:, :, column, 0])
        return metrics


def _mean(values: np.ndarray) -> float:
    """Percent, over the entries that are not -1; NaN when there is none."""
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else float("nan")


def _encode(masks: Tensor) -> list[Row]:
    """(N, H, W) bool to N run-length dicts."""
    if len(masks) == 0:
        return []
    # COCO runs go down the columns: (N, W, H) in C order is (H, W, N) in Fortran order, without another copy.
    columns = masks.to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()
    return list(coco_mask.encode(columns.T))


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _flat(shards: list[dict[int | str, _Image]]) -> Iterator[tuple[int | str, _Image]]:
    for shard in shards:
        yield from shard.items()


def _order(image_id: int | str) -> tuple[int, int, str]:
    return (1, 0, image_id) if isinstance(image_id, str) else (0, image_id, "")


def _numbered(images: list[_Image], which: str) -> list[Row]:
    """All rows with the number of their image, from 1."""
    return [{**row, "image_id": n} for n, image in enumerate(images, start=1) for row in getattr(image, which)]
