"""Large images, answered tile by tile at their own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2f.merging.grid import Tile, tile_grid
from m2f.merging.seams import InstanceSeams, PanopticSeams, SemanticSeams
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput, Predict

_SEAMS: dict[str, Any] = {"semantic": SemanticSeams, "panoptic": PanopticSeams, "instance": InstanceSeams}


class TiledPredictor:
    """A predictor that shows another one tiles of images larger than a tile; smaller images go straight through.

    Of a tiled image, "semantic" are labels (H, W), "instance" has RLE masks, and all lie on the CPU.

    Args:
        predict: answers `tasks`; "semantic" as scores.
        metadata: what the labels mean.
        tasks: semantic, panoptic, instance: those wanted.
        tile_size: (height, width) in pixels.
        overlap: least share of a tile that it has in common with the next, above 0 and below 1.
        batch_size: tiles given to `predict` at a time.

    Raises:
        ValueError: a task is unknown, or a number out of its range.
    """

    def __init__(
        self,
        predict: Predict,
        metadata: Metadata,
        tasks: Sequence[str],
        tile_size: tuple[int, int],
        overlap: float = 0.25,
        batch_size: int = 1,
    ) -> None:
        if unknown := [task for task in tasks if task not in _SEAMS]:
            raise ValueError(f"unknown task {unknown[0]!r}; choose from {', '.join(_SEAMS)}")
        if len(tile_size) != 2 or min(tile_size) < 1:
            raise ValueError(f"a tile of {list(tile_size)}; it must be [height, width] in pixels, from 1")
        if not 0 < overlap < 1:
            raise ValueError(
                f"a tile overlap of {overlap}; it must lie between 0 and 1, for by what tiles share objects are joined"
            )
        if batch_size < 1:
            raise ValueError(f"{batch_size} tiles at a time; it must be at least 1")
        self._predict, self._metadata, self._tasks = predict, metadata, tuple(tasks)
        self._tile_size, self._overlap, self._batch_size = (tile_size[0], tile_size[1]), overlap, batch_size

    def __call__(self, inputs: Sequence[ModelInput]) -> list[ModelOutput]:
        """Answer every image at its (height, width).

        Raises:
            ValueError: an image is larger than a tile, but not of the size wanted for its answers.
        """
        return [self._tiled(sample) if self._is_large(sample) else self._predict([sample])[0] for sample in inputs]

    def _is_large(self, sample: ModelInput) -> bool:
        height, width = sample["image"].shape[1:]
        return height > self._tile_size[0] or width > self._tile_size[1]

    def _tiled(self, sample: ModelInput) -> ModelOutput:
        size = (int(sample["image"].shape[1]), int(sample["image"].shape[2]))
        wanted = (sample["height"], sample["width"])
        if wanted != size:
            raise ValueError(
                f"{sample.get('file_name', 'an image')}: tiles need it at its own size {wanted}, not {size}"
            )
        tiles = tile_grid(size, self._tile_size, self._overlap)
        seams = {task: _SEAMS[task](size, tiles, self._metadata) for task in self._tasks}
        for start in range(0, len(tiles), self._batch_size):
            batch = tiles[start : start + self._batch_size]
            answers = self._predict([_cut(sample, tile) for tile in batch])
            for number, answer in enumerate(answers, start):
                for task, merging in seams.items():
                    merging.add(number, answer[task])  # type: ignore[literal-required]  # one of TASKS
        output: Any = {task: merging.result() for task, merging in seams.items()}
        return output


def _cut(sample: ModelInput, tile: Tile) -> ModelInput:
    top, left, bottom, right = tile.box
    image = sample["image"][:, top:bottom, left:right]
    return {"image": image, "height": bottom - top, "width": right - left}
