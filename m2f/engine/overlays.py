"""A few pictures per evaluation: the model's answer on the image, beside the truth where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from m2f import distributed
from m2f.structures.metadata import Metadata
from m2f.structures.sample import TASKS, ModelInput, ModelOutput, Task
from m2f.visualization import draw_task, side_by_side


class OverlayKeeper:
    """Draws the first images that pass by, on the first process.

    Args:
        directory: pictures are `<directory>/<stem of the image>_<task>.png`; answer left, truth right.
        metadata: names and colours.
        count: images to draw.

    Attributes:
        pictures: name -> (H, W, 3) uint8 RGB.
    """

    def __init__(self, directory: Path, metadata: Metadata, count: int) -> None:
        self._directory = directory
        self._metadata = metadata
        self._left = count if distributed.is_main() else 0
        self.pictures: dict[str, np.ndarray] = {}

    def take(self, inputs: list[ModelInput], outputs: list[ModelOutput]) -> None:
        """Draw what is still wanted of a batch."""
        for sample, output in zip(inputs[: self._left], outputs, strict=False):
            self._left -= 1
            for task in TASKS:
                if task in output:
                    self._draw(task, sample, output)

    def _draw(self, task: Task, sample: ModelInput, output: ModelOutput) -> None:
        values = [values[task] for values in (output, sample) if task in values]
        picture = side_by_side([draw_task(task, sample["image"], value, self._metadata) for value in values])
        name = f"{Path(sample['file_name']).stem}_{task}"
        self.pictures[name] = picture
        self._directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self._directory / f"{name}.png")
