import os

import pytest

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry


def entry_of(root, **changes):
    return DatasetEntry("tiny", "coco_panoptic", str(root / "panoptic.json"), str(root / "images"), **changes)


def test_records_carry_png_and_segments(panoptic_root):
    metadata, records = load_dataset(entry_of(panoptic_root, panoptic_dir=str(panoptic_root / "panoptic")))
    assert [record["image_id"] for record in records] == [3, 1]
    assert records[1]["pan_seg_file_name"] == str(panoptic_root / "panoptic" / "1.png")
    assert records[1]["segments_info"] == [
        {"id": 300, "category_id": 7, "area": 24},
        {"id": 2, "category_id": 2, "area": 24},
    ]
    assert records[0]["segments_info"] == [{"id": 5, "category_id": 7, "iscrowd": 1}]
    assert metadata.thing_labels == {0}
    assert metadata.names == ["cat", "grass"]


def test_images_without_annotation_are_left_out_and_counted(panoptic_root, builders, caplog):
    records = load_dataset(entry_of(panoptic_root)).records
    assert all("pan_seg_file_name" in record for record in records)  # training and evaluation can use every record
    assert "panoptic.json: 1 of 3 images have no annotation" in caplog.text
    kept = load_dataset(entry_of(panoptic_root, filter_empty=True)).records
    assert [record["image_id"] for record in kept] == [1]  # 3 holds a crowd only
    builders.write_json(panoptic_root / "panoptic.json", {**builders.panoptic_content(), "annotations": []})
    assert len(load_dataset(entry_of(panoptic_root)).records) == 3  # images alone, for inference


def test_folder_of_pngs_defaults_to_the_files_stem(panoptic_root):
    assert load_dataset(entry_of(panoptic_root)).records[1]["pan_seg_file_name"].endswith("panoptic/1.png")
    os.rename(panoptic_root / "panoptic", panoptic_root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"dataset\.val\.panoptic_dir: no such folder"):
        load_dataset(entry_of(panoptic_root, keys={"panoptic_dir": "dataset.val.panoptic_dir"}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("categories", 0, "id"), 0, "greater than 0"),
        (("categories", 0, "isthing"), 2, "isthing is 0 or 1"),
        (("annotations", 0, "image_id"), 3, r"annotations\[1\] \(image 3\): another annotation has this image_id"),
        (("annotations", 0, "image_id"), 77, "image_id 77 is not in images"),
        (("annotations", 0, "file_name"), "../1.png", r"annotations\[0\] \(image 1\): file_name '../1.png' leaves"),
        (("annotations", 0, "file_name"), None, "has no file_name"),
        (("annotations", 0, "segments_info"), None, "has no list segments_info"),
        (("annotations", 0, "segments_info", 0, "id"), 0, r"segments_info\[0\]: id 0; annotation ids must be"),
        (("annotations", 0, "segments_info", 0, "id"), 2, r"segments_info\[1\]: id 2: another segment"),
        (("annotations", 0, "segments_info", 0, "id"), 256**3, "no PNG holds an id above"),
        (("annotations", 0, "segments_info", 0, "category_id"), 1, "category_id 1 is not in categories"),
        (("annotations", 0, "segments_info", 0, "area"), "24", r"segments_info\[0\]: area is a number of pixels"),
        (("annotations", 0, "segments_info", 1), None, r"segments_info\[1\]: expected an object"),
    ],
)
def test_a_fault_names_dataset_file_and_entry(panoptic_root, builders, path, value, message):
    content = node = builders.panoptic_content()
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file = builders.write_json(panoptic_root / "panoptic.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(entry_of(panoptic_root))
    assert str(file) in str(caught.value)
    assert "'tiny'" in str(caught.value)


@pytest.mark.realdata
def test_real_files_with_the_packaged_table(real_data):
    root = real_data / "coco_panoptic_200"
    annotations = root / "annotations" / "panoptic_val2017.json"
    entry = DatasetEntry(
        "c",
        "coco_panoptic",
        str(annotations),
        str(root / "images" / "val2017"),
        str(root / "panoptic_val2017"),
        categories="coco_panoptic",
    )
    metadata, records = load_dataset(entry)
    assert (len(records), metadata.num_classes, len(metadata.thing_labels)) == (100, 133, 80)
    assert sum(len(record["segments_info"]) for record in records) == 1078
    assert all(os.path.isfile(r["pan_seg_file_name"]) and os.path.isfile(r["file_name"]) for r in records)
