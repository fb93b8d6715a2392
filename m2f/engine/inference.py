"""The task `inference`: images and videos in, overlays and saved predictions out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from m2f.checkpoint.atomic import replace_file
from m2f.config import CfgNode
from m2f.data.catalog import LoadedDataset
from m2f.data.images import Picture
from m2f.data.inputs import build_inputs
from m2f.data.loader import Failure, build_eval_loader, build_eval_mapper, eval_batch_size
from m2f.data.mappers import EvalMapper
from m2f.data.packed import PackedRecords
from m2f.data.video import VideoReader
from m2f.engine.inference_results import OVERLAYS, PREDICTIONS, DrawFrame, InferenceResults, frame_id
from m2f.engine.predictor import Predictor
from m2f.structures.sample import ModelInput, Record

UNREADABLE = "unreadable.json"
_LOG_PERIOD = 30.0  # seconds between two lines of the log
_LISTED = 20  # unreadable files in the log
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class InferenceSummary:
    """What a run did.

    Attributes:
        images: images and frames answered.
        skipped: images and frames whose results were there already.
        unreadable: (file, what is wrong with it) of images and videos.
        seconds: it took, without loading what answers.
    """

    images: int
    skipped: int
    unreadable: list[tuple[str, str]]
    seconds: float


class InferenceRun:
    """Answers what `inference.input` names; results lie in `overlays`, `predictions` and `unreadable.json`.

    Inputs are found before anything is loaded. A file that cannot be read does not stop the others.

    Args:
        cfg: the whole configuration.
        directory: of the results.
        build_predictor: loads what answers.

    Raises:
        FileNotFoundError, ValueError, KeyError: see `build_inputs`; or what `build_predictor` raises.
    """

    def __init__(self, cfg: CfgNode, directory: Path, build_predictor: Callable[[], Predictor]) -> None:
        self._directory = directory
        self._inputs = build_inputs(cfg, (directory / OVERLAYS, directory / PREDICTIONS))
        self._predictor = build_predictor()
        metadata = self._predictor.metadata
        self._mapper = build_eval_mapper(cfg, metadata, "test", tasks=())
        if self._inputs.videos and not isinstance(self._mapper, EvalMapper):
            raise ValueError(
                f"inference.input names the video {self._inputs.videos[0]}; frames need dataset.test.mapper = "
                f"EvalMapper, and it is {cfg.dataset.test.mapper}"
            )
        self._results = InferenceResults(cfg.inference, directory, self._predictor, self._inputs.name_of.root)
        self._batch_size = eval_batch_size(cfg, "test")
        self._answered = self._skipped = 0
        self._failures: list[Failure] = []
        self._records = PackedRecords(self._to_do())
        # No method of this object takes the failures: a loader in a cycle of references waits for its workers' deaths.
        data, take = LoadedDataset(metadata, self._records), self._failures.append
        self._loader = build_eval_loader(cfg, data, "test", tasks=(), on_failure=take)

    def run(self) -> InferenceSummary:
        """Answer all images, then all videos.

        Raises:
            ValueError: there is no image or video that could be read.
        """
        start = time.perf_counter()
        for samples in _shown(self._loader, len(self._records), "image"):
            self._answer_images(samples)
        for path in self._inputs.videos:
            self._answer_video(path)
        self._results.finish()
        unreadable = [(failure.file_name, failure.message) for failure in self._failures]
        summary = InferenceSummary(self._answered, self._skipped, unreadable, time.perf_counter() - start)
        self._report(summary)
        return summary

    def _to_do(self) -> Iterator[Record]:
        """The images, without batches that are done.

        Others are done again as a whole: an answer may depend, if little, on how far its batch is padded, and so a run
        that is begun again gives what it would have given.
        """
        for batch in _batches(self._inputs.images, self._batch_size):
            done = sum(self._is_done(record) for record in batch)
            self._skipped += done
            if done < len(batch):
                yield from batch

    def _is_done(self, image: Record | ModelInput) -> bool:
        return self._results.has_image(self._inputs.name_of(image["file_name"]), image["image_id"])

    def _answer_images(self, samples: list[ModelInput]) -> None:
        for sample, output in zip(samples, self._predictor(samples), strict=True):
            if not self._is_done(sample):
                self._results.keep_image(self._inputs.name_of(sample["file_name"]), sample, output)
                self._answered += 1

    def _answer_video(self, path: str) -> None:
        name = self._inputs.name_of(path)
        if done := self._results.done_frames(name):
            self._skipped += done
            return
        try:
            video = VideoReader(path)
        except (ValueError, OSError) as error:
            self._failures.append(Failure(path, type(error), str(error)))
            return
        with video, self._results.film(name, video.size, video.fps) as draw:
            frames = _batches(self._frames(video, name), self._batch_size)
            for batch in _shown(frames, video.num_frames, "frame"):
                self._answer_frames(batch, draw)

    def _frames(self, video: VideoReader, name: str) -> Iterator[tuple[Picture, ModelInput]]:
        assert isinstance(self._mapper, EvalMapper)
        number = 0
        for number, pixels in enumerate(video, 1):
            record: Record = {"file_name": video.path, "image_id": frame_id(name, number - 1)}
            picture = Picture(pixels, video.size, orientation=1)
            yield picture, self._mapper.of_picture(record, picture, np.random.default_rng(number))
        if number < video.num_frames:
            logger.warning("%s announces %d frames; %d could be read", video.path, video.num_frames, number)

    def _answer_frames(self, frames: list[tuple[Picture, ModelInput]], draw: DrawFrame | None) -> None:
        """Frames of a batch, unless they are not drawn and their predictions are there."""
        samples = [sample for _, sample in frames]
        if draw is None and all(self._results.has_prediction(sample["image_id"]) for sample in samples):
            self._skipped += len(samples)
            return
        for (picture, sample), output in zip(frames, self._predictor(samples), strict=True):
            if draw is not None:
                draw(picture.pixels, output)
            self._results.keep_prediction(sample, output)
        self._answered += len(samples)

    def _report(self, summary: InferenceSummary) -> None:
        rows = [{"file": name, "reason": reason} for name, reason in summary.unreadable]
        replace_file(self._directory / UNREADABLE, partial(_write_json, rows))
        logger.info(
            "%d images answered in %.1f s (%.1f per second), %d were done before; results are in %s",
            summary.images,
            summary.seconds,
            summary.images / summary.seconds,
            summary.skipped,
            self._directory,
        )
        if not rows:
            return
        reasons = [reason for _, reason in summary.unreadable]
        text = "\n".join(reasons[:_LISTED]) + (f"\nand {len(rows) - _LISTED} more" if len(rows) > _LISTED else "")
        logger.warning("%d files could not be read; %s lists them:\n%s", len(rows), UNREADABLE, text)
        if summary.images + summary.skipped == 0:
            raise ValueError(
                f"none of {len(rows)} files could be read, see {self._directory / UNREADABLE}: {reasons[0]}"
            )


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=1))


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size`, the last one possibly shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _shown(batches: Iterable[list[T]], total: int, unit: str) -> Iterator[list[T]]:
    """The batches; how far they are is shown as a bar on a terminal, elsewhere as a line of the log now and then.

    Args:
        batches: to go through.
        total: items in them, as far as is known; 0 where it is not.
        unit: what an item is called.
    """
    start = spoke = time.monotonic()
    done = 0
    with tqdm(total=total or None, unit=unit, leave=False, disable=None) as bar:
        for batch in batches:
            yield batch
            done += len(batch)
            bar.update(len(batch))
            now = time.monotonic()
            if bar.disable and now - spoke > _LOG_PERIOD:
                spoke = now
                logger.info("%d of %s %ss, %.1f per second", done, total or "?", unit, done / (now - start))
