import itertools
import json

import pytest

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry
from m2f.data.datasets.label_map import packaged_table, palette_color


def load(root, label_map, **changes):
    path = root / "label_map.json"
    path.write_text(json.dumps(label_map))
    entry = DatasetEntry(
        "tiny",
        "coco_panoptic",
        str(root / "panoptic.json"),
        str(root / "images"),
        label_map=str(path),
        keys={"label_map": "dataset.label_map"},
        **changes,
    )
    return load_dataset(entry).metadata


CAT = {"id": 7, "name": "cat", "color": [9, 8, 7], "isthing": 1}
GRASS = {"id": 2, "name": "grass", "isthing": 0}


def test_palette_colours_are_distinct():
    colors = [palette_color(index) for index in range(200)]
    assert len(set(colors)) == 200
    assert all(0 <= channel <= 255 for color in colors for channel in color)
    steps = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(colors)]
    assert min(steps) > 80


def test_colours_come_from_label_map_then_file_then_palette(panoptic_root, builders):
    content = builders.panoptic_content()
    content["categories"][0]["color"] = [1, 1, 1]
    content["categories"][1]["color"] = [2, 2, 2]
    builders.write_json(panoptic_root / "panoptic.json", content)
    assert [c.color for c in load(panoptic_root, [CAT, GRASS]).categories] == [(9, 8, 7), (2, 2, 2)]
    del content["categories"][1]["color"]
    builders.write_json(panoptic_root / "panoptic.json", content)
    assert [c.color for c in load(panoptic_root, [CAT, GRASS]).categories] == [(9, 8, 7), palette_color(1)]


def test_things_follow_the_file_where_the_label_map_is_silent(panoptic_root):
    silent = {"id": 2, "name": "grass"}
    assert load(panoptic_root, [CAT, silent]).thing_labels == {0}


def test_contiguous_labels_need_one_order(panoptic_root):
    assert load(panoptic_root, [CAT, GRASS]).names == ["cat", "grass"]
    with pytest.raises(
        ValueError, match=r"differ from position 0 on: ids \[2, 7\] here, \[7, 2\] in the annotation file"
    ):
        load(panoptic_root, [GRASS, CAT])
    with pytest.raises(ValueError, match=r"from position 2 on.*\(3 and 2 categories\)"):
        load(panoptic_root, [CAT, GRASS, {"id": 9, "name": "dog"}])


def test_raw_ids_need_no_order_and_may_name_more(panoptic_root):
    rows = [GRASS, CAT, {"id": 4, "name": "dog"}]
    metadata = load(panoptic_root, rows, contiguous_id=False, num_classes=8)
    assert metadata.label_of == {2: 1, 4: 3, 7: 6}
    assert metadata.thing_labels == {3, 6}
    assert load(panoptic_root, rows, contiguous_id=False).num_classes == 7


def test_a_map_may_rename_and_it_is_said(panoptic_root, caplog):
    assert load(panoptic_root, [{**CAT, "name": "lion"}, GRASS]).names == ["lion", "grass"]
    assert "renames 1 categories: 'cat' to 'lion'" in caplog.text.replace('"', "")


def test_every_disagreement_is_listed(panoptic_root):
    with pytest.raises(ValueError, match="disagrees") as caught:
        load(panoptic_root, [{"id": 8, "name": "cat"}, {"id": 2, "name": "grass", "isthing": 1}])
    text = str(caught.value)
    assert "id 7 ('cat') is missing" in text
    assert "id 2 ('grass') has isthing 1 here and 0 in the annotation file" in text
    assert "label_map.json" in text
    assert "panoptic.json" in text
    with pytest.raises(ValueError, match=r"id 2 \('grass'\) is missing"):
        load(panoptic_root, [CAT])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"1": "cat"}, "expected a list"),
        ([], "expected a list"),
        ([{"id": 0, "name": "cat"}], r"label_map\.json\[0\]: category 'cat' has id 0"),
        ([{"id": True, "name": "cat"}], "has id True"),
        ([{"id": 1}], 'needs a numeric "id" and a "name"'),
        ([CAT, CAT], "id 7 belongs to both"),
        ([{**CAT, "color": [0, 0, 256]}], r"\[0\]: color is"),
        ([{**CAT, "color": "red"}], r"\[0\]: color is"),
    ],
)
def test_a_bad_label_map_is_named(panoptic_root, rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(panoptic_root, rows)
    assert "dataset.label_map" in str(caught.value)


def test_missing_label_map_names_the_key():
    entry = DatasetEntry(
        "x", "image_folder", image_dir=".", label_map="/nowhere", keys={"label_map": "dataset.label_map"}
    )
    with pytest.raises(FileNotFoundError, match=r"dataset\.label_map: no such file: /nowhere"):
        load_dataset(entry)


def test_ignore_label_must_lie_outside_the_labels(panoptic_root):
    with pytest.raises(ValueError, match="ignore_label = 1 is also the label of a category"):
        load(panoptic_root, [CAT, GRASS], ignore_label=1)


@pytest.mark.parametrize(
    ("name", "least", "count", "things"),
    [("coco_panoptic", 1, 133, 80), ("coco_instance", 1, 80, 80), ("cityscapes", 0, 19, 8), ("shapes", 1, 7, 4)],
)
def test_packaged_tables(name, least, count, things):
    rows = packaged_table(name, least)
    assert len(rows) == count
    assert sum(row.is_thing is not False for row in rows) == things
    assert len({row.name for row in rows}) == count


def test_packaged_ade20k():
    rows = packaged_table("ade20k")
    assert [row.id for row in rows] == list(range(1, 151))
    assert len({row.name for row in rows}) == 150
