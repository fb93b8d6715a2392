"""Videos as frames, and frames as a video: the only place that asks for OpenCV, which is optional."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VIDEO_EXTENSIONS = frozenset({".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
_CODEC = "mp4v"  # MPEG-4 part 2: OpenCV's wheels bring no encoder for H.264
_FPS_OF_SILENT_FILES = 25.0


def opencv(path: str | Path) -> Any:
    """The module, to read or write the video `path`.

    Raises:
        ValueError: it is not installed, or does not load.
    """
    try:
        import cv2  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ValueError(
            f"{path} is a video, which takes OpenCV: pip install opencv-python-headless ({error})"
        ) from error
    return cv2


class VideoReader:
    """The frames of a video in order, (H, W, 3) uint8 RGB, turned as the file asks; to be iterated over once.

    Attributes:
        path: of the file.
        size: (height, width) of every frame.
        fps: frames per second; 25 where the file does not say.
        num_frames: as the file says, which may be wrong; 0 where it does not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video that OpenCV can read, or has no frame.
    """

    def __init__(self, path: str | Path) -> None:
        self._cv2 = opencv(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no such video: {path}")
        self.path = str(path)
        self._capture = self._cv2.VideoCapture(self.path)
        self._next = self._read()
        if self._next is None:
            self._capture.release()
            raise ValueError(f"cannot read video {path}: OpenCV finds no frame in it")
        self.size: tuple[int, int] = self._next.shape[:2]
        fps = self._capture.get(self._cv2.CAP_PROP_FPS)
        self.fps: float = fps if math.isfinite(fps) and fps > 0 else _FPS_OF_SILENT_FILES
        self.num_frames = max(int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)), 0)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while self._next is not None:
            yield self._cv2.cvtColor(self._next, self._cv2.COLOR_BGR2RGB)
            self._next = self._read()

    def _read(self) -> NDArray[np.uint8] | None:
        there_is_one, frame = self._capture.read()
        return frame if there_is_one else None


class VideoWriter:
    """An .mp4 under construction; leaving its `with` block puts it under its name, an exception removes it.

    Args:
        path: of the finished file; its folder exists.
        size: (height, width) of every frame.
        fps: frames per second.

    Raises:
        OSError: OpenCV cannot write there.

    Note: the codec stores pixels in pairs, so an odd last row or column is cut off.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self._cv2 = opencv(path)
        self.path, self.size = path, size
        self._partial = path.with_name(f".writing-{path.name}")
        codec = self._cv2.VideoWriter_fourcc(*_CODEC)
        self._writer = self._cv2.VideoWriter(str(self._partial), codec, fps, size[::-1])
        if not self._writer.isOpened():
            raise OSError(
                f"cannot write video {path}: OpenCV does not take {size[1]} x {size[0]} pixels at {fps} fps there"
            )

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.release()
        if kind is None:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append an (H, W, 3) uint8 RGB frame.

        Raises:
            ValueError: it has another size, which OpenCV would pass over in silence.
        """
        if frame.shape[:2] != self.size:
            raise ValueError(f"{self.path}: a frame of {frame.shape[:2]} in a video of {self.size} (height, width)")
        self._writer.write(self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2BGR))
