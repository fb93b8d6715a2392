"""What inference leaves behind: answers drawn on their images and videos, and saved predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from m2f.checkpoint.atomic import PARTIAL_PREFIX
from m2f.config import CfgNode
from m2f.data.images import read_image
from m2f.data.predictions import PredictionWriter
from m2f.data.video import VideoReader, VideoWriter
from m2f.engine.predictor import Predictor
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput, Task
from m2f.visualization import draw_task

OVERLAYS, PREDICTIONS = "overlays", "predictions"  # folders in that of the results
_PICTURE, _FILM = ".jpg", ".mp4"
_QUALITY = 95
DrawFrame = Callable[[NDArray[np.uint8], ModelOutput], None]  # (H, W, 3) RGB, and what is answered for it


class InferenceResults:
    """Overlays and predictions of a run. Files appear whole or not at all, so what is there is done.

    Args:
        node: `inference` of the configuration: what to keep, and whether what is there is to be left alone.
        directory: of the results.
        predictor: knows classes and tasks.
        image_dir: folder that names are relative to.
    """

    def __init__(self, node: CfgNode, directory: Path, predictor: Predictor, image_dir: str) -> None:
        what = predictor.metadata, predictor.tasks
        self._skip_done: bool = node.skip_done
        self._overlays = self._predictions = None
        if node.save_overlays:
            self._overlays = Overlays(directory / OVERLAYS, *what, node.score_threshold)
        if node.save_predictions:
            self._predictions = PredictionWriter(
                directory / PREDICTIONS, *what, node.min_score, resume=node.skip_done, image_dir=image_dir
            )

    def has_image(self, name: str, image_id: int | str) -> bool:
        """Whether nothing is left to make of an image."""
        return self._has_overlay(name, _PICTURE) and self.has_prediction(image_id)

    def has_prediction(self, image_id: int | str) -> bool:
        """Whether the prediction is saved, or is not to be."""
        return self._predictions is None or image_id in self._predictions.done

    def done_frames(self, name: str) -> int:
        """How many frames a video has whose film and predictions are there; 0 where something is left to make."""
        if self._overlays is None or not self._has_overlay(name, _FILM):
            return 0
        with VideoReader(self._overlays.paths(name, _FILM)[0]) as film:
            count = film.num_frames
        return count if self.has_prediction(frame_id(name, count - 1)) else 0

    def keep_image(self, name: str, sample: ModelInput, output: ModelOutput) -> None:
        """Save what is answered for an image."""
        if self._overlays is not None:
            self._overlays.save(name, sample, output)
        self.keep_prediction(sample, output)

    def keep_prediction(self, sample: ModelInput, output: ModelOutput) -> None:
        """Save the prediction, unless it is there or not wanted."""
        if self._predictions is not None and not self.has_prediction(sample["image_id"]):
            self._predictions.write(sample, output)

    @contextmanager
    def film(self, name: str, size: tuple[int, int], fps: float) -> Iterator[DrawFrame | None]:
        """What draws the frames of a video of `size` = (height, width); None where there is no film to make."""
        if self._overlays is None or self._has_overlay(name, _FILM):
            yield None
        else:
            with self._overlays.film(name, size, fps) as draw:
                yield draw

    def finish(self) -> None:
        """Complete the files that all images share."""
        if self._predictions is not None:
            self._predictions.finish()

    def _has_overlay(self, name: str, ending: str) -> bool:
        return self._overlays is None or (self._skip_done and self._overlays.are_there(name, ending))


class Overlays:
    """Answers drawn on images: `<directory>/<name>.jpg`, or `<name>_<task>.jpg` for each task where there are several.

    Args:
        directory: made when the first file is.
        metadata: names and colours.
        tasks: what is answered.
        min_score: objects less probable are not drawn.
    """

    def __init__(self, directory: Path, metadata: Metadata, tasks: Sequence[Task], min_score: float) -> None:
        self._directory, self._metadata, self._tasks, self._min_score = directory, metadata, tasks, min_score

    def paths(self, name: str, ending: str) -> list[Path]:
        """One for each task, in their order."""
        marks = [f"_{task}" for task in self._tasks] if len(self._tasks) > 1 else [""]
        return [self._directory / f"{name}{mark}{ending}" for mark in marks]

    def are_there(self, name: str, ending: str) -> bool:
        """Whether the files exist."""
        return all(path.is_file() for path in self.paths(name, ending))

    def save(self, name: str, sample: ModelInput, output: ModelOutput) -> None:
        """Draw and write the pictures of an image."""
        pixels = _original(sample)
        for path, task in zip(self.paths(name, _PICTURE), self._tasks, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(PARTIAL_PREFIX + path.name)
            # Colours are not subsampled: outlines are one pixel wide.
            Image.fromarray(self._drawn(task, pixels, output)).save(partial, quality=_QUALITY, subsampling=0)
            os.replace(partial, path)

    @contextmanager
    def film(self, name: str, size: tuple[int, int], fps: float) -> Iterator[DrawFrame]:
        """What draws the frames of a video; leaving the block finishes the files, an exception removes them."""
        paths = self.paths(name, _FILM)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            writers = [stack.enter_context(VideoWriter(path, size, fps)) for path in paths]

            def draw(pixels: NDArray[np.uint8], output: ModelOutput) -> None:
                for task, writer in zip(self._tasks, writers, strict=True):
                    writer.write(_resized(self._drawn(task, pixels, output), size))

            yield draw

    def _drawn(self, task: Task, pixels: NDArray[np.uint8], output: ModelOutput) -> NDArray[np.uint8]:
        image = torch.tensor(pixels).permute(2, 0, 1)
        return draw_task(task, image, output[task], self._metadata, min_score=self._min_score, boxes=True)


def frame_id(video: str, number: int) -> str:
    """The image id of frame `number`, from 0, of the video of that name."""
    return f"{video}/{number:06d}"


def _original(sample: ModelInput) -> NDArray[np.uint8]:
    """The image before its resize, (height, width, 3).

    Decoded again: to send it along from the loader's workers takes shared memory, of which containers have little.
    """
    if sample["image"].shape[1:] == (sample["height"], sample["width"]):
        return sample["image"].permute(1, 2, 0).numpy()
    return read_image(sample["file_name"]).pixels


def _resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Of a film's size again: small pictures are drawn magnified."""
    return picture if picture.shape[:2] == size else np.asarray(Image.fromarray(picture).resize(size[::-1]))
