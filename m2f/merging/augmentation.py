"""Test-time augmentation: an image answered at several scales, and mirrored, and the answers made one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2f.merging.voting import Election, InstanceVotes, PanopticVotes, SemanticVotes
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput, Predict

_VOTES: dict[str, Any] = {"semantic": SemanticVotes, "panoptic": PanopticVotes, "instance": InstanceVotes}


class AugmentedPredictor:
    """A predictor that shows another one several versions of each image, one after the other; see `voting`.

    Where there are several, "instance" has RLE masks, and segments lie on the CPU.

    Args:
        predict: answers `tasks`; "semantic" as scores.
        metadata: what the labels mean.
        tasks: semantic, panoptic, instance: those wanted.
        flip: show each scale mirrored as well.
        scales: of the image that comes in; none: as it is.
        object_mask_threshold: panoptic: a segment's score, averaged over all versions, must exceed it.
        overlap_threshold: panoptic: least share of a segment's mask that it must win.

    Raises:
        ValueError: a task is unknown, or a scale is not positive.
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
        scales = tuple(scales) or (1.0,)
        if min(scales) <= 0:
            raise ValueError(f"scales of test-time augmentation are {list(scales)}; they must lie above 0")
        self._predict, self._metadata, self._tasks = predict, metadata, tuple(tasks)
        self._versions = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
        self._thresholds = object_mask_threshold, overlap_threshold

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        """Answer every image at its (height, width)."""
        if self._versions == [(1.0, False)]:
            return self._predict(inputs)
        return [self._answer(sample) for sample in inputs]

    def _answer(self, sample: ModelInput) -> ModelOutput:
        size = (sample["height"], sample["width"])
        election = Election(size, self._metadata, len(self._versions), *self._thresholds)
        votes = {task: _VOTES[task](election) for task in self._tasks}
        for number, (scale, mirrored) in enumerate(self._versions):  # only one version's answer is held at a time
            image = _scaled(sample["image"], scale)
            version: ModelInput = {"image": image.flip(2) if mirrored else image, "height": size[0], "width": size[1]}
            answer = self._predict([version])[0]
            for task, counting in votes.items():
                counting.add(number, answer[task], mirrored)  # type: ignore[literal-required]  # one of TASKS
        output: Any = {task: counting.result() for task, counting in votes.items()}
        return output


def _scaled(image: Tensor, scale: float) -> Tensor:
    """(3, h, w) uint8, bilinearly, averaging where it shrinks."""
    size = tuple(max(1, round(edge * scale)) for edge in image.shape[1:])
    if size == tuple(image.shape[1:]):
        return image
    resized = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
