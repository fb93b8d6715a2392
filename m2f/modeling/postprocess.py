"""Answers for one image: semantic scores, a panoptic map, or instances, at the image's own size.

Masks are resized strip by strip, so that no (Q, H, W) tensor exists, and only those of queries that matter are built.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from m2f.layers.mask_prediction import MaskPrediction
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap, number_segments
from m2f.structures.sample import TASKS, ModelOutput

# Mask logits held at a time, in numbers: 8 MB of float32, which stay in a CPU's last cache.
_STRIP_NUMBERS = 2**21

Answer = TypeVar("Answer")


class Frame(NamedTuple):
    """Where an image lies; each a (height, width) in pixels."""

    padded: tuple[int, int]  # of the batch
    size: tuple[int, int]  # of the image at the top left of it
    output: tuple[int, int]  # at which the answers are wanted


class DecisionRule(NamedTuple):
    """What counts as found."""

    object_mask_threshold: float = 0.4  # panoptic: a query's class probability must exceed this
    overlap_threshold: float = 0.8  # panoptic: least share of a query's mask that it must win
    top_k: int = 100  # instance: (query, class) pairs looked at


def answer(
    prediction: MaskPrediction, image: int, frame: Frame, metadata: Metadata, rule: DecisionRule, tasks: Sequence[str]
) -> ModelOutput:
    """The answers of `tasks` for one image of a batch.

    Raises:
        ValueError: a task is not one of semantic, panoptic, instance.
    """
    output = ModelOutput()
    for task in tasks:
        if task == "semantic":
            output["semantic"] = semantic(prediction, image, frame, metadata)
        elif task == "panoptic":
            output["panoptic"] = panoptic(prediction, image, frame, metadata, rule)
        elif task == "instance":
            output["instance"] = instance(prediction, image, frame, metadata, rule)
        else:
            raise ValueError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
    return output


def _exact(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Without gradients, and in float32 even where autocast is on."""

    @functools.wraps(function)
    def run(prediction: MaskPrediction, *args: Any) -> Answer:
        with torch.no_grad(), torch.autocast(prediction.class_logits.device.type, enabled=False):
            return function(prediction, *args)

    return run


@_exact
def semantic(prediction: MaskPrediction, image: int, frame: Frame, metadata: Metadata) -> Tensor:
    """Class scores per pixel: over all queries, the sum of class probability times mask probability.

    Returns:
        (K, height, width) float32, 0 or more; -1 at labels that no category of the dataset uses.

    Source: Mask2Former's semantic inference; MaskFormer, arXiv:2107.06278, section 3.4.
    """
    by_class = _class_probabilities(prediction, image, metadata)[:, :-1].T  # (K, Q)
    scores = by_class.new_empty(len(by_class), *frame.output)
    for rows, logits in _strips(prediction.mask_logits(image), frame):
        scores[:, rows] = (by_class @ logits.sigmoid_().flatten(1)).view(-1, *logits.shape[1:])
    scores[_gaps(metadata)] = -1.0
    return scores


@_exact
def panoptic(
    prediction: MaskPrediction, image: int, frame: Frame, metadata: Metadata, rule: DecisionRule
) -> PanopticMap:
    """One segment per pixel: every pixel goes to the query with the largest class times mask probability.

    A query takes part if its best class is not no-object and probable enough; it becomes a segment if it wins enough of
    its own mask. Segments of one stuff class are one. Ids count from 1 in query order.

    Source: MaskFormer, arXiv:2107.06278, section 3.4.
    """
    scores, labels = _class_probabilities(prediction, image, metadata).max(-1)
    kept = (labels != metadata.num_classes) & (scores > rule.object_mask_threshold)
    queries, scores, labels = kept.nonzero().flatten(), scores[kept], labels[kept]
    owner = torch.zeros(frame.output, dtype=torch.int64, device=scores.device)
    if len(queries) == 0:
        return PanopticMap(owner, [])
    solid = torch.zeros(frame.output, dtype=torch.bool, device=scores.device)  # the owner's mask holds here as well
    areas = torch.zeros(len(queries), dtype=torch.int64, device=scores.device)
    for rows, logits in _strips(prediction.mask_logits(image, queries), frame):
        masks = logits.sigmoid_()
        inside = masks >= 0.5
        areas += inside.sum((1, 2))
        owner[rows] = masks.mul_(scores[:, None, None]).max(0).indices
        solid[rows] = inside.gather(0, owner[rows].unsqueeze(0)).squeeze(0)
    won, visible = (owner.flatten().bincount(minlength=len(queries)), owner[solid].bincount(minlength=len(queries)))
    accepted = (visible > 0) & (won / areas >= rule.overlap_threshold)  # visible > 0 implies won, areas > 0
    ids, segments = number_segments(accepted.tolist(), labels.tolist(), scores.tolist(), metadata)
    return PanopticMap(torch.tensor(ids, device=owner.device)[owner] * solid, segments)


@_exact
def instance(prediction: MaskPrediction, image: int, frame: Frame, metadata: Metadata, rule: DecisionRule) -> Instances:
    """Objects by score: the most probable (query, class) pairs over all classes, of which things are kept.

    A score is the class probability times the mean mask probability inside the mask; an empty mask scores 0.
    Boxes are those of the masks. Fewer than `rule.top_k` come back where stuff classes are among the best.
    """
    probabilities = _class_probabilities(prediction, image, metadata)[:, :-1]
    scores, best = probabilities.flatten().topk(min(rule.top_k, probabilities.numel()))
    labels = best % metadata.num_classes
    thing = torch.isin(labels, torch.tensor(sorted(metadata.thing_labels), dtype=torch.int64, device=labels.device))
    queries, pairs = torch.unique(best[thing] // metadata.num_classes, return_inverse=True)
    masks, quality = _binary_masks(prediction.mask_logits(image, queries), frame)
    scores, order = (scores[thing] * quality[pairs]).sort(descending=True)
    pairs = pairs[order]
    return Instances(labels[thing][order], masks[pairs], scores, mask_boxes(masks)[pairs])


def _binary_masks(mask_logits: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Masks (N, height, width) bool, and the mean probability inside each, (N,)."""
    masks = torch.zeros(len(mask_logits), *frame.output, dtype=torch.bool, device=mask_logits.device)
    total = mask_logits.new_zeros(len(mask_logits))
    for rows, logits in _strips(mask_logits, frame):
        masks[:, rows] = inside = logits > 0
        total += (logits.sigmoid_() * inside).sum((1, 2))
    return masks, total / (masks.sum((1, 2)) + 1e-6)


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of (N, H, W) bool masks: (N, 4) float32 x0 y0 x1 y1, half-open; zeros for an empty mask."""
    columns, rows = masks.any(1), masks.any(2)

    def span(hit: Tensor) -> tuple[Tensor, Tensor]:
        """First hit, and one past the last, of (N, S) bool."""
        place = torch.arange(hit.shape[1], device=hit.device)
        return torch.where(hit, place, hit.shape[1]).amin(1), torch.where(hit, place + 1, 0).amax(1)

    (x0, x1), (y0, y1) = span(columns), span(rows)
    return torch.stack([x0, y0, x1, y1], dim=1) * (x1 > 0).unsqueeze(1).float()


def _gaps(metadata: Metadata) -> list[int]:
    """Labels that no category uses; they never win."""
    return [label for label, category in enumerate(metadata.categories) if category.is_gap]


def _class_probabilities(prediction: MaskPrediction, image: int, metadata: Metadata) -> Tensor:
    """(Q, K+1) float32; zero at gap labels."""
    probabilities = prediction.class_logits[image].float().softmax(-1)
    probabilities[:, _gaps(metadata)] = 0.0
    return probabilities


def _strips(mask_logits: Tensor, frame: Frame) -> Iterator[tuple[slice, Tensor]]:
    """Masks (N, h, w) at the output's size, a few rows at a time: rows, and their (N, len(rows), width) logits to keep.

    Upsampling to the padded size, cropping and resizing to the output are linear and separable: together they are one
    matrix along the rows and one along the columns, and a strip of output rows needs a band of input rows only.
    """
    height, width = frame.output
    down = _resize_matrix(mask_logits.shape[1], frame.padded[0], frame.size[0], height)
    across = _resize_matrix(mask_logits.shape[2], frame.padded[1], frame.size[1], width).T.to(mask_logits.device)
    step = max(1, _STRIP_NUMBERS // max(1, len(mask_logits) * width))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        used = down[rows].any(0).nonzero()
        band = slice(int(used[0]), int(used[-1]) + 1)
        wide = mask_logits[:, band] @ across  # (N, band, width)
        yield rows, down[rows, band].to(mask_logits.device) @ wide


def _resize_matrix(source: int, padded: int, size: int, output: int) -> Tensor:
    """(output, source) weights of: bilinear to `padded`, the first `size` of it, bilinear to `output`; on the CPU."""
    columns = F.interpolate(torch.eye(source).unsqueeze(0), size=padded, mode="linear", align_corners=False)[..., :size]
    if size != output:
        columns = F.interpolate(columns, size=output, mode="linear", align_corners=False)
    return columns[0].T.contiguous()
