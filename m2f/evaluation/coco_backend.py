"""COCO's precision and recall tables, by whichever implementation is there; all of them give the same numbers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

BACKENDS = ("hotcoco", "faster_coco_eval", "pycocotools")  # fastest first


class CocoTables(NamedTuple):
    """T IoU thresholds, R recall levels, K categories, A area ranges (all, small, medium, large), M max_dets.

    -1 stands where there is no truth.
    """

    precision: np.ndarray  # (T, R, K, A, M)
    recall: np.ndarray  # (T, K, A, M)
    iou_thresholds: np.ndarray  # (T,)


def choose_backend(name: str) -> str:
    """The back-end to use for `evaluate.coco_backend`.

    Raises:
        ValueError: there is none of that name, or it is not installed.
    """
    if name == "auto":
        return next(backend for backend in BACKENDS if importlib.util.find_spec(backend))
    if name not in BACKENDS:
        raise ValueError(f"evaluate.coco_backend is {name!r}; it can be auto, {', '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"evaluate.coco_backend is {name!r}, which is not installed; install it or set it to auto")
    return name


def coco_tables(
    backend: str, truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str, max_dets: Sequence[int]
) -> CocoTables:
    """Match results with truths and count.

    Args:
        backend: one of `BACKENDS`.
        truth: a COCO instance file's content (images, annotations, categories); ids count from 1.
        results: COCO result rows of that `iou_type`; may be empty; written into.
        iou_type: segm | bbox.
        max_dets: results per image and category that count, ascending.
    """
    dataset_type, evaluation_type = _types(backend if results else "pycocotools")  # the others want a result
    with contextlib.redirect_stdout(io.StringIO()):  # they print
        annotated = _indexed(dataset_type, truth)
        found = annotated.loadRes(results) if results else _indexed(dataset_type, {**truth, "annotations": []})
        evaluation = evaluation_type(annotated, found, iou_type)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    tables = evaluation.eval
    return CocoTables(
        np.asarray(tables["precision"]), np.asarray(tables["recall"]), np.asarray(evaluation.params.iouThrs)
    )


def _indexed(dataset_type: Any, content: dict[str, Any]) -> Any:
    dataset = dataset_type()
    rows = [dict(row) for row in content["annotations"]]  # the evaluation writes into them, though not into their masks
    dataset.dataset = {**content, "annotations": rows}
    dataset.createIndex()
    return dataset


def _types(backend: str) -> tuple[Any, Any]:
    """The data set class and the evaluation class."""
    if backend == "hotcoco":
        import hotcoco  # noqa: PLC0415 - optional

        return hotcoco.COCO, hotcoco.COCOeval
    if backend == "faster_coco_eval":
        import faster_coco_eval  # noqa: PLC0415 - optional

        return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    return pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval
