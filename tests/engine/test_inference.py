"""The task `inference` with a predictor that knows the answer: classes are colours, pictures are painted in them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m2f.config import CfgNode, get_cfg
from m2f.data.build import DATASET_MAPPER_REGISTRY
from m2f.engine import inference
from m2f.engine.inference import InferenceRun, InferenceSummary
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.structures.sample import ModelInput, ModelOutput

CLASSES = (
    Category(3, "red sky", is_thing=False, color=(255, 0, 0)),
    Category(5, "green box", is_thing=True, color=(0, 255, 0)),
    Category(9, "blue sea", is_thing=False, color=(0, 0, 255)),
)
METADATA = Metadata("colours", CLASSES)
RED, GREEN, BLUE = (np.array(category.color, np.uint8) for category in CLASSES)
NAMES = ["a", "b", "deep/c", "deep/d", "e"]
SIZES = [(40, 60), (50, 30), (45, 80), (30, 30), (60, 44)]


class Oracle:
    """Tells classes by colour; how sure it is depends on its batch, as a model's answer does through padding.

    Attributes:
        batches: sizes of the images of every call.
    """

    metadata, source = METADATA, "oracle"

    def __init__(self, *tasks: str) -> None:
        self.tasks = tasks or ("panoptic",)
        self.batches: list[list[tuple[int, int]]] = []

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        sizes = [tuple(sample["image"].shape[1:]) for sample in inputs]
        self.batches.append(sizes)
        score = 0.6 + sum(height * 7 + width for height, width in sizes) % 97 / 1000
        return [self._answer(sample, score) for sample in inputs]

    def _answer(self, sample: ModelInput, score: float) -> ModelOutput:
        pixels = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
        pixels = np.asarray(pixels.resize((sample["width"], sample["height"]), Image.Resampling.NEAREST))
        labels = torch.from_numpy(pixels.argmax(2))
        segments = [
            Segment(label + 1, label, CLASSES[label].is_thing, score=score) for label in labels.unique().tolist()
        ]
        boxes = labels == 1
        found = Instances(
            torch.tensor([1, 1]), torch.stack([boxes, boxes]), torch.tensor([score, 0.2]), torch.zeros(2, 4)
        )
        answers: dict[str, Any] = {
            "semantic": torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1).float(),
            "panoptic": PanopticMap(labels + 1, segments),
            "instance": found if boxes.any() else found[torch.tensor([], dtype=torch.int64)],
        }
        return ModelOutput(**{task: answers[task] for task in self.tasks})


def scene(size: tuple[int, int]) -> np.ndarray:
    """Red above, blue below, a green box in the middle."""
    (height, width), pixels = size, np.empty((*size, 3), np.uint8)
    pixels[: height // 2], pixels[height // 2 :] = RED, BLUE
    pixels[height // 4 : height // 2, width // 3 : width // 2] = GREEN
    return pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five scenes of different sizes."""
    folder = tmp_path / "photos"
    for name, size in zip(NAMES, SIZES, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(size)).save(folder / f"{name}.png")
    return folder


def spec(*inputs: Path, **keys: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.device = "cpu"
    cfg.dataset.test.num_workers = 0
    cfg.dataset.augmentation.test_min_size = 32
    cfg.inference.input = [str(path) for path in inputs]
    cfg.inference.batch_size = 2
    for key, value in keys.items():
        cfg.inference[key] = value
    return cfg


def run(cfg: CfgNode, directory: Path, predictor: Any = None) -> InferenceSummary:
    directory.mkdir(exist_ok=True)
    return InferenceRun(cfg, directory, lambda: predictor or Oracle()).run()


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_is_answered_in_batches(photos: Path, tmp_path: Path, num_workers: int) -> None:
    cfg, oracle = spec(photos), Oracle()
    cfg.dataset.test.num_workers = num_workers
    summary = run(cfg, tmp_path / "out", oracle)
    assert (summary.images, summary.skipped, summary.unreadable) == (5, 0, [])
    assert summary.seconds > 0
    assert [len(batch) for batch in oracle.batches] == [2, 2, 1]
    assert min(oracle.batches[0][0]) == 32  # resized
    written = tree(tmp_path / "out")
    assert {name for name in written if name.startswith("overlays")} == {f"overlays/{name}.jpg" for name in NAMES}
    assert json.loads(written["unreadable.json"]) == []
    rows = json.loads(written["predictions/panoptic.json"])
    assert [row["id"] for row in rows["images"]] == NAMES
    assert {row["category_id"] for row in rows["annotations"][0]["segments_info"]} == {3, 5, 9}
    for name, size in zip(NAMES, SIZES, strict=True):
        ids = pixels_of(tmp_path / f"out/predictions/panoptic/{name}.png")
        assert ids.shape == (*size, 3)
        assert (ids[..., 0] == scene(size).argmax(2) + 1).mean() > 0.9  # it was answered at another size


def test_batch_size_of_the_test_split(photos: Path, tmp_path: Path) -> None:
    cfg, oracle = spec(photos, batch_size=-1), Oracle()
    cfg.dataset.test.batch_size = 4
    run(cfg, tmp_path / "out", oracle)
    assert [len(batch) for batch in oracle.batches] == [4, 1]


def test_red_stays_red(tmp_path: Path) -> None:
    Image.fromarray(np.broadcast_to(RED, (350, 400, 3))).save(tmp_path / "red.png")
    for task in ("semantic", "panoptic", "instance"):  # red on red, or nothing at all
        run(spec(tmp_path / "red.png"), tmp_path / task, Oracle(task))
        overlay = pixels_of(tmp_path / task / "overlays/red.jpg").astype(int)
        assert overlay.shape == (350, 400, 3)  # the image's own size, not that at which it was answered
        off = np.abs(overlay - (255, 0, 0)).max(2) > 4
        assert off.mean() < 0.02, task  # but for the text


def test_overlays_keep_the_detail_of_the_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (330, 340, 3), dtype=np.uint8)
    noise[..., 1] = 0  # no box
    Image.fromarray(noise).save(tmp_path / "noise.png")
    run(spec(tmp_path / "noise.png"), tmp_path / "out", Oracle("instance"))
    assert np.abs(pixels_of(tmp_path / "out/overlays/noise.jpg").astype(int) - noise).mean() < 8


def test_several_tasks(photos: Path, tmp_path: Path) -> None:
    run(spec(photos), tmp_path / "out", Oracle("semantic", "instance"))
    names = set(tree(tmp_path / "out"))
    expected = {f"overlays/{name}_{task}.jpg" for name in NAMES for task in ("semantic", "instance")}
    assert {name for name in names if name.startswith("overlays")} == expected
    assert {"predictions/instance.json", "predictions/semantic/deep/c.png"} <= names
    assert set(np.unique(pixels_of(tmp_path / "out/predictions/semantic/deep/c.png"))) == {3, 5, 9}


def test_scores_that_count(photos: Path, tmp_path: Path) -> None:
    def out(name: str, **keys: Any) -> dict[str, bytes]:
        run(spec(photos / "a.png", **keys), tmp_path / name, Oracle("instance"))
        return tree(tmp_path / name)

    usual, strict, lax = out("usual"), out("strict", score_threshold=0.99), out("lax", score_threshold=0.1)
    assert len({files["overlays/a.jpg"] for files in (usual, strict, lax)}) == 3
    assert usual["predictions/instance.json"] == strict["predictions/instance.json"]
    assert len(json.loads(usual["predictions/instance.json"])) == 2
    picky = out("picky", min_score=0.5)
    assert len(json.loads(picky["predictions/instance.json"])) == 1
    assert picky["overlays/a.jpg"] == usual["overlays/a.jpg"]


def test_only_one_kind_of_result(photos: Path, tmp_path: Path) -> None:
    run(spec(photos, save_overlays=False), tmp_path / "predictions")
    run(spec(photos, save_predictions=False), tmp_path / "overlays")
    assert {path.name for path in (tmp_path / "predictions").iterdir()} == {"predictions", "unreadable.json"}
    assert {path.name for path in (tmp_path / "overlays").iterdir()} == {"overlays", "unreadable.json"}


def test_an_annotated_test_split(tmp_path: Path, spec_file: Path) -> None:
    cfg = spec()
    cfg.dataset.test.name = "shapes_panoptic_val"
    summary = run(cfg, tmp_path / "out", Oracle("semantic"))
    rows = json.loads((tmp_path / "out/predictions/semantic.json").read_text())["images"]
    assert summary.images == len(rows) == 3
    assert all(isinstance(row["id"], int) for row in rows)
    overlays = {path.stem for path in (tmp_path / "out/overlays").iterdir()}
    assert overlays == {Path(row["file_name"]).stem for row in rows}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_images_do_not_stop_the_others(
    photos: Path, tmp_path: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("m2f"), "propagate", True)
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:60])
    (photos / "deep/words.jpg").write_text("no picture")
    cfg = spec(photos)
    cfg.dataset.test.num_workers = num_workers
    summary = run(cfg, tmp_path / "out")
    assert summary.images == 4
    assert [name for name, _ in summary.unreadable] == [str(photos / "b.png"), str(photos / "deep/words.jpg")]
    listed = json.loads((tmp_path / "out/unreadable.json").read_text())
    assert [(row["file"], row["reason"]) for row in listed] == summary.unreadable
    assert "2 files could not be read" in caplog.text and "words.jpg" in caplog.text
    assert len(json.loads((tmp_path / "out/predictions/panoptic.json").read_text())["images"]) == 4


def test_a_run_without_any_image_has_failed(tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"none of 1 files could be read.*words\.jpg"):
        run(spec(tmp_path / "words.jpg"), tmp_path / "out")
    assert len(json.loads((tmp_path / "out/unreadable.json").read_text())) == 1


def test_inputs_are_looked_for_before_anything_is_loaded(tmp_path: Path) -> None:
    def load() -> Any:
        pytest.fail("the model was loaded")

    with pytest.raises(FileNotFoundError, match="nowhere"):
        InferenceRun(spec(tmp_path / "nowhere"), tmp_path / "out", load)


class Stop(dict):
    """An answer that ends the process, or the run, when it is asked for the n-th time."""

    def __init__(self, output: ModelOutput, asked: int, end: Callable[[], Any]) -> None:
        super().__init__(output)
        self._left, self._end = asked, end

    def __getitem__(self, key: str) -> Any:
        self._left -= 1
        if self._left == 0:
            self._end()
        return super().__getitem__(key)


class Mortal(Oracle):
    """Ends at answer number `image`, before it is drawn (asked = 1) or after that and before it is saved (2)."""

    def __init__(self, image: int, asked: int, end: Callable[[], Any]) -> None:
        super().__init__()
        self._left, self._asked, self._end = image, asked, end

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        outputs = super().__call__(inputs)
        if 0 <= self._left < len(outputs):
            outputs[self._left] = Stop(outputs[self._left], self._asked, self._end)  # type: ignore[call-overload]
        self._left -= len(outputs)
        return outputs


def _kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("image", "asked"), [(0, 1), (1, 1), (1, 2), (2, 2), (4, 1)])
def test_a_killed_run_that_is_begun_again_gives_the_same_files(
    photos: Path, tmp_path: Path, image: int, asked: int
) -> None:
    (photos / "broken.png").write_text("no picture")
    whole = run(spec(photos), tmp_path / "whole")
    cfg = spec(photos, skip_done=True)
    mortal = Mortal(image, asked, _kill_myself)
    process = multiprocessing.get_context("fork").Process(target=run, args=(cfg, tmp_path / "killed", mortal))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed/predictions/panoptic.json").exists()
    again = run(cfg, tmp_path / "killed")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert again.skipped == image
    assert again.images + again.skipped == whole.images == 5


def test_what_is_done_is_skipped(photos: Path, tmp_path: Path) -> None:
    cfg = spec(photos, skip_done=True)
    run(cfg, tmp_path / "out")
    before = tree(tmp_path / "out")
    idle = Oracle()
    summary = run(cfg, tmp_path / "out", idle)
    assert (summary.images, summary.skipped, idle.batches) == (0, 5, [])
    assert tree(tmp_path / "out") == before
    (tmp_path / "out/overlays/deep/c.jpg").unlink()
    busy = Oracle()
    summary = run(cfg, tmp_path / "out", busy)
    assert (summary.images, summary.skipped, len(busy.batches)) == (1, 4, 1)
    assert tree(tmp_path / "out") == before
    assert run(spec(photos), tmp_path / "out").skipped == 0  # nothing is, unless it is asked for
    assert tree(tmp_path / "out") == before


def test_results_inside_the_input_folder_are_no_inputs(photos: Path) -> None:
    assert [run(spec(photos), photos / "out").images for _ in range(2)] == [5, 5]


@pytest.mark.parametrize("tile_size", [[], [16, 16]])
def test_tiles_want_the_image_as_it_is(photos: Path, tmp_path: Path, tile_size: list[int]) -> None:
    oracle = Oracle()
    run(spec(photos, tile_size=tile_size), tmp_path / "out", oracle)
    assert ([size for batch in oracle.batches for size in batch] == SIZES) == bool(tile_size)


def test_memory_does_not_grow_with_the_number_of_images(photos: Path, tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Watched(Oracle):
        def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
            nonlocal most
            most = max(most, sum(ref() is not None for ref in alive))
            outputs = super().__call__(inputs)
            alive.extend(weakref.ref(sample["image"]) for sample in inputs)
            alive.extend(weakref.ref(output["panoptic"].ids) for output in outputs)
            return outputs

    run(spec(photos, batch_size=1), tmp_path / "out", Watched())
    assert len(alive) == 10
    assert most <= 2  # those of the batch before


def test_progress_is_logged_where_there_is_no_terminal(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("m2f"), "propagate", True)
    monkeypatch.setattr(inference, "_LOG_PERIOD", -1.0)
    with caplog.at_level(logging.INFO, "m2f"):
        run(spec(photos), tmp_path / "out")
    assert "2 of 5 images, " in caplog.text and "5 of 5 images, " in caplog.text
    assert "5 images answered in" in caplog.text and str(tmp_path / "out") in caplog.text


@pytest.mark.realdata
def test_real_photographs(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "camvid/images"
    some = sorted(folder.rglob("*.*"))[:3]
    names = tmp_path / "some.txt"
    names.write_text("\n".join(map(str, some)))
    assert run(spec(names), tmp_path / "out", Oracle("panoptic", "instance")).images == 3
    for path in some:
        with Image.open(path) as photo, Image.open(tmp_path / f"out/overlays/{path.stem}_panoptic.jpg") as overlay:
            assert overlay.size == photo.size


# Videos


def film(path: Path, scenes: Sequence[np.ndarray], fps: float = 12.5) -> Path:
    from m2f.data.video import VideoWriter

    with VideoWriter(path, scenes[0].shape[:2], fps) as video:
        for pixels in scenes:
            video.write(pixels)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Seven frames, all alike; smaller than what is drawn magnified."""
    pytest.importorskip("cv2", reason="videos take OpenCV")
    return film(tmp_path / "clip.mp4", [scene((48, 64))] * 7)


def frames_of(path: Path) -> list[np.ndarray]:
    from m2f.data.video import VideoReader

    with VideoReader(path) as video:
        return list(video)


def test_a_video_is_answered_frame_by_frame(clip: Path, photos: Path, tmp_path: Path) -> None:
    from m2f.data.video import VideoReader

    cfg, oracle = spec(photos / "a.png", clip, batch_size=3), Oracle("panoptic", "semantic")
    summary = run(cfg, tmp_path / "out", oracle)
    assert (summary.images, summary.skipped, summary.unreadable) == (8, 0, [])
    assert [len(batch) for batch in oracle.batches] == [1, 3, 3, 1]
    names = set(tree(tmp_path / "out"))
    assert {f"overlays/clip_{task}.mp4" for task in oracle.tasks} <= names
    assert {f"predictions/panoptic/clip/{number:06d}.png" for number in range(7)} <= names
    with VideoReader(tmp_path / "out/overlays/clip_semantic.mp4") as video:
        assert (video.size, video.fps, video.num_frames) == ((48, 64), 12.5, 7)
    rows = json.loads((tmp_path / "out/predictions/panoptic.json").read_text())["images"]
    assert [row["id"] for row in rows][-2:] == ["clip/000005", "clip/000006"]


def test_the_colours_of_a_film_are_right(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="videos take OpenCV")
    red = film(tmp_path / "red.mp4", [np.broadcast_to(RED, (336, 400, 3))] * 2)
    run(spec(red), tmp_path / "out", Oracle("instance"))
    for frame in frames_of(tmp_path / "out/overlays/red.mp4"):
        assert np.abs(frame.astype(int) - (255, 0, 0)).max() < 12


def test_a_broken_video_does_not_stop_the_others(
    clip: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:200])
    summary = run(spec(tmp_path / "broken.mp4", photos / "a.png", clip), tmp_path / "out")
    assert summary.images == 8
    assert [name for name, _ in summary.unreadable] == [str(tmp_path / "broken.mp4")]
    assert not list((tmp_path / "out/overlays").rglob("broken*"))


def test_a_video_that_is_cut_short_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cv2 = pytest.importorskip("cv2", reason="videos take OpenCV")
    monkeypatch.setattr(logging.getLogger("m2f"), "propagate", True)
    path = tmp_path / "long.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(20):
        writer.write(scene((48, 64)))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    summary = run(spec(path), tmp_path / "out")
    assert 0 < summary.images < 20
    assert f"{path} announces 20 frames; {summary.images} could be read" in caplog.text


@pytest.mark.parametrize("kept", [{}, {"save_overlays": False}, {"save_predictions": False}])
def test_an_interrupted_video_is_done_again(clip: Path, tmp_path: Path, kept: dict[str, bool]) -> None:
    whole = run(spec(clip, **kept), tmp_path / "whole")
    cfg = spec(clip, skip_done=True, **kept)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cfg, tmp_path / "out", Mortal(3, 1, interrupt))
    assert not list((tmp_path / "out").rglob("*.mp4"))
    run(cfg, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    idle = Oracle()
    summary = run(cfg, tmp_path / "out", idle)
    assert (summary.images, summary.skipped, idle.batches) == (0, 7, [])
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert whole.images == 7


def test_predictions_can_be_added_to_a_film(clip: Path, tmp_path: Path) -> None:
    whole = run(spec(clip), tmp_path / "whole")
    run(spec(clip, save_predictions=False), tmp_path / "out")
    assert run(spec(clip, skip_done=True), tmp_path / "out").images == whole.images
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_frames_need_a_mapper_that_takes_them(clip: Path, tmp_path: Path) -> None:
    DATASET_MAPPER_REGISTRY.register("MyMapper")(lambda *_: None)
    cfg = spec(clip)
    cfg.dataset.test.mapper = "MyMapper"
    try:
        with pytest.raises(ValueError, match=r"clip\.mp4.*dataset\.test\.mapper.*MyMapper"):
            run(cfg, tmp_path / "out")
    finally:
        DATASET_MAPPER_REGISTRY._obj_map.pop("MyMapper")
