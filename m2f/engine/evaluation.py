"""The data sets of a run's evaluation, and one evaluation of all of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from m2f import distributed
from m2f.data.predictions import PredictionWriter
from m2f.engine.overlays import OverlayKeeper
from m2f.engine.random_state import separate_randomness
from m2f.evaluation import Evaluator, OnBatch, format_results, inference_on_dataset, write_class_csv, write_results
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput, Predict, Record, Task

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, float]]  # dataset -> "<task>/<metric>" -> value


class EvaluationSet(NamedTuple):
    """One data set to evaluate on."""

    name: str
    metadata: Metadata
    records: Sequence[Record]
    image_dir: str  # that the images lie below
    loader: Iterable[list[ModelInput]]  # this rank's shard
    evaluators: Sequence[Evaluator]


class Answers(NamedTuple):
    """What is asked in an evaluation.

    Attributes:
        on: gives what answers a set.
        model: what is in eval mode meanwhile, and has the losses; None where no model is asked.
    """

    on: Callable[[EvaluationSet], Predict]
    model: nn.Module | None


def evaluate_sets(
    answers: Answers,
    sets: Sequence[EvaluationSet],
    *,
    directory: Path,
    seed: int,
    losses: bool = False,
    num_pictures: int = 0,
    max_batches: int | None = None,
    saved_tasks: Sequence[Task] = (),
) -> tuple[Results, list[OverlayKeeper]]:
    """Evaluate on every set; log the tables and write `results.json`, `per_class.csv` and the pictures.

    Args:
        answers: what is asked; its model's train or eval mode and gradients stay as they are.
        sets: may be empty.
        directory: gets the files, and the folders `visualizations` and `predictions`.
        seed: of every generator meanwhile; those of training do not move.
        losses: average the model's losses too.
        num_pictures: overlay pictures of each set.
        max_batches: stop after so many batches; None: all of them.
        saved_tasks: whose answers are written in the official formats, a folder per set.

    Returns:
        The results, the same on every rank, and the pictures that this rank has drawn.
    """
    results: Results = {}
    keepers = []
    for data in sets:
        keeper = OverlayKeeper(directory / "visualizations" / data.name, data.metadata, num_pictures)
        writer = None
        if saved_tasks:
            folder = directory / "predictions" / data.name
            writer = PredictionWriter(folder, data.metadata, saved_tasks, image_dir=data.image_dir)
        with separate_randomness(seed):
            metrics = inference_on_dataset(
                answers.on(data),
                data.loader if max_batches is None else _First(data.loader, max_batches),
                data.evaluators,
                model=answers.model,
                losses=losses,
                on_batch=_keeping(keeper, writer),
            )
        if writer is not None:
            writer.finish()
        results[data.name] = distributed.all_gather(metrics)[0]
        keepers.append(keeper)
    if results and distributed.is_main():
        logger.info("results\n%s", format_results(results))
        write_results(directory / "results.json", results)
        write_class_csv(directory / "per_class.csv", results)
    return results, keepers


def _keeping(keeper: OverlayKeeper, writer: PredictionWriter | None) -> OnBatch:
    if writer is None:
        return keeper.take

    def keep(inputs: list[ModelInput], outputs: list[ModelOutput]) -> None:
        keeper.take(inputs, outputs)
        for sample, output in zip(inputs, outputs, strict=True):
            writer.write(sample, output)

    return keep


def flat_metrics(results: Results) -> dict[str, float]:
    """One level: the first data set's metrics under their own names, those of the others as `<dataset>/<metric>`."""
    flat: dict[str, float] = {}
    for number, (dataset, metrics) in enumerate(results.items()):
        flat.update(metrics if number == 0 else {f"{dataset}/{name}": value for name, value in metrics.items()})
    return flat


def require_same_classes(one: Metadata, other: Metadata, one_is: str, other_is: str) -> None:
    """Refuse to compare answers about some classes with truths about others.

    Raises:
        ValueError: ids, names or things differ; the message has both lists around the first difference.
    """
    here, there = (_class_rows(metadata) for metadata in (one, other))
    if here == there:
        return
    first = next(i for i, rows in enumerate(itertools.zip_longest(here, there)) if rows[0] != rows[1])
    window = slice(max(first - 1, 0), first + 3)
    raise ValueError(
        f"the classes of {one_is} ({len(here)}) and of {other_is} ({len(there)}) differ from label {first} on: "
        f"{_listed(here[window])} against {_listed(there[window])}"
    )


def _class_rows(metadata: Metadata) -> list[tuple[int, str, bool]]:
    return [(category.id, category.name, category.is_thing) for category in metadata.categories]


def _listed(rows: Sequence[tuple[int, str, bool]]) -> str:
    words = [f"{number} {name} ({'thing' if is_thing else 'stuff'})" for number, name, is_thing in rows]
    return "[" + ", ".join(words) + "]"


class _First:
    """The first batches of a loader."""

    def __init__(self, loader: Iterable[Any], count: int) -> None:
        self._loader = loader
        self._count = count

    def __iter__(self) -> Any:
        return itertools.islice(iter(self._loader), self._count)
