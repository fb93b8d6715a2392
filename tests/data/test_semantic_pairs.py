import json

import pytest

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry


def list_entry(root, **changes):
    values = {"annotations": str(root / "pairs.jsonl"), "label_map": str(root / "label_map.json"), **changes}
    return DatasetEntry("tiny", "ade", **values)


def folder_entry(root, **changes):
    values = {"image_dir": str(root / "images"), "mask_dir": str(root / "masks"), "num_classes": 3, **changes}
    return DatasetEntry("tiny", "ade", **values)


def test_list_and_folders_give_the_same_pairs(pairs_root):
    metadata, from_list = load_dataset(list_entry(pairs_root, root_dir=str(pairs_root)))
    from_folders = load_dataset(folder_entry(pairs_root)).records
    pairs = [(r["file_name"], r["sem_seg_file_name"]) for r in from_list]
    assert pairs == [(r["file_name"], r["sem_seg_file_name"]) for r in from_folders]
    assert pairs[1] == (str(pairs_root / "images/sub/b.png"), str(pairs_root / "masks/sub/b.png"))
    assert [r["image_id"] for r in from_folders] == ["a", "sub/b"]
    assert metadata.names == ["kind 1", "kind 2", "kind 3"]
    assert metadata.label_of == {1: 0, 2: 1, 3: 2}
    assert metadata.categories[2].color == (3, 3, 3)


@pytest.mark.parametrize(
    ("image", "mask"), [("image", "mask"), ("file_name", "annotation"), ("img_path", "seg_map_path")]
)
def test_synonyms_blank_lines_and_windows_line_ends(pairs_root, image, mask):
    line = json.dumps({image: "images/a.png", mask: "masks/a.png", "height": 6, "width": 8})
    (pairs_root / "pairs.jsonl").write_text(f"{line}\r\n\n  \n{line}")
    records = load_dataset(list_entry(pairs_root)).records
    assert len(records) == 2
    assert (records[0]["height"], records[0]["width"]) == (6, 8)


def test_paths_of_a_list_start_at_root_dir_or_img_dir_and_mask_dir(pairs_root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists") / "pairs.jsonl"
    elsewhere.write_text(json.dumps({"img": "a.png", "segm": "a.png"}))
    entry = list_entry(pairs_root, annotations=str(elsewhere))
    both = {"image_dir": str(pairs_root / "images"), "mask_dir": str(pairs_root / "masks")}
    record = load_dataset(list_entry(pairs_root, annotations=str(elsewhere), **both)).records[0]
    assert record["sem_seg_file_name"] == str(pairs_root / "masks/a.png")
    assert load_dataset(entry).records[0]["file_name"] == str(elsewhere.parent / "a.png")


def test_absolute_paths_inside_root_dir_are_taken(pairs_root):
    line = {"img": str(pairs_root / "images/a.png"), "segm": str(pairs_root / "masks/a.png")}
    (pairs_root / "pairs.jsonl").write_text(json.dumps(line))
    assert load_dataset(list_entry(pairs_root, root_dir=str(pairs_root))).records[0]["file_name"] == line["img"]
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: img .* is no path inside .*masks; root_dir"):
        load_dataset(list_entry(pairs_root, root_dir=str(pairs_root / "masks")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"img": "a.png"}', r"pairs\.jsonl:2: has none of the keys segm, mask, .*; found img"),
        ('{"segm": "a.png"}', r":2: has none of the keys img, image"),
        ('{"img": "../a.png", "segm": "a.png"}', r":2: img '../a.png' is no path inside"),
        ('{"img": 3, "segm": "a.png"}', r":2: img 3 is no path"),
        ('["a.png", "b.png"]', r":2: expected"),
        ('{"img": "a.png",}', r"pairs\.jsonl:2:17: not valid JSON"),
    ],
)
def test_a_faulty_line_is_named(pairs_root, line, message):
    good = (pairs_root / "pairs.jsonl").read_text().splitlines()[0]
    (pairs_root / "pairs.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_dataset(list_entry(pairs_root))


def test_missing_masks_are_counted_and_named(pairs_root, builders):
    for number in range(4):
        builders.write_image(pairs_root / "images" / f"x{number}.JPG")
    with pytest.raises(FileNotFoundError, match=r"4 of 6 images .* have no mask .*: x0, x1, x2, \.\.\."):
        load_dataset(folder_entry(pairs_root))


def test_two_images_of_one_stem_are_refused(pairs_root, builders):
    builders.write_image(pairs_root / "images" / "a.jpg")
    with pytest.raises(ValueError, match="have the same stem"):
        load_dataset(folder_entry(pairs_root))


def test_no_masks_at_all_names_both_keys(pairs_root):
    keys = {"annotations": "dataset.train.annot_file", "mask_dir": "dataset.train.mask_dir"}
    with pytest.raises(ValueError, match=r"dataset\.train\.annot_file .* dataset\.train\.mask_dir"):
        load_dataset(folder_entry(pairs_root, mask_dir="", keys=keys))


def test_stem_endings_pair_cityscapes_style(tmp_path, builders):
    builders.write_image(tmp_path / "images/aachen/x_leftImg8bit.png")
    for kind in ("color", "labelTrainIds"):
        builders.write_image(tmp_path / f"masks/aachen/x_gtFine_{kind}.png")
    records = load_dataset(folder_entry(tmp_path, stem_endings=("_leftImg8bit", "_gtFine_labelTrainIds"))).records
    assert [r["sem_seg_file_name"] for r in records] == [str(tmp_path / "masks/aachen/x_gtFine_labelTrainIds.png")]


@pytest.mark.parametrize("contiguous", [True, False])
def test_ids_are_mask_values(pairs_root, contiguous):
    ids = load_dataset(folder_entry(pairs_root, contiguous_id=contiguous)).metadata.label_of
    assert ids == {1: 0, 2: 1, 3: 2}
    ids = load_dataset(folder_entry(pairs_root, contiguous_id=contiguous, zero_is_ignore=False)).metadata.label_of
    assert ids == {0: 0, 1: 1, 2: 2}


def test_a_label_map_that_names_no_zero_contradicts_zero_is_a_class(pairs_root):
    with pytest.raises(ValueError, match="the ids of tiny: label_map begin at 1"):
        load_dataset(list_entry(pairs_root, zero_is_ignore=False))


def test_the_ignore_value_is_no_class(pairs_root):
    with pytest.raises(ValueError, match=r"200 is both dataset\.ignore_label and the id of 'class 200'"):
        load_dataset(folder_entry(pairs_root, num_classes=200, ignore_label=200))


@pytest.mark.realdata
def test_camvid_and_ade_samples(real_data):
    camvid = real_data / "camvid"
    entry = DatasetEntry(
        "camvid",
        "ade",
        image_dir=str(camvid / "images" / "val"),
        mask_dir=str(camvid / "masks" / "val"),
        num_classes=11,
        zero_is_ignore=False,
    )
    assert len(load_dataset(entry).records) == 101
    ade = real_data / "ade20k_samples"
    folders = {"image_dir": str(ade / "images"), "mask_dir": str(ade / "annotations")}
    metadata, records = load_dataset(DatasetEntry("ade", "ade", **folders, categories="ade20k"))
    assert (len(records), metadata.num_classes, metadata.names[:3]) == (6, 150, ["wall", "building", "sky"])
