"""An exported graph in the place of a model: arrays of the runtime to tensors of the house."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from m2f.export.runtime import GraphModel, OnnxModel
from m2f.export.tensorrt_runtime import load_engine
from m2f.structures.instances import Instances
from m2f.structures.metadata import Metadata
from m2f.structures.panoptic import PanopticMap
from m2f.structures.sample import ModelInput, ModelOutput


class ExportedModel:
    """Answers as a model in eval mode does.

    Args:
        model: of the runtime.
        tasks: what is answered.
        source: the file, for messages.

    Raises:
        ValueError: the graph does not answer one of the tasks.
    """

    def __init__(self, model: GraphModel, tasks: Sequence[str], source: str) -> None:
        missing = [task for task in tasks if task not in model.tasks]
        if missing:
            raise ValueError(
                f"{source} answers {', '.join(model.tasks)}, not {', '.join(missing)}; "
                "export it with export.outputs=mask_logits to have all three tasks"
            )
        self._model, self._tasks = model, tuple(tasks)
        self.source = source

    @classmethod
    def from_onnx(cls, path: str | Path, tasks: Sequence[str], key: str = "") -> ExportedModel:
        """An `.onnx` in ONNX Runtime, or an encrypted one with its key."""
        return cls(OnnxModel(path, key), tasks, str(path))

    @classmethod
    def from_engine(cls, path: str | Path, tasks: Sequence[str]) -> ExportedModel:
        """A TensorRT engine."""
        return cls(load_engine(path), tasks, str(path))

    @property
    def metadata(self) -> Metadata:
        """The classes that travelled with the graph."""
        return self._model.metadata

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        """One output per input, at its (height, width)."""
        images = [sample["image"].numpy() for sample in inputs]
        sizes = [
            (sample.get("height", image.shape[1]), sample.get("width", image.shape[2]))
            for sample, image in zip(inputs, images, strict=True)
        ]
        return [_to_tensors(answer) for answer in self._model.answer(images, sizes, self._tasks)]


def _to_tensors(answer: Any) -> ModelOutput:
    output = ModelOutput()
    if answer.semantic is not None:
        output["semantic"] = torch.from_numpy(answer.semantic)
    if answer.panoptic is not None:
        output["panoptic"] = PanopticMap(torch.from_numpy(answer.panoptic.ids).long(), answer.panoptic.segments)
    if answer.instance is not None:
        found = answer.instance
        fields = (torch.from_numpy(values) for values in (found.labels, found.masks, found.scores, found.boxes))
        output["instance"] = Instances(*fields)
    return output
