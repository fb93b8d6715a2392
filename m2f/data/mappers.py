"""From a record to what the model is fed: read, draw a transform, apply it to image and truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2f.data.build import DATASET_MAPPER_REGISTRY
from m2f.data.images import Picture, read_image
from m2f.data.transforms import (
    ColorJitter,
    LargeScaleJitter,
    OwnSize,
    Policy,
    ResizeCrop,
    ShortestEdge,
    expand_min_sizes,
)
from m2f.data.truth import Targets, check_ignore_label, read_truth
from m2f.structures.metadata import Metadata
from m2f.structures.sample import TASKS, ModelInput, Record, Task

_POLICIES = ("resize_crop", "lsj")


@DATASET_MAPPER_REGISTRY.register()
class TrainMapper:
    """Augmented image and targets.

    Args:
        metadata: what the labels mean.
        policy: draws resize, crop and flips.
        color: draws the change of colours; None: colours stay.

    Note: a crop is never padded here; the model pads a batch as a whole, after normalising.
    """

    def __init__(self, metadata: Metadata, policy: Policy, color: ColorJitter | None) -> None:
        check_ignore_label(metadata)
        self.metadata, self.policy, self.color = metadata, policy, color

    @classmethod
    def from_config(cls, cfg: Any, metadata: Metadata, split: str) -> dict[str, Any]:
        """Reads `dataset.augmentation` and the split's `target_size`."""
        color = ColorJitter() if cfg.dataset.augmentation.color_jitter else None
        return {"metadata": metadata, "policy": build_train_policy(cfg, split), "color": color}

    def __call__(self, record: Record, rng: np.random.Generator) -> ModelInput:
        """Make one training sample.

        Raises:
            FileNotFoundError: image or mask is missing.
            ValueError: image or annotation is broken, they differ in size, or the record has no annotation.
        """
        picture = read_image(record["file_name"])
        truth = read_truth(record, self.metadata, picture)
        if truth is None:
            raise ValueError(f"{record['file_name']} has no annotation, so nothing can be learnt from it")
        geometry = self.policy.draw(rng, picture.size, truth.label_map)
        pixels = geometry.apply_image(picture.pixels)
        if self.color is not None:
            pixels = self.color.draw(rng).apply_image(pixels)
        sample = _sample(record, picture, pixels)
        _attach_targets(sample, truth.targets(geometry))
        return sample


@DATASET_MAPPER_REGISTRY.register()
@dataclass(frozen=True)
class EvalMapper:
    """Resized image, and the un-augmented truth at the image's own size.

    Attributes:
        metadata: what the labels mean.
        policy: the resize.
        tasks: truths to attach where the record is annotated.
        with_targets: attach the targets of a loss as well, at the resized size.
    """

    metadata: Metadata
    policy: Policy
    tasks: tuple[Task, ...]
    with_targets: bool = False

    def __post_init__(self) -> None:
        check_ignore_label(self.metadata)
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"evaluate.tasks: unknown task {task!r}; choose from {', '.join(TASKS)}")

    @classmethod
    def from_config(cls, cfg: Any, metadata: Metadata, split: str) -> dict[str, Any]:
        """Reads what `build_eval_policy` does, and `evaluate.tasks` or else `model.mode`."""
        tasks = tuple(cfg.evaluate.tasks or [cfg.model.mode])
        return {"metadata": metadata, "policy": build_eval_policy(cfg, split), "tasks": tasks}

    def __call__(self, record: Record, rng: np.random.Generator) -> ModelInput:
        """Make one sample of evaluation or inference.

        Raises:
            FileNotFoundError: image or mask is missing.
            ValueError: image or annotation is broken, they differ in size, or a task's truth cannot be told from it.
        """
        return self.of_picture(record, read_image(record["file_name"]), rng)

    def of_picture(self, record: Record, picture: Picture, rng: np.random.Generator) -> ModelInput:
        """Make the sample of a picture that is no file, such as a frame of a video.

        Raises:
            FileNotFoundError, ValueError: as for a file.
        """
        truth = read_truth(record, self.metadata, picture) if self.tasks or self.with_targets else None
        labels = truth.label_map if truth else lambda: np.full(picture.size, -1)
        geometry = self.policy.draw(rng, picture.size, labels)
        sample = _sample(record, picture, geometry.apply_image(picture.pixels))
        if truth is None:
            return sample
        for task in self.tasks:
            sample[task] = truth.answer(task)
        if self.with_targets:
            _attach_targets(sample, truth.targets(geometry))
        return sample


def build_eval_policy(cfg: Any, split: str) -> Policy:
    """The resize of evaluation: none where the split's task answers by tiles, else `target_size` and the test sizes.

    Raises:
        ValueError: `target_size` is no size, or is set beside tiles.
    """
    task = "inference" if split == "test" else "evaluate"
    target_size, aug = _target_size(cfg, split), cfg.dataset.augmentation
    if not cfg[task].tile_size:
        return ShortestEdge(aug.test_min_size, aug.test_max_size, target_size)
    if target_size:
        raise ValueError(
            f"{task}.tile_size = {list(cfg[task].tile_size)} leaves images at their own resolution, and "
            f"dataset.{split}.target_size = {list(target_size)} resizes them; set only one of them"
        )
    return OwnSize()


def build_train_policy(cfg: Any, split: str) -> Policy:
    """The policy that `dataset.augmentation.policy` names.

    Raises:
        ValueError: it names none.
    """
    aug = cfg.dataset.augmentation
    height, width = aug.train_crop_size
    shared: dict[str, Any] = {
        "crop_size": (height, width),
        "horizontal_flip": aug.horizontal_flip,
        "vertical_flip": aug.vertical_flip,
        "target_size": _target_size(cfg, split),
    }
    if aug.policy == "lsj":
        return LargeScaleJitter(min_scale=aug.lsj_min_scale, max_scale=aug.lsj_max_scale, **shared)
    if aug.policy == "resize_crop":
        sizes = expand_min_sizes(aug.train_min_size, aug.train_crop_size)
        return ResizeCrop(sizes, aug.train_max_size, max_category_area=aug.crop_max_category_area, **shared)
    raise ValueError(f"dataset.augmentation.policy = {aug.policy!r} is unknown; choose from {', '.join(_POLICIES)}")


def _target_size(cfg: Any, split: str) -> tuple[int, ...]:
    size = tuple(cfg.dataset[split].target_size)
    if len(size) > 2 or any(edge < 1 for edge in size):
        raise ValueError(f"dataset.{split}.target_size = {list(size)} must be [width, height] in pixels, or empty")
    return size


def _sample(record: Record, picture: Picture, pixels: NDArray[np.uint8]) -> ModelInput:
    return {
        "image": _channels_first(pixels),
        "height": picture.size[0],
        "width": picture.size[1],
        "file_name": record["file_name"],
        "image_id": record["image_id"],
    }


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _attach_targets(sample: ModelInput, targets: Targets) -> None:
    sample["instances"] = targets.instances
    if targets.valid is not None:
        sample["valid"] = targets.valid
