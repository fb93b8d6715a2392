"""The map of the house: what travels on each hop, from annotation file to metric.

They are plain dicts at run time, so a Detectron2-style dataset function still fits. Read it from top to bottom:
`Record` (files) -> `ModelInput` (pixels) -> `ModelOutput` (answers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict

from torch import Tensor

from m2f.structures.instances import Instances
from m2f.structures.panoptic import PanopticMap

Task = Literal["semantic", "panoptic", "instance"]
TASKS: tuple[Task, ...] = ("semantic", "panoptic", "instance")


class Annotation(TypedDict, total=False):
    """One object of a COCO instance file. Written by data/datasets, read by data/truth."""

    id: int
    category_id: int  # the file's id, not the label
    segmentation: Any  # polygons [[x0, y0, x1, y1, ...], ...] in pixels, or an RLE dict {"size", "counts"}
    iscrowd: int  # 1: a region of many objects, never a target
    area: float  # pixels, as the file says


class SegmentInfo(TypedDict, total=False):
    """One segment of a COCO panoptic PNG. Written by data/datasets, read by data/truth."""

    id: int  # R + 256 G + 65536 B of its pixels
    category_id: int
    iscrowd: int
    area: float


class Record(TypedDict, total=False):
    """One image and where its annotation lies; paths, ids and sizes, no pixels.

    Written by data/datasets, read by data/mappers. Exactly one of the three annotation groups is present in an
    annotated record: `sem_seg_file_name`, `pan_seg_file_name` with `segments_info`, or `annotations`.
    """

    file_name: str  # absolute path of the image
    image_id: int | str
    height: int  # pixels, after EXIF orientation; 0 when the format does not say
    width: int
    sem_seg_file_name: str
    pan_seg_file_name: str
    segments_info: list[SegmentInfo]
    annotations: list[Annotation]


class ModelInput(TypedDict, total=False):
    """One image as the model is fed. Written by data/mappers, read by modeling, evaluation and visualization."""

    image: Tensor  # (3, H, W) uint8 RGB, resized, cropped, not normalised
    height: int  # of the original image: the size at which answers are given
    width: int
    file_name: str
    image_id: int | str
    # training, and evaluation with a loss: on the (H, W) of `image`
    instances: Instances  # one row per target: masks and labels; crowd and empty ones are already gone
    valid: Tensor  # (H, W) bool, False where the truth is void, crowd or ignored; absent = all valid
    # evaluation: the un-augmented truth at (height, width), under its task word
    semantic: Tensor  # (height, width) int64 labels, metadata.ignore_label where void
    panoptic: PanopticMap
    instance: Instances  # RLE masks as in the file; with is_crowd, area and ids


class ModelOutput(TypedDict, total=False):
    """One image's answers at (height, width), only the tasks asked for.

    Written by modeling/postprocess (and merging, data/predictions), read by evaluation and visualization.
    """

    # (K, height, width) float32 scores, not probabilities: they need not sum to 1. Or, where those were too large to
    # keep, (height, width) int64 labels, metadata.ignore_label where there is none.
    semantic: Tensor
    panoptic: PanopticMap
    instance: Instances  # masks, labels, scores, boxes


Predict = Callable[[list[ModelInput]], list[ModelOutput]]
"""Whatever answers images: a model in eval mode, an exported graph, saved predictions; one output per input."""
