"""Frames in, frames out, the same colours; whole files or none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from m2f.data.video import VideoReader, VideoWriter

cv2 = pytest.importorskip("cv2", reason="videos take OpenCV")
SIZE = (48, 64)


def frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Red, with a green bar that grows by four columns a frame."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[:, : 4 * number] = (0, 255, 0)
    return pixels


def write(path: Path, count: int, size: tuple[int, int] = SIZE, fps: float = 12.5) -> Path:
    with VideoWriter(path, size, fps) as video:
        for number in range(count):
            video.write(frame(number, size))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with VideoReader(write(tmp_path / "a.mp4", 7)) as video:
        frames = list(video)
        assert (video.size, video.fps, video.num_frames) == (SIZE, 12.5, 7)
    assert len(frames) == 7
    for number, pixels in enumerate(frames):
        assert pixels.dtype == np.uint8 and pixels.shape == (*SIZE, 3)
        inside = np.abs(np.arange(SIZE[1]) - 4 * number) > 3  # the codec blurs the edge
        assert np.abs(pixels.astype(int) - frame(number))[:, inside].max() < 40


@pytest.mark.parametrize("fps", [10.0, 23.976, 29.97, 60.0])
def test_frame_rates_survive(tmp_path: Path, fps: float) -> None:
    with VideoReader(write(tmp_path / "a.mp4", 3, fps=fps)) as video:
        assert video.fps == pytest.approx(fps, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "MJPG"), ("a.mkv", "FFV1"), ("a.mov", "mp4v"), ("ä.webm", "VP80")]
)
def test_containers(tmp_path: Path, name: str, codec: str) -> None:
    path = str(tmp_path / name)
    out = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*codec), 10, SIZE[::-1])
    for _ in range(4):
        out.write(frame(0)[..., ::-1])
    out.release()
    with VideoReader(path) as video:
        frames = list(video)
    assert len(frames) == 4
    assert np.abs(frames[-1].astype(int) - (255, 0, 0)).max() < 8  # red, not blue


def test_an_odd_row_and_column_is_cut(tmp_path: Path) -> None:
    with VideoReader(write(tmp_path / "odd.mp4", 2, size=(49, 65))) as video:
        assert video.size == (48, 64)


def test_what_is_no_video_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.mp4"
    for content in (b"", b"no video", write(tmp_path / "whole.mp4", 5).read_bytes()[:300]):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read video .*broken\.mp4"):
            VideoReader(broken)
    with pytest.raises(FileNotFoundError, match=r"no such video: .*gone\.mp4"):
        VideoReader(tmp_path / "gone.mp4")


def test_a_film_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(path, SIZE, 10) as video:
        video.write(frame(0))
        assert not path.exists()
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    write(path, 2)
    assert list(tmp_path.iterdir()) == [path]


def test_a_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(10, 10\).*\(48, 64\)"), VideoWriter(tmp_path / "a.mp4", SIZE, 10) as video:
        video.write(frame(0, (10, 10)))


def test_a_place_that_cannot_be_written_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match=r"cannot write video .*nowhere"):
        VideoWriter(tmp_path / "nowhere" / "a.mp4", SIZE, 10)


def test_without_opencv_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="pip install opencv-python-headless"):
        VideoReader(tmp_path / "a.mp4")
