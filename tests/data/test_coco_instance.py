import json
from dataclasses import replace

import pytest
from pycocotools.coco import COCO

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry


def entry_of(root, **changes):
    return DatasetEntry("tiny", "coco", str(root / "instances.json"), str(root / "images"), **changes)


def test_records_keep_order_sizes_and_annotations(instances_root):
    metadata, records = load_dataset(entry_of(instances_root))
    assert [record["image_id"] for record in records] == [3, 1, 2]
    assert records[0]["file_name"] == str(instances_root / "images" / "3.png")
    assert (records[0]["height"], records[0]["width"]) == (6, 8)
    assert [len(record["annotations"]) for record in records] == [2, 1, 0]
    crowd = records[0]["annotations"][1]
    assert crowd == {
        "id": 11,
        "category_id": 2,
        "segmentation": {"size": [6, 8], "counts": [0, 6, 42]},
        "area": 6.0,
        "iscrowd": 1,
    }
    assert metadata.names == ["cat", "dog"]
    assert metadata.label_of == {7: 0, 2: 1}
    assert metadata.categories[1].color == (1, 2, 3)
    assert metadata.thing_labels == {0, 1}


def test_raw_ids_are_ids_minus_one(instances_root):
    metadata, _ = load_dataset(entry_of(instances_root, contiguous_id=False, num_classes=9))
    assert metadata.num_classes == 9
    assert metadata.label_of == {2: 1, 7: 6}
    with pytest.raises(ValueError, match="num_classes = 5"):
        load_dataset(entry_of(instances_root, contiguous_id=False, num_classes=5))


def test_filter_empty_drops_images_without_a_target(instances_root, builders):
    content = builders.instance_content()
    content["annotations"][2]["iscrowd"] = 1
    builders.write_json(instances_root / "instances.json", content)
    assert [r["image_id"] for r in load_dataset(entry_of(instances_root, filter_empty=True)).records] == [3]
    assert [r["image_id"] for r in load_dataset(entry_of(instances_root, max_images=2)).records] == [3, 1]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("categories", 0, "id"), 0, r"categories\[0\]: category 'cat' has id 0.*greater than 0"),
        (("categories", 0, "id"), "7", r"categories\[0\]"),
        (("categories", 1, "id"), 7, "id 7 belongs to both 'cat' and 'dog'"),
        (("categories",), [], "categories: expected a list"),
        (("annotations", 1, "id"), 0, r"annotations\[1\] \(id 0, image 3\).*greater than 0"),
        (("annotations", 1, "id"), 10, r"annotations\[1\] \(id 10.*another annotation"),
        (("annotations", 2, "image_id"), 99, r"annotations\[2\]: image_id 99 is not in images"),
        (("annotations", 2, "image_id"), None, r"annotations\[2\]: has no image_id"),
        (("annotations", 2, "image_id"), [1], r"annotations\[2\]: image_id \[1\]"),
        (("annotations", 0, "category_id"), 8, r"category_id 8 is not in categories"),
        (("annotations", 0, "category_id"), {}, r"category_id {} is not in categories"),
        (("annotations", 0, "iscrowd"), 2, "iscrowd is 0 or 1"),
        (("annotations", 0, "segmentation"), [[1, 2, 3, 4]], "at least three points"),
        (("annotations", 0, "segmentation"), None, "segmentation is a list of polygons or an RLE"),
        (("annotations", 2, "segmentation", "size"), [8, 6], r"RLE of size \[8, 6\]"),
        (("annotations", 2, "segmentation", "counts"), None, "segmentation is a list of polygons or an RLE"),
        (("annotations", 2, "area"), None, r"annotations\[2\].*area is a number of pixels, got None"),
        (("annotations", 2, "area"), float("nan"), "area is a number of pixels, got nan"),
        (("annotations", 2, "area"), -1, "area is a number of pixels, got -1"),
        (("annotations", 0), 5, r"annotations\[0\]: expected an object"),
        (("images", 1, "id"), 3, r"images\[1\] \(id 3\): another image has this id"),
        (
            ("images", 1, "file_name"),
            "../secret.png",
            r"images\[1\] \(id 1\): file_name '../secret.png' leaves its folder",
        ),
        (("images", 1, "file_name"), "/etc/passwd", "leaves its folder"),
        (("images", 1, "file_name"), "a\\..\\..\\b.png", "leaves its folder"),
        (("images", 1, "file_name"), "C:\\b.png", "leaves its folder"),
        (("images", 1, "file_name"), "", "has no file_name"),
        (("images", 1, "height"), 5.5, "height and width are whole numbers"),
        (("images", 1), "x", r"images\[1\]: an image needs an id"),
        (("images",), {}, "it has no list 'images'"),
    ],
)
def test_a_fault_names_dataset_file_and_entry(instances_root, builders, path, value, message):
    content = node = builders.instance_content()
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file = builders.write_json(instances_root / "instances.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(entry_of(instances_root))
    assert str(file) in str(caught.value)
    assert "'tiny'" in str(caught.value)


def test_a_name_with_dots_or_folders_inside_is_fine(instances_root, builders):
    content = builders.instance_content()
    content["images"][0]["file_name"] = "sub/..a..b.png"
    builders.write_json(instances_root / "instances.json", content)
    assert load_dataset(entry_of(instances_root)).records[0]["file_name"].endswith("images/sub/..a..b.png")


@pytest.mark.parametrize(
    ("text", "place"),
    [('{"images": [,]}', ":1:13: not valid JSON"), ('{\n "a": 1\n', ":3:1"), ("[" * 100000, "nested")],
)
def test_bad_json_names_file_and_position(instances_root, text, place):
    (instances_root / "instances.json").write_text(text)
    with pytest.raises(ValueError, match=place) as caught:
        load_dataset(entry_of(instances_root))
    assert "instances.json" in str(caught.value)


def test_missing_files_name_their_key(instances_root):
    keys = {"annotations": "dataset.train.instance_json", "image_dir": "dataset.train.img_dir"}
    entry = entry_of(instances_root, keys=keys)
    with pytest.raises(FileNotFoundError, match=r"dataset\.train\.instance_json: no such file: /nowhere\.json"):
        load_dataset(replace(entry, annotations="/nowhere.json"))
    with pytest.raises(FileNotFoundError, match=r"dataset\.train\.img_dir: no such folder"):
        load_dataset(replace(entry, image_dir="/nowhere"))
    with pytest.raises(ValueError, match=r"dataset\.train\.instance_json is not set"):
        load_dataset(replace(entry, annotations=""))


def test_reading_time_is_linear(instances_root, builders):
    """20,000 images with two objects each; a quadratic join would take minutes."""
    shape = [[1, 1, 5, 1, 5, 4]]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 6, "width": 8} for n in range(20000)],
        "annotations": [
            {"id": n + 1, "image_id": n // 2, "category_id": 7, "segmentation": shape, "area": 1} for n in range(40000)
        ],
        "categories": [{"id": 7, "name": "cat"}],
    }
    builders.write_json(instances_root / "instances.json", content)
    records = load_dataset(entry_of(instances_root)).records
    assert len(records) == 20000
    assert {len(record["annotations"]) for record in records} == {2}


@pytest.mark.realdata
@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_subset_equals_pycocotools(real_data, split):
    root = real_data / "coco_instances_160"
    path = root / "annotations" / f"instances_{split}2017.json"
    images = next(folder for folder in root.rglob(f"{split}2017") if folder.is_dir())
    metadata, records = load_dataset(DatasetEntry("c", "coco", str(path), str(images), categories="coco_instance"))
    coco = COCO(str(path))
    assert metadata.num_classes == 80
    assert sorted(metadata.label_of) == sorted(coco.cats)
    for record in records:
        theirs = coco.imgToAnns[record["image_id"]]
        assert [a["id"] for a in record["annotations"]] == [a["id"] for a in theirs]
        assert [a["segmentation"] for a in record["annotations"]] == [a["segmentation"] for a in theirs]
    assert len(records) == len(json.loads(path.read_text())["images"])
