import os
from dataclasses import replace

import pytest

from m2f.config import get_cfg
from m2f.data.build import DATASET_FORMAT_REGISTRY, entries, load_dataset
from m2f.data.catalog import Catalog, DatasetCatalog, DatasetEntry


def test_formats_are_registered():
    assert set(DATASET_FORMAT_REGISTRY.names()) >= {"ade", "coco", "coco_panoptic", "image_folder"}


def test_paths_are_joined_when_a_row_is_asked_for(monkeypatch):
    catalog = Catalog()
    catalog.register(DatasetEntry("mine", "coco", "ann.json", "/abs/images"))
    for root in ("/one", "/two"):
        monkeypatch.setenv("M2F_DATASETS", root)
        entry = catalog.get("mine")
        assert (entry.annotations, entry.image_dir, entry.mask_dir) == (f"{root}/ann.json", "/abs/images", "")
    monkeypatch.delenv("M2F_DATASETS")
    assert catalog.get("mine").annotations == os.path.join("datasets", "ann.json")


def test_a_name_is_registered_once_and_unknown_names_get_a_hint():
    catalog = Catalog()
    catalog.register(DatasetEntry("mine", "coco"))
    with pytest.raises(KeyError, match="'mine' is already registered"):
        catalog.register(DatasetEntry("mine", "ade"))
    with pytest.raises(KeyError, match="unknown dataset 'mime'; did you mean 'mine'"):
        catalog.get("mime")


@pytest.fixture
def cfg():
    return get_cfg()


def test_paths_of_a_split(cfg):
    node = cfg.dataset.train
    node.type, node.panoptic_json, node.panoptic_dir = "coco_panoptic", "ann/pan.json", "/abs/pan"
    node.img_dir, node.root_dir, node.max_images, node.filter_empty = "img", "/data", 5, True
    cfg.dataset.contiguous_id, cfg.dataset.label_map, cfg.dataset.ignore_label = True, "map.json", 254
    (entry,) = entries(cfg, "train")
    expected = DatasetEntry(
        "pan",
        "coco_panoptic",
        "/data/ann/pan.json",
        "/data/img",
        "/abs/pan",
        root_dir="/data",
        label_map="map.json",
        contiguous_id=True,
        num_classes=200,
        ignore_label=254,
        max_images=5,
        filter_empty=True,
    )
    assert entry == expected
    assert entry.key("annotations") == "dataset.train.panoptic_json"
    assert entry.key("label_map") == "dataset.label_map"


@pytest.mark.parametrize("kind", ["coco", "coco_panoptic", "ade"])
def test_annot_file_serves_every_format(cfg, kind):
    cfg.dataset.val.type, cfg.dataset.val.annot_file, cfg.dataset.val.name = kind, "/a.json", "my set"
    (entry,) = entries(cfg, "val")
    assert (entry.annotations, entry.format, entry.name) == ("/a.json", kind, "my set")


def test_two_annotation_files_are_refused(cfg):
    node = cfg.dataset.val
    node.type, node.annot_file, node.instance_json = "coco", "/a.json", "/b.json"
    with pytest.raises(
        ValueError, match=r"dataset\.val\.instance_json = '/b\.json' and dataset\.val\.annot_file = '/a\.json'"
    ):
        entries(cfg, "val")


def test_a_split_that_names_nothing_names_its_keys(cfg):
    cfg.dataset.val.type = "coco_panoptic"
    with pytest.raises(ValueError, match=r"dataset\.val names no data: set dataset\.val\.panoptic_json") as caught:
        entries(cfg, "val")
    assert "shapes_panoptic_val" in str(caught.value)


def test_a_split_without_its_own_annotation_file_names_the_key(cfg):
    node = cfg.dataset.train
    node.type, node.img_dir, node.instance_json = "coco_panoptic", ".", "/a.json"
    with pytest.raises(ValueError, match=r"dataset\.train\.panoptic_json is not set"):
        load_dataset(entries(cfg, "train")[0])


def test_names_win_over_the_split_and_paths_over_its_name(cfg, monkeypatch):
    monkeypatch.setenv("M2F_DATASETS", "/root")
    cfg.dataset.val.name, cfg.dataset.val.max_images = "ade20k_val", 3
    (named,) = entries(cfg, "val")
    assert named.image_dir == "/root/ADEChallengeData2016/images/validation"
    assert (named.max_images, named.num_classes, named.categories) == (3, 200, "ade20k")
    assert [e.name for e in entries(cfg, "val", ["coco_2017_val_instance", "cityscapes_val"])] == [
        "coco_2017_val_instance",
        "cityscapes_val",
    ]
    with pytest.raises(KeyError, match="coco_2017_val_panoptic"):
        entries(cfg, "val", ["coco_2017_val_panoptc"])
    cfg.dataset.val.img_dir, cfg.dataset.val.mask_dir = "/i", "/m"
    assert entries(cfg, "val")[0].image_dir == "/i"


def test_label_map_of_the_spec_wins_over_a_rows_table(cfg, tmp_path, builders):
    builders.write_pairs(tmp_path)
    cfg.dataset.label_map = str(tmp_path / "label_map.json")
    cfg.dataset.val.name = "ade20k_val"
    folders = {"image_dir": str(tmp_path / "images"), "mask_dir": str(tmp_path / "masks")}
    entry = replace(entries(cfg, "val")[0], **folders, contiguous_id=True)
    assert load_dataset(entry).metadata.names == ["kind 1", "kind 2", "kind 3"]


def test_what_the_spec_sets_wins_over_a_row_and_a_default_leaves_it_alone(cfg):
    (row,) = entries(cfg, "val", ["cityscapes_val"])
    assert (row.zero_is_ignore, row.ignore_label) == (False, 255)
    cfg.dataset.ignore_label, cfg.dataset.zero_is_ignore = 254, False
    (row,) = entries(cfg, "val", ["ade20k_val"])
    assert (row.zero_is_ignore, row.ignore_label) == (False, 254)
    assert row.key("ignore_label") == "dataset.ignore_label"


def test_the_root_of_all_splits_serves_those_without_their_own(cfg):
    cfg.dataset.root_dir, cfg.dataset.val.root_dir = "all", "own"
    for split in ("train", "val"):
        cfg.dataset[split].type, cfg.dataset[split].annot_file = "ade", "list.jsonl"
    (train,), (val,) = entries(cfg, "train"), entries(cfg, "val")
    assert (train.annotations, train.root_dir, train.key("root_dir")) == ("all/list.jsonl", "all", "dataset.root_dir")
    assert (val.annotations, val.root_dir, val.key("root_dir")) == ("own/list.jsonl", "own", "dataset.val.root_dir")


def test_a_test_split_may_be_a_folder_of_images(cfg, tmp_path, builders):
    for name in ("b.JPEG", "sub/a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    cfg.dataset.test.img_dir = str(tmp_path)
    (entry,) = entries(cfg, "test")
    metadata, records = load_dataset(entry)
    assert [record["image_id"] for record in records] == ["b", "sub/a"]
    assert metadata.num_classes == 200
    assert set(records[0]) == {"file_name", "image_id", "height", "width"}


def test_an_unknown_format_lists_the_formats(cfg):
    cfg.dataset.train.type, cfg.dataset.train.annot_file = "coco_panoptik", "/a"
    with pytest.raises(KeyError, match="did you mean 'coco_panoptic'"):
        entries(cfg, "train")


def test_an_empty_dataset_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        load_dataset(DatasetEntry("x", "image_folder", image_dir=str(tmp_path), num_classes=1))


def test_builtin_names():
    names = set(DatasetCatalog.names())
    for split in ("train", "val"):
        assert names >= {f"shapes_{task}_{split}" for task in ("panoptic", "instance", "semantic")}
        assert names >= {
            f"coco_2017_{split}_panoptic",
            f"coco_2017_{split}_instance",
            f"ade20k_{split}",
            f"cityscapes_{split}",
        }
