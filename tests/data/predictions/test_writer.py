"""Files of the official formats; names; what a killed run leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry
from m2f.data.mappers import EvalMapper
from m2f.data.predictions import PredictionWriter, SavedPredictions
from m2f.data.predictions.formats import pixel_values
from m2f.data.transforms.policies import ShortestEdge
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, contiguous_metadata, raw_id_metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.structures.sample import TASKS

IDS = np.array([[1, 1, 0, 0], [1, 70000, 70000, 0], [0, 70000, 70000, 0]])
SEGMENTS = [Segment(1, 2, False, score=0.75), Segment(70000, 1, True, score=0.5)]
NAMES = ("instance.json", "panoptic.json", "semantic.json", "predictions.jsonl")


def sample(image_id="a", file_name="/pictures/a.jpg"):
    return {"image_id": image_id, "file_name": file_name, "height": 3, "width": 4}


def output():
    masks = torch.from_numpy(np.stack([IDS == 70000, IDS == 1]))
    return {
        "panoptic": PanopticMap(torch.from_numpy(IDS), SEGMENTS),
        "instance": Instances(torch.tensor([1, 0]), masks, torch.tensor([0.5, 0.25])),
        "semantic": torch.from_numpy(np.where(IDS == 0, 255, np.where(IDS == 1, 2, 1))),
    }


def written(folder: Path, metadata, tasks=TASKS, items=None, **options) -> Path:
    writer = PredictionWriter(folder, metadata, tasks, **options)
    for one in items or [sample()]:
        writer.write(one, output())
    writer.finish()
    return folder


def read(path: Path):
    return json.loads(path.read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_are_what_official_tools_read(tmp_path: Path, scenes) -> None:
    written(tmp_path, scenes.metadata)
    first, second = read(tmp_path / "instance.json")
    assert first == {
        "image_id": "a",
        "category_id": 7,
        "segmentation": {"size": [3, 4], "counts": first["segmentation"]["counts"]},
        "bbox": [1.0, 1.0, 2.0, 2.0],
        "score": 0.5,
    }
    assert (second["category_id"], second["bbox"]) == (3, [0.0, 0.0, 2.0, 2.0])

    panoptic = read(tmp_path / "panoptic.json")
    assert panoptic["images"] == [{"id": "a", "file_name": "a.jpg", "height": 3, "width": 4}]
    assert panoptic["annotations"][0]["segments_info"] == [
        {"id": 1, "category_id": 90, "area": 3, "bbox": [0, 0, 2, 2], "isthing": 0, "iscrowd": 0, "score": 0.75},
        {"id": 70000, "category_id": 7, "area": 4, "bbox": [1, 1, 2, 2], "isthing": 1, "iscrowd": 0, "score": 0.5},
    ]
    assert [row["isthing"] for row in panoptic["categories"]] == [1, 1, 0, 0]
    pixels = np.asarray(Image.open(tmp_path / "panoptic/a.png")).astype(int)
    assert (pixels @ np.array([1, 256, 65536]) == IDS).all()

    mask = np.asarray(Image.open(tmp_path / "semantic/a.png"))
    assert mask.dtype == np.uint8
    assert (mask == np.where(IDS == 0, 255, np.where(IDS == 1, 90, 7))).all()
    assert sorted(files(tmp_path)) == sorted([*NAMES, "panoptic/a.png", "semantic/a.png"])


def test_maps_and_masks_are_truths_to_the_readers_of_datasets(tmp_path: Path, scenes) -> None:
    folder = written(tmp_path / "out", scenes.metadata)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg")
    (tmp_path / "map.json").write_text(json.dumps(read(folder / "panoptic.json")["categories"]))
    shared = {"image_dir": str(tmp_path), "label_map": str(tmp_path / "map.json")}
    files_of = {"panoptic_dir": str(folder / "panoptic"), "mask_dir": str(folder / "semantic")}
    panoptic = DatasetEntry("p", "coco_panoptic", str(folder / "panoptic.json"), **shared, **files_of)
    (tmp_path / "pairs.jsonl").write_text('{"img": "a.jpg", "segm": "out/semantic/a.png"}\n')
    pairs = DatasetEntry("s", "ade", str(tmp_path / "pairs.jsonl"), label_map=shared["label_map"])
    for entry, task in ((panoptic, "panoptic"), (pairs, "semantic")):
        metadata, records = load_dataset(entry)
        truth = EvalMapper(metadata, ShortestEdge(3, 4), (task,))(records[0], np.random.default_rng(0))[task]
        expected = output()[task]
        assert torch.equal(getattr(truth, "ids", truth), getattr(expected, "ids", expected)), task


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (contiguous_metadata("from 1", [Category(1, "a"), Category(9, "b")]), (np.uint8, [1, 9, 255])),
        (contiguous_metadata("from 0", [Category(0, "a"), Category(1, "b")]), (np.uint8, [0, 1, 255])),
        (contiguous_metadata("wide", [Category(300, "a"), Category(255, "b")]), (np.uint16, [300, 255, 0])),
        (contiguous_metadata("far", [Category(1, "a")], ignore_label=65535), (np.uint16, [1, 65535])),
        (contiguous_metadata("below", [Category(1, "a")], ignore_label=-1), (np.uint8, [1, 0])),
        (raw_id_metadata("gap", [Category(1, "a"), Category(3, "b")], 3), (np.uint8, [1, 255, 3, 255])),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_pixels_are_category_ids_and_read_back_to_the_same_labels(tmp_path: Path, metadata, expected) -> None:
    values = pixel_values(metadata)
    assert (values.dtype, values.tolist()) == expected
    categories = metadata.categories
    labels = torch.tensor([[n for n, c in enumerate(categories) if not c.is_gap] + [metadata.ignore_label]])
    one = {"image_id": 1, "file_name": "a.png", "height": 1, "width": labels.shape[1]}
    writer = PredictionWriter(tmp_path, metadata, ["semantic"])
    writer.write(one, {"semantic": labels})
    writer.finish()
    assert torch.equal(SavedPredictions([str(tmp_path)], metadata, ["semantic"])([one])[0]["semantic"], labels)


@pytest.mark.parametrize(
    "metadata",
    [
        contiguous_metadata("full", [Category(0, "a"), Category(255, "b")]),
        contiguous_metadata("large", [Category(70000, "a")]),
    ],
)
def test_classes_that_no_mask_can_hold_are_refused(tmp_path: Path, metadata) -> None:
    with pytest.raises(ValueError, match=r"cannot be saved as semantic masks.*ignore_label = 255"):
        PredictionWriter(tmp_path, metadata, ["semantic"])
    PredictionWriter(tmp_path, metadata, ["panoptic"])


def test_instances_below_the_least_score_are_left_out(tmp_path: Path, scenes) -> None:
    written(tmp_path, scenes.metadata, ["instance"], min_score=0.3)
    assert [row["score"] for row in read(tmp_path / "instance.json")] == [0.5]
    assert sorted(files(tmp_path)) == ["instance.json", "predictions.jsonl"]


@pytest.mark.parametrize(
    ("ids", "segments", "message"),
    [
        (IDS, SEGMENTS[:1], "other ids than its segments"),
        (IDS, [*SEGMENTS, Segment(5, 0, True)], "other ids than its segments"),
        (IDS * 1000, SEGMENTS, "a PNG holds 0 to 16777215"),
    ],
)
def test_a_map_that_contradicts_itself_is_refused(tmp_path: Path, scenes, ids, segments, message) -> None:
    writer = PredictionWriter(tmp_path, scenes.metadata, ["panoptic"])
    with pytest.raises(ValueError, match=message):
        writer.write(sample(), {"panoptic": PanopticMap(torch.from_numpy(ids), segments)})


def pngs(folder: Path) -> list[str]:
    """In the order of the images."""
    return [row["file_name"] for row in read(folder / "semantic.json")["annotations"]]


def test_names_follow_the_images_and_never_meet(tmp_path: Path, scenes) -> None:
    items = [
        sample(1, "data/city/a.jpg"),
        sample(2, "data/city/a.png"),
        sample(3, "data/town/a.jpg"),
        sample(4, "data/city/A.JPG"),
        sample(5, "/elsewhere/b.jpg"),
        sample("town/b", "data/town/b.jpg"),
        sample("town/b.jpg", "data/town/b.jpg"),
        sample("v1.5", "data/v1.5.jpg"),
    ]
    folder = written(tmp_path, scenes.metadata, ["semantic"], items, image_dir="data")
    names = ["city/a", "city/a-2", "town/a", "city/A-3", "b", "town/b", "town/b-2", "v1.5"]
    assert pngs(folder) == [f"{name}.png" for name in names]
    assert {name for name in files(folder) if name.endswith(".png")} == {f"semantic/{name}.png" for name in names}
    images = [row["file_name"] for row in read(folder / "semantic.json")["images"]]
    assert images[:5] == ["city/a.jpg", "city/a.png", "town/a.jpg", "city/A.JPG", "b.jpg"]
    saved = SavedPredictions([str(folder)], scenes.metadata, ["semantic"])
    saved.check(items)


@pytest.mark.parametrize("image_id", ["../../x", "/etc/x", "C:\\x", "a/../../../x", "..", "", "x\0y", "con|x"])
def test_no_name_leaves_the_folder(tmp_path: Path, scenes, image_id: str) -> None:
    folder = written(tmp_path / "deep" / "out", scenes.metadata, TASKS, [sample(image_id, "/a/b.png")])
    assert [path for path in files(tmp_path) if not path.startswith("deep/out/")] == []
    saved = SavedPredictions([str(folder)], scenes.metadata, TASKS)
    assert torch.equal(saved([sample(image_id)])[0]["semantic"], output()["semantic"])


def test_an_image_comes_once(tmp_path: Path, scenes) -> None:
    with pytest.raises(ValueError, match=r"prediction for image_id 'a' already"):
        written(tmp_path, scenes.metadata, TASKS, [sample(), sample()])


def items(count: int) -> list:
    return [sample(number, f"/pictures/{number // 2}.{'jpg' if number % 2 else 'png'}") for number in range(count)]


def test_a_run_cut_short_at_any_byte_goes_on_to_the_same_files(tmp_path: Path, scenes) -> None:
    whole = files(written(tmp_path / "whole", scenes.metadata, TASKS, items(4)))
    journal = whole["predictions.jsonl"]
    folder = tmp_path / "cut"
    for end in range(journal.index(b"\n") + 1, len(journal) + 1, 97):
        folder.mkdir(exist_ok=True)
        (folder / "predictions.jsonl").write_bytes(journal[:end])
        writer = PredictionWriter(folder, scenes.metadata, TASKS, resume=True)
        assert writer.done == set(range(journal[:end].count(b"\n") - 1))
        for one in items(4):
            if one["image_id"] not in writer.done:
                writer.write(one, output())
        writer.finish()
        assert {name: (folder / name).read_bytes() for name in NAMES} == {name: whole[name] for name in NAMES}
    assert files(folder).items() <= whole.items()


def _write_slowly(folder: Path, metadata, count: int) -> None:
    writer = PredictionWriter(folder, metadata, TASKS, resume=True)
    for one in items(count):
        if one["image_id"] not in writer.done:
            writer.write(one, output())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # the child only writes files
def test_a_killed_process_loses_nothing_that_was_done(tmp_path: Path, scenes) -> None:
    count, folder = 100, tmp_path / "killed"
    kills = 0
    for delay in (0.01, 0.03, 0.02, 0.04):
        process = multiprocessing.get_context("fork").Process(
            target=_write_slowly, args=(folder, scenes.metadata, count)
        )
        process.start()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        for path in folder.rglob("*.png"):
            Image.open(path).load()  # none is half written
    assert kills > 0
    _write_slowly(folder, scenes.metadata, count)
    PredictionWriter(folder, scenes.metadata, TASKS, resume=True).finish()
    whole = files(written(tmp_path / "whole", scenes.metadata, TASKS, items(count)))
    assert {name: data for name, data in files(folder).items() if not name.endswith(".tmp")} == whole


@pytest.mark.parametrize(
    ("metadata", "tasks", "min_score", "message"),
    [
        (contiguous_metadata("other", [Category(3, "disc")]), TASKS, 0.0, "have classes .*disc"),
        (None, ["semantic"], 0.0, r'have tasks \["semantic", "panoptic", "instance"\], this run has \["semantic"\]'),
        (None, TASKS, 0.5, r"have min_score 0\.0, this run has 0\.5"),
    ],
)
def test_another_runs_journal_is_not_gone_on_with(tmp_path, scenes, metadata, tasks, min_score, message) -> None:
    written(tmp_path, scenes.metadata)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message):
        PredictionWriter(tmp_path, metadata or scenes.metadata, tasks, min_score, resume=True)
    assert files(tmp_path) == before


def test_a_damaged_line_is_named(tmp_path: Path, scenes) -> None:
    journal = written(tmp_path, scenes.metadata, TASKS, items(3)) / "predictions.jsonl"
    lines = journal.read_text().splitlines()
    lines[2] = lines[2][:20]
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"predictions\.jsonl:3:\d+: not valid JSON"):
        PredictionWriter(tmp_path, scenes.metadata, TASKS, resume=True)


def test_starting_afresh_deletes_what_the_writer_wrote_and_nothing_else(tmp_path: Path, scenes) -> None:
    written(tmp_path, scenes.metadata, TASKS, items(4))
    (tmp_path / "semantic/notes.txt").write_text("mine")
    written(tmp_path, scenes.metadata, TASKS, [sample("new")])
    names = [*NAMES, "panoptic/new.png", "semantic/new.png", "semantic/notes.txt"]
    assert sorted(files(tmp_path)) == sorted(names)
    assert [row["id"] for row in read(tmp_path / "panoptic.json")["images"]] == ["new"]


@pytest.mark.parametrize("resume", [False, True])
def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path, scenes, resume: bool) -> None:
    (tmp_path / "panoptic.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"panoptic\.json is there without the predictions\.jsonl"):
        PredictionWriter(tmp_path, scenes.metadata, TASKS, resume=resume)
    assert files(tmp_path) == {"panoptic.json": b"{}"}


def test_nothing_answered_is_readable_too(tmp_path: Path, scenes) -> None:
    PredictionWriter(tmp_path, scenes.metadata, TASKS).finish()
    assert read(tmp_path / "instance.json") == []
    assert read(tmp_path / "panoptic.json")["annotations"] == []
    assert SavedPredictions([str(tmp_path)], scenes.metadata, ["instance", "panoptic"])([]) == []
