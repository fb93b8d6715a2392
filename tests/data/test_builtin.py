"""The catalog's rows read files laid out as datasets/README.md says."""

import json

import numpy as np
import pytest
from PIL import Image

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetCatalog
from m2f.data.datasets.label_map import packaged_table


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("M2F_DATASETS", str(tmp_path))
    return tmp_path


def categories(name):
    keys = ("id", "name", "isthing")
    return [dict(zip(keys, (r.id, r.name, int(r.is_thing)), strict=True)) for r in packaged_table(name)]


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("kind", "file"), [("panoptic", "panoptic"), ("instance", "instances")])
def test_coco(root, split, kind, file):
    for folder in (f"{split}2017", f"panoptic_{split}2017", "annotations"):
        (root / "coco" / folder).mkdir(parents=True)
    images = [{"id": 1, "file_name": "x.jpg", "height": 2, "width": 2}]
    content = {"images": images, "annotations": [], "categories": categories(f"coco_{kind}")}
    (root / f"coco/annotations/{file}_{split}2017.json").write_text(json.dumps(content))
    metadata, records = load_dataset(DatasetCatalog.get(f"coco_2017_{split}_{kind}"))
    assert records[0]["file_name"] == str(root / f"coco/{split}2017/x.jpg")
    assert metadata.num_classes == {"panoptic": 133, "instance": 80}[kind]


@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("val", "validation")])
def test_ade20k(root, split, folder):
    put(root / f"ADEChallengeData2016/images/{folder}/ADE_1.jpg")
    put(root / f"ADEChallengeData2016/annotations/{folder}/ADE_1.png")
    metadata, records = load_dataset(DatasetCatalog.get(f"ade20k_{split}"))
    assert records[0]["sem_seg_file_name"].endswith(f"annotations/{folder}/ADE_1.png")
    assert metadata.label_of[150] == 149


def test_cityscapes(root):
    put(root / "cityscapes/leftImg8bit/val/ulm/ulm_1_2_leftImg8bit.png")
    put(root / "cityscapes/gtFine/val/ulm/ulm_1_2_gtFine_labelTrainIds.png")
    put(root / "cityscapes/gtFine/val/ulm/ulm_1_2_gtFine_color.png")
    metadata, records = load_dataset(DatasetCatalog.get("cityscapes_val"))
    assert records[0]["sem_seg_file_name"].endswith("labelTrainIds.png")
    assert (metadata.label_of[0], metadata.names[0], metadata.num_classes) == (0, "road", 19)


def test_a_row_whose_files_are_absent_says_where_they_should_be(root):
    with pytest.raises(FileNotFoundError, match=rf"ade20k_val: image_dir: no such folder: {root}/ADEChallengeData2016"):
        load_dataset(DatasetCatalog.get("ade20k_val"))
