"""Test-time augmentation: an image answered at several scales, and mirrored, and the answers made one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2f.merging.voting import InstanceVotes, PanopticVotes, SemanticVotes
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap
from m2f.structures.sample import ModelInput, ModelOutput, Predict

_VOTES: dict[str, Any] = {"semantic": SemanticVotes, "panoptic": PanopticVotes, "instance": InstanceVotes}


class AugmentedPredictor:
    """A predictor that shows another one several versions of each image, one after the other; see `voting`.

    Args:
        predict: answers `tasks`; "semantic" as scores, "instance" with mask tensors.
        metadata: what the labels mean.
        tasks: semantic, panoptic, instance: those wanted.
        flip: show each scale mirrored as well.
        scales: of the image that comes in.
        object_mask_threshold: panoptic: a segment's score, averaged over all versions, must exceed it.
        overlap_threshold: panoptic: least share of a segment's mask that it must win.

    Raises:
        ValueError: a task is unknown, or there is no scale, or one that is not positive.
    """

    def __init__(
        self,
        predict: Predict,
        metadata: Metadata,
        tasks: Sequence[str],
        *,
        flip: bool = True,
        scales: Sequence[float] = (1.0,),
        object_mask_threshold: float = 0.4,
        overlap_threshold: float = 0.8,
    ) -> None:
        if unknown := [task for task in tasks if task not in _VOTES]:
            raise ValueError(f"unknown task {unknown[0]!r}; choose from {', '.join(_VOTES)}")
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales of test-time augmentation are {list(scales)}; at least one, all above 0")
        self._predict, self._metadata, self._tasks = predict, metadata, tuple(tasks)
        self._versions = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
        self._thresholds = object_mask_threshold, overlap_threshold

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        """Answer every image at its (height, width)."""
        if self._versions == [(1.0, False)]:
            return self._predict(inputs)
        return [self._answer(sample) for sample in inputs]

    def _answer(self, sample: ModelInput) -> ModelOutput:
        votes = {task: _VOTES[task](self._metadata, len(self._versions), *self._thresholds) for task in self._tasks}
        for answer in self._answers(sample):
            for task, counting in votes.items():
                counting.add(answer[task])  # type: ignore[literal-required]  # one of TASKS
        output: Any = {task: counting.result() for task, counting in votes.items()}
        return output

    def _answers(self, sample: ModelInput) -> Iterator[ModelOutput]:
        """Of each version, turned back; only one is held at a time."""
        for scale, mirrored in self._versions:
            image = _scaled(sample["image"], scale)
            size = {"height": sample["height"], "width": sample["width"]}
            version = ModelInput(image=image.flip(2) if mirrored else image, **size)  # type: ignore[typeddict-item]
            answer = self._predict([version])[0]
            yield _mirrored(answer) if mirrored else answer


def _scaled(image: Tensor, scale: float) -> Tensor:
    """(3, h, w) uint8, bilinearly, averaging where it shrinks."""
    size = tuple(max(1, round(edge * scale)) for edge in image.shape[1:])
    if size == tuple(image.shape[1:]):
        return image
    resized = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _mirrored(answer: ModelOutput) -> ModelOutput:
    """The answer for the image as it was; boxes are left to those who make the final masks."""
    turned = ModelOutput()
    if "semantic" in answer:
        turned["semantic"] = answer["semantic"].flip(-1)
    if "panoptic" in answer:
        turned["panoptic"] = PanopticMap(answer["panoptic"].ids.flip(-1), answer["panoptic"].segments)
    if "instance" in answer:
        turned["instance"] = _mirrored_masks(answer["instance"])
    return turned


def _mirrored_masks(found: Instances) -> Instances:
    assert isinstance(found.masks, Tensor)
    return replace(found, masks=found.masks.flip(-1), boxes=None)
