"""The loop over a dataset: images through the model, answers to the evaluators, numbers back."""

from __future__ import annotations

import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from m2f import distributed
from m2f.structures.sample import ModelInput, ModelOutput, Predict, Task

logger = logging.getLogger(__name__)

OnBatch = Callable[[list[ModelInput], list[ModelOutput]], None]
LOG_SECONDS = 30.0  # without a terminal, progress is logged this often


class Evaluator(ABC):
    """Compares answers with the truths that ride in the inputs; opens no file."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def process(self, inputs: list[ModelInput], outputs: list[ModelOutput]) -> None:
        """Take one batch: truths from `inputs`, answers from `outputs`, both at (height, width)."""

    @abstractmethod
    def evaluate(self) -> dict[str, float] | None:
        """Join all ranks.

        Returns:
            "<task>/<metric>" -> value, in percent, NaN where nothing was there to measure; None except on rank 0.
        """


def truth_of(sample: ModelInput, task: Task) -> Any:
    """What the input says is right, of the type that `ModelInput` states for the task.

    Raises:
        ValueError: it says nothing.
    """
    if task not in sample:
        name = sample.get("file_name", "an image")
        raise ValueError(f"{name} has no {task} truth to compare with; is it annotated, and does its mapper attach it?")
    return sample[task]


def inference_on_dataset(
    predict: Predict,
    loader: Iterable[list[ModelInput]],
    evaluators: Sequence[Evaluator],
    *,
    model: nn.Module | None = None,
    losses: bool = False,
    on_batch: OnBatch | None = None,
) -> dict[str, float]:
    """Evaluate what answers on this rank's shard and join the ranks.

    Leaves no trace in training: every module's train/eval flag and torch's random state are as before.

    Args:
        predict: images to answers; the model itself, or something around it, or something else.
        model: is in eval mode meanwhile; None: `predict`, where it is a module. With `losses` it has
            `losses(inputs, num_masks) -> dict[str, Tensor]`.
        loader: this rank's shard, not padded; it may be empty.
        evaluators: they are reset first.
        losses: average the losses over the images too: "val_loss" is their sum, "val_loss_ce" and so on its parts.
            The points they sample come from a fixed seed, so equal weights give equal numbers.
        on_batch: called with each batch after the evaluators, e.g. to draw pictures.

    Returns:
        "<task>/<metric>" -> value; empty except on rank 0.

    Raises:
        ValueError: two evaluators report the same metric.
    """
    model = predict if model is None and isinstance(predict, nn.Module) else model
    for evaluator in evaluators:
        evaluator.reset()
    watch = _Stopwatch()
    sums: dict[str, float] = {}
    # no_grad and not inference_mode: a tensor that a module caches here must still serve training afterwards.
    with _all_in_eval_mode(model), _private_random_state(), torch.no_grad():
        for inputs in watch.batches(loader):
            outputs = predict(inputs)
            watch.lap("inference")
            for evaluator in evaluators:
                evaluator.process(inputs, outputs)
            if on_batch is not None:
                on_batch(inputs, outputs)
            if losses:
                _add_losses(sums, model, inputs)
            watch.lap("evaluation")
    watch.log()
    results = _joined_losses(sums, watch.images) if losses else {}
    for evaluator in evaluators:
        _merge(results, evaluator.evaluate() or {})
    return results if distributed.is_main() else {}


@contextmanager
def _all_in_eval_mode(model: nn.Module | None) -> Iterator[None]:
    """Eval mode inside; outside, each module as it was (a frozen backbone stays in eval mode while the rest trains)."""
    was_training = {module: module.training for module in model.modules()} if model is not None else {}
    if model is not None:
        model.eval()
    try:
        yield
    finally:
        for module, flag in was_training.items():
            module.training = flag


@contextmanager
def _private_random_state() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def _add_losses(sums: dict[str, float], model: nn.Module | None, inputs: list[ModelInput]) -> None:
    # The number of targets is given: counting it over the ranks would wait for ranks whose shard has ended.
    num_masks = float(max(sum(len(sample["instances"]) for sample in inputs), 1))
    parts: dict[str, torch.Tensor] = model.losses(inputs, num_masks)  # type: ignore[operator, union-attr]
    for name, value in zip(parts, torch.stack(list(parts.values())).tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + value * len(inputs)


def _joined_losses(sums: dict[str, float], images: int) -> dict[str, float]:
    """Mean over the images of all ranks; {} except on rank 0, and where no image was seen."""
    shards = distributed.gather((sums, images))
    count = sum(images for _, images in shards)
    if count == 0:
        return {}
    names = dict.fromkeys(name for sums, _ in shards for name in sums)
    means = {f"val_{name}": sum(sums.get(name, 0.0) for sums, _ in shards) / count for name in names}
    return {"val_loss": sum(means.values()), **means}


def _merge(results: dict[str, float], more: dict[str, float]) -> None:
    twice = results.keys() & more.keys()
    if twice:
        raise ValueError(f"two evaluators report {sorted(twice)}; check evaluate.evaluators")
    results.update(more)


class _Stopwatch:
    """Seconds spent on data, inference and evaluation; a progress bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self.images = 0
        self._seconds = {"data": 0.0, "inference": 0.0, "evaluation": 0.0}
        self._last = time.perf_counter()

    def batches(self, loader: Iterable[list[ModelInput]]) -> Iterator[list[ModelInput]]:
        silent = not (sys.stderr.isatty() and distributed.is_main())
        total: int | None = len(loader) if hasattr(loader, "__len__") else None  # type: ignore[arg-type]
        bar: Any = tqdm(loader, total=total, desc="evaluation", leave=False, disable=silent)
        said = self._last = time.perf_counter()
        for number, inputs in enumerate(bar, start=1):
            self.lap("data")
            yield inputs
            self.images += len(inputs)
            if silent and time.perf_counter() - said > LOG_SECONDS:
                said = time.perf_counter()
                logger.info("evaluation: %d of %s batches", number, total if total is not None else "?")

    def lap(self, what: str) -> None:
        if what == "inference" and torch.cuda.is_available():
            torch.cuda.synchronize()  # else the device's work would count as evaluation
        now = time.perf_counter()
        self._seconds[what] += now - self._last
        self._last = now

    def log(self) -> None:
        images = max(self.images, 1)
        per_image = ", ".join(f"{what} {seconds / images:.4f}" for what, seconds in self._seconds.items())
        total = sum(self._seconds.values())
        logger.info("evaluated %d images in %.1f s; seconds per image: %s", self.images, total, per_image)
