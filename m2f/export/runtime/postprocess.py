"""A graph's outputs to the answers of one picture; the decisions are those of modeling/postprocess, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2f.export.info import ExportInfo
from m2f.export.runtime.answers import Answer, InstanceAnswer, PanopticAnswer
from m2f.export.runtime.resizing import Floats, Frame, fine_strips, nearest, probability_strips, sigmoid, strips
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import Segment, number_segments

Outputs = Mapping[str, NDArray[Any]]
"""The graph's outputs of one picture, without the batch axis, by name."""

Strips = Callable[[Floats, Frame], Iterator[tuple[slice, Floats]]]


def answer(outputs: Outputs, frame: Frame, info: ExportInfo, tasks: Sequence[str]) -> Answer:
    """The answers of `tasks`, each one of `info.tasks`."""
    return Answer(
        semantic=_semantic(outputs, frame, info) if "semantic" in tasks else None,
        panoptic=_panoptic(outputs, frame, info) if "panoptic" in tasks else None,
        instance=_instance(outputs, frame, info) if "instance" in tasks else None,
    )


def _semantic(outputs: Outputs, frame: Frame, info: ExportInfo) -> Floats:
    """Class scores (K, height, width); -1 at labels that no category uses."""
    if info.outputs == "tao":
        maps = _floats(outputs["pred_masks"])
        scores = np.empty((len(maps), *frame.output), np.float32)
        for rows, part in fine_strips(maps, frame):
            scores[:, rows] = part
        return scores
    by_class = _class_probabilities(outputs, info.metadata)[:, :-1].T  # (K, Q)
    scores = np.empty((len(by_class), *frame.output), np.float32)
    for rows, masks in probability_strips(_floats(outputs["mask_logits"]), frame):
        scores[:, rows] = (by_class @ masks.reshape(len(masks), -1)).reshape(-1, *masks.shape[1:])
    scores[_gaps(info.metadata)] = -1.0
    return scores


def _panoptic(outputs: Outputs, frame: Frame, info: ExportInfo) -> PanopticAnswer:
    if info.outputs == "panoptic_map":
        return _look_up(outputs, frame, info.metadata)
    if info.outputs == "tao":
        scores, labels = _floats(outputs["pred_scores"]), outputs["pred_classes"]
        return _merge(scores, labels, _floats(outputs["pred_masks"]), fine_strips, frame, info)
    probabilities = _class_probabilities(outputs, info.metadata)
    scores, labels = probabilities.max(-1), probabilities.argmax(-1)
    return _merge(scores, labels, _floats(outputs["mask_logits"]), probability_strips, frame, info)


def _look_up(outputs: Outputs, frame: Frame, metadata: Metadata) -> PanopticAnswer:
    """A map that the graph has merged; a segment too small to be left at this size is gone."""
    ids = nearest(outputs["panoptic_ids"], frame).astype(np.int64)
    present = set(np.unique(ids).tolist())
    rows = zip(*(outputs[f"segment_{column}"].tolist() for column in ("ids", "classes", "scores")), strict=True)
    return PanopticAnswer(
        ids,
        [Segment(i, label, label in metadata.thing_labels, score=s) for i, label, s in rows if i > 0 and i in present],
    )


def _merge(
    scores: Floats, labels: NDArray[np.int64], maps: Floats, resized: Strips, frame: Frame, info: ExportInfo
) -> PanopticAnswer:
    """Every pixel to the query with the largest score times mask probability, if it keeps enough of its own mask.

    Args:
        scores: (Q,) probability of each query's best class.
        labels: (Q,) that class; K for no object.
        maps: (Q, h, w) that `resized` makes strips of mask probabilities of.
        resized: see there.
        frame: where the picture lies.
        info: thresholds and classes.
    """
    queries = ((labels != info.metadata.num_classes) & (scores > np.float32(info.object_mask_threshold))).nonzero()[0]
    owner = np.zeros(frame.output, np.int64)
    if len(queries) == 0:
        return PanopticAnswer(owner, [])
    solid = np.zeros(frame.output, bool)  # the owner's mask holds here as well
    areas = np.zeros(len(queries), np.int64)
    weights = scores[queries, None, None]
    for rows, masks in resized(maps[queries], frame):
        inside = masks >= 0.5
        areas += inside.sum((1, 2))
        owner[rows] = (masks * weights).argmax(0)
        solid[rows] = np.take_along_axis(inside, owner[None, rows], 0)[0]
    won, visible = (np.bincount(owners, minlength=len(queries)) for owners in (owner.ravel(), owner[solid]))
    # visible > 0 implies won, areas > 0; float32 as in torch, where a share may equal the threshold
    share = won.astype(np.float32) / np.maximum(areas, 1).astype(np.float32)
    accepted = (visible > 0) & (share >= np.float32(info.overlap_threshold))
    kept = labels[queries].tolist(), scores[queries].tolist()
    ids, segments = number_segments(accepted.tolist(), *kept, info.metadata)
    return PanopticAnswer(np.array(ids)[owner] * solid, segments)


def _instance(outputs: Outputs, frame: Frame, info: ExportInfo) -> InstanceAnswer:
    if info.outputs == "tao":
        return _read_objects(outputs, frame, info.metadata)
    probabilities = _class_probabilities(outputs, info.metadata)[:, :-1].ravel()
    best = np.argsort(-probabilities, kind="stable")[: info.top_k]
    best = best[_is_thing(best % info.metadata.num_classes, info.metadata)]
    queries, pairs = np.unique(best // info.metadata.num_classes, return_inverse=True)
    masks, quality = _binary_masks(_floats(outputs["mask_logits"])[queries], frame)
    scores = probabilities[best] * quality[pairs]
    order = np.argsort(-scores, kind="stable")
    pairs = pairs[order]
    return InstanceAnswer(best[order] % info.metadata.num_classes, masks[pairs], scores[order], _boxes(masks)[pairs])


def _read_objects(outputs: Outputs, frame: Frame, metadata: Metadata) -> InstanceAnswer:
    """Objects that the graph has ranked, of which things are kept."""
    things = _is_thing(outputs["pred_classes"], metadata)
    maps = _floats(outputs["pred_masks"][things])
    masks = np.zeros((len(maps), *frame.output), bool)
    for rows, shares in fine_strips(maps, frame):
        masks[:, rows] = shares > 0.5
    return InstanceAnswer(
        outputs["pred_classes"][things], masks, _floats(outputs["pred_scores"])[things], _boxes(masks)
    )


def _binary_masks(mask_logits: Floats, frame: Frame) -> tuple[NDArray[np.bool_], Floats]:
    """Masks (N, height, width), and the mean probability inside each, (N,)."""
    masks = np.zeros((len(mask_logits), *frame.output), bool)
    total = np.zeros(len(mask_logits), np.float32)
    for rows, logits in strips(mask_logits, frame):
        masks[:, rows] = inside = logits > 0
        total += (sigmoid(logits) * inside).sum((1, 2))
    return masks, total / (masks.sum((1, 2)).astype(np.float32) + np.float32(1e-6))


def _boxes(masks: NDArray[np.bool_]) -> Floats:
    """Tight boxes (N, 4) of (N, H, W) masks."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _class_probabilities(outputs: Outputs, metadata: Metadata) -> Floats:
    """(Q, K+1); zero at labels that no category uses."""
    logits = _floats(outputs["class_logits"])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = weights / weights.sum(-1, keepdims=True)
    probabilities[:, _gaps(metadata)] = 0.0
    return probabilities


def _gaps(metadata: Metadata) -> list[int]:
    return [label for label, category in enumerate(metadata.categories) if category.is_gap]


def _is_thing(labels: NDArray[Any], metadata: Metadata) -> NDArray[np.bool_]:
    return np.isin(labels, sorted(metadata.thing_labels))


def _floats(values: NDArray[Any]) -> Floats:
    """Half precision is for the graph alone."""
    return values.astype(np.float32, copy=False)
