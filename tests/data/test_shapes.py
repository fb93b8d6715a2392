import multiprocessing

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetCatalog
from m2f.data.datasets import shapes
from m2f.data.datasets.shapes import COUNTS, FOLDER, prepare_shapes, scene

FEW = {"train": 3, "val": 2}


def load(name):
    return load_dataset(DatasetCatalog.get(name))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_scene_depends_on_split_and_number_alone():
    first, again = scene("train", 7), scene("train", 7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.ids, again.ids)
    assert first.categories == again.categories
    assert not np.array_equal(first.image, scene("train", 8).image)
    assert not np.array_equal(first.image, scene("val", 7).image)


def test_scenes_hold_what_is_promised():
    seen, overlapping = set(), 0
    for index in range(60):
        picture = scene("val", index)
        assert picture.image.shape == (128, 128, 3)
        assert set(np.unique(picture.ids).tolist()) == set(picture.categories)
        assert 0 not in picture.categories
        things = [s for s, category in picture.categories.items() if category <= 4]
        assert 3 <= len(things) <= 8
        assert 2 <= len(picture.categories) - len(things) <= 3
        assert min(np.bincount(picture.ids.ravel())[list(picture.categories)]) >= 130
        seen.update(picture.categories.values())
        grown = [np.pad(picture.ids == s, 1) for s in things]
        touch = [g[:-2, 1:-1] | g[2:, 1:-1] | g[1:-1, :-2] | g[1:-1, 2:] for g in grown]
        overlapping += any(
            (t & (picture.ids == s)).any() for t, own in zip(touch, things, strict=True) for s in things if s != own
        )
    assert seen == set(range(1, 8))
    assert overlapping > 30  # at least half of the pictures have things in front of things
    assert COUNTS["val"] >= 100


def test_the_three_formats_tell_the_same(shapes_root):
    panoptic, instance, semantic = (load(f"shapes_{task}_val") for task in ("panoptic", "instance", "semantic"))
    assert len(panoptic.records) == len(instance.records) == len(semantic.records) == 6
    assert panoptic.metadata.categories == semantic.metadata.categories
    assert instance.metadata.categories == panoptic.metadata.categories[:4]
    assert panoptic.metadata.thing_labels == {0, 1, 2, 3}
    for index, records in enumerate(zip(panoptic.records, instance.records, semantic.records, strict=True)):
        pan, inst, sem = records
        truth = scene("val", index)
        assert pan["file_name"] == inst["file_name"] == sem["file_name"]
        assert np.array_equal(pixels(pan["file_name"]), truth.image)
        assert np.array_equal(pixels(pan["pan_seg_file_name"])[..., 0], truth.ids)
        assert {s["id"]: s["category_id"] for s in pan["segments_info"]} == truth.categories
        classes = pixels(sem["sem_seg_file_name"])
        things = [s for s in pan["segments_info"] if s["category_id"] <= 4]
        for segment, annotation in zip(things, inst["annotations"], strict=True):
            mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
            assert np.array_equal(mask, truth.ids == segment["id"])
            assert (classes[mask] == annotation["category_id"]).all()
            assert annotation["area"] == segment["area"] == mask.sum()
        for segment in pan["segments_info"]:
            assert (classes[truth.ids == segment["id"]] == segment["category_id"]).all()


def test_drawn_on_first_use_and_never_again(tmp_path, monkeypatch):
    monkeypatch.setenv("M2F_DATASETS", str(tmp_path / "sets"))
    monkeypatch.setattr(shapes, "COUNTS", FEW)
    assert len(load("shapes_panoptic_train").records) == 3
    stamp = (tmp_path / "sets" / FOLDER / "label_map.json").stat().st_mtime_ns
    assert len(load("shapes_semantic_val").records) == 2
    assert (tmp_path / "sets" / FOLDER / "label_map.json").stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "sets" / "shapes").iterdir()] == [FOLDER.split("/")[1]]


def test_a_drawing_cut_short_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(split, index):
        if index == 2:
            raise KeyboardInterrupt
        return scene(split, index)

    monkeypatch.setattr(shapes, "scene", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_shapes(tmp_path)
    assert list((tmp_path / "shapes").iterdir()) == []


def _draw(root):
    shapes.COUNTS = FEW
    prepare_shapes(root)


def test_processes_may_draw_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_draw, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == [FOLDER.split("/")[1]]
    assert len(list((tmp_path / FOLDER / "images" / "train").iterdir())) == 3
