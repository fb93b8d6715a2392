"""A graph and what runs it, as a model: pictures in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2f.export.info import INPUT_NAME, ExportInfo
from m2f.export.runtime.answers import Answer
from m2f.export.runtime.postprocess import answer
from m2f.export.runtime.preprocess import Picture, Size, evaluation_resize, fit, make_batch, read_picture
from m2f.export.runtime.resizing import Frame
from m2f.export.runtime.session import Session, open_session
from m2f.structures.metadata import Metadata


class GraphModel:
    """An exported graph with its pre- and post-processing.

    Args:
        session: runs the graph.
        info: what the graph is.
    """

    def __init__(self, session: Session, info: ExportInfo) -> None:
        self.session, self.info = session, info

    @property
    def metadata(self) -> Metadata:
        """What the labels mean."""
        return self.info.metadata

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can answer; the graph's own mode first."""
        return self.info.tasks

    def predict(self, pictures: Sequence[Picture], tasks: Sequence[str] | None = None) -> list[Answer]:
        """Answers at each picture's own size.

        Args:
            pictures: (H, W, 3) uint8 RGB arrays, Pillow images or paths. A graph of any batch size is given one at a
                time, so that no answer depends on the sizes of its neighbours.
            tasks: any of `self.tasks`; None: the graph's mode.

        Raises:
            FileNotFoundError: there is no such picture.
            ValueError: a picture is broken or of the wrong kind, or the graph does not answer a task.
        """
        step = max(1, self.info.batch_size)
        answers: list[Answer] = []
        for start in range(0, len(pictures), step):
            pixels = [read_picture(picture) for picture in pictures[start : start + step]]
            images = [evaluation_resize(p, self.info).transpose(2, 0, 1) for p in pixels]
            answers += self.answer(images, [(p.shape[0], p.shape[1]) for p in pixels], tasks)
        return answers

    def answer(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[Size], tasks: Sequence[str] | None = None
    ) -> list[Answer]:
        """Answers for images that were resized as evaluation does; those of a graph of any batch size as one batch.

        Args:
            images: (3, h, w) uint8 RGB each.
            sizes: (height, width) at which each one's answers are wanted.
            tasks: any of `self.tasks`; None: the graph's mode.

        Raises:
            ValueError: the graph does not answer a task.
        """
        tasks = self._checked(tasks)
        step = self.info.batch_size if self.info.batch_size > 0 else max(1, len(images))
        answers: list[Answer] = []
        for start in range(0, len(images), step):
            chunk = slice(start, start + step)
            answers += self._run(images[chunk], sizes[chunk], tasks)
        return answers

    def _run(self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[Size], tasks: Sequence[str]) -> list[Answer]:
        """One run of the graph."""
        batch = make_batch([fit(image, self.info) for image in images], self.info)
        # The products of scores and masks are large, and cheaper to make of those masks that count.
        names = [name for name in self.info.output_names if name != "prob_masks"]
        outputs = dict(zip(names, self.session.run(names, {INPUT_NAME: batch.tensor}), strict=True))
        return [
            answer({name: values[i] for name, values in outputs.items()}, Frame(batch.frame, *pair), self.info, tasks)
            for i, pair in enumerate(zip(batch.sizes, sizes, strict=True))
        ]

    def _checked(self, tasks: Sequence[str] | None) -> Sequence[str]:
        unknown = [task for task in tasks or () if task not in self.tasks]
        if unknown:
            raise ValueError(
                f"this graph ({self.info.mode}, outputs {self.info.outputs}) answers {', '.join(self.tasks)} and not "
                f"{', '.join(unknown)}; a graph of export.outputs: mask_logits answers all three"
            )
        return self.tasks[:1] if tasks is None else tasks


class OnnxModel(GraphModel):
    """An ONNX file that m2f has exported, on ONNX Runtime.

    Args:
        path: plain, or encrypted.
        key: of the encryption.
        threads: of one operator; None: as many as there are cores.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `open_session`.
        ModuleNotFoundError: onnxruntime, or cryptography for an encrypted file, is not installed.
    """

    def __init__(self, path: str | PathLike[str], key: str = "", threads: int | None = None) -> None:
        super().__init__(*open_session(Path(path), key, threads))
