"""Saved predictions in the place of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2f.data.predictions.finding import find_sources
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput, Record


class SavedPredictions:
    """A predictor that looks answers up in files: m2f's own, or those of other tools in the official formats.

    A path is a JSON list of COCO results, a COCO panoptic file (its PNGs in a folder of the same stem, in `panoptic`
    or beside it), a folder of semantic masks called as the images are, or a folder as `PredictionWriter` and Detectron2
    write it. Rows are packed, PNGs are read when they are asked for.

    Args:
        paths: files or folders; where a folder has a sub-folder called `dataset`, that is meant.
        metadata: classes of the dataset.
        tasks: answers to give.
        dataset: what the dataset is called there; "" = as in `metadata`.

    Raises:
        FileNotFoundError: a path does not exist, or there is nothing for a task.
        ValueError: a file is damaged, has classes that the dataset lacks, or holds a task that another has.
    """

    def __init__(self, paths: Sequence[str], metadata: Metadata, tasks: Sequence[str], dataset: str = "") -> None:
        self._sources = find_sources(paths, metadata, tasks, dataset or metadata.name)

    def check(self, records: Sequence[Record]) -> None:
        """Compare with the images of the dataset, before the first is asked for.

        Predictions for other images are passed over with a warning, so that a part of a dataset can be evaluated.

        Raises:
            ValueError: images lack a semantic or panoptic prediction, which the message counts and names, or all
                predictions are for other images. An image without instances is no fault.
        """
        for source in self._sources.values():
            source.check(records)

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        """The answers for images, at their (height, width). Masks are run lengths, semantic answers are labels.

        Raises:
            FileNotFoundError: a PNG is missing.
            ValueError: an image has no semantic or panoptic prediction, or one that is damaged or of another size.
        """
        return [self._answer(sample) for sample in inputs]

    def _answer(self, sample: ModelInput) -> ModelOutput:
        answers: dict[str, Any] = {task: source.answer(sample) for task, source in self._sources.items()}
        return ModelOutput(**answers)  # type: ignore[typeddict-item]
