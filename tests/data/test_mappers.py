from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2f.config import get_cfg
from m2f.data.build import DATASET_MAPPER_REGISTRY, load_dataset
from m2f.data.catalog import DatasetCatalog, LoadedDataset
from m2f.data.mappers import EvalMapper, TrainMapper
from m2f.structures.metadata import Category, Metadata


@pytest.fixture
def panoptic(shapes_root: Path) -> LoadedDataset:
    return load_dataset(DatasetCatalog.get("shapes_panoptic_train"))


def _cfg(**augmentation):
    cfg = get_cfg()
    cfg.dataset.augmentation.train_crop_size = [96, 80]
    cfg.dataset.augmentation.train_min_size = [100, 140]
    for key, value in augmentation.items():
        cfg.dataset.augmentation[key] = value
    return cfg


def _map(cfg, dataset: LoadedDataset, index: int = 0, seed: int = 0):
    mapper = DATASET_MAPPER_REGISTRY.build("TrainMapper", cfg, dataset.metadata, "train")
    return mapper(dataset.records[index], np.random.default_rng(seed))


@pytest.mark.parametrize("policy", ["resize_crop", "lsj"])
@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_a_training_sample_keeps_its_promises(shapes_root: Path, kind: str, policy: str) -> None:
    dataset = load_dataset(DatasetCatalog.get(f"shapes_{kind}_train"))
    cfg = _cfg(policy=policy)
    for index in range(8):
        sample = _map(cfg, dataset, index, seed=index)
        image, instances = sample["image"], sample["instances"]
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.is_contiguous()
        assert image.shape[1] <= 96 and image.shape[2] <= 80
        assert instances.masks.dtype == torch.bool and instances.masks.shape == (len(instances), *image.shape[1:])
        assert instances.labels.dtype == torch.int64
        assert instances.masks.flatten(1).any(1).all()
        assert (
            not len(instances) or 0 <= instances.labels.min() <= instances.labels.max() < dataset.metadata.num_classes
        )
        if "valid" in sample:
            assert sample["valid"].dtype == torch.bool and sample["valid"].shape == image.shape[1:]
            assert not sample["valid"].all()
        with Image.open(dataset.records[index]["file_name"]) as original:
            assert (sample["width"], sample["height"]) == original.size
        assert sample["image_id"] == dataset.records[index]["image_id"]


def test_the_same_rng_makes_the_same_sample_and_another_another(panoptic: LoadedDataset) -> None:
    cfg = _cfg()
    first, again, other = (_map(cfg, panoptic, 0, seed) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["instances"].masks, again["instances"].masks)
    assert first["image"].shape != other["image"].shape or not torch.equal(first["image"], other["image"])


def test_every_key_of_the_augmentation_is_obeyed(panoptic: LoadedDataset) -> None:
    def size(**keys) -> tuple[int, ...]:
        return tuple(_map(_cfg(color_jitter=False, horizontal_flip=0.0, **keys), panoptic)["image"].shape[1:])

    assert size() == (96, 80)
    assert size(train_min_size=[50, 50]) == (50, 50)
    assert size(train_min_size=[200, 200], train_max_size=60) == (60, 60)
    assert size(policy="lsj", lsj_min_scale=0.5, lsj_max_scale=0.5) == (40, 40)
    assert size(policy="lsj", lsj_min_scale=2.0, lsj_max_scale=2.0) == (96, 80)

    plain = {"color_jitter": False, "horizontal_flip": 0.0, "train_min_size": [80, 80]}
    image = _map(_cfg(**plain), panoptic)["image"]
    assert torch.equal(_map(_cfg(**{**plain, "horizontal_flip": 1.0}), panoptic)["image"], image.flip(2))
    assert torch.equal(_map(_cfg(**{**plain, "vertical_flip": 1.0}), panoptic)["image"], image.flip(1))
    colors = [_map(_cfg(**{**plain, "color_jitter": True}), panoptic, seed=seed)["image"] for seed in range(3)]
    assert any(not torch.equal(color, image) for color in colors)

    cfg = _cfg(**plain)
    cfg.dataset.train.target_size = [40, 20]
    assert _map(cfg, panoptic)["image"].shape[1:] == (80, 80)  # 160 wide after the resize, then cut
    strict = {"crop_max_category_area": 0.3, "train_min_size": [140, 140], "train_crop_size": [40, 40]}
    loose = {**strict, "crop_max_category_area": 1.0}
    pairs = [(_map(_cfg(**strict), panoptic, 0, s), _map(_cfg(**loose), panoptic, 0, s)) for s in range(5)]
    assert any(not torch.equal(one["image"], two["image"]) for one, two in pairs)
    with pytest.raises(ValueError, match=r"augmentation\.policy = 'LSJ'.*resize_crop, lsj"):
        size(policy="LSJ")


def test_masks_move_with_their_image(tmp_path: Path) -> None:
    values = np.zeros((50, 70), np.uint8)
    values[10:30, 20:60] = 1
    Image.fromarray(np.repeat(values[..., None] * 255, 3, axis=2)).save(tmp_path / "a.png")
    Image.fromarray(values + 1).save(tmp_path / "m.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "sem_seg_file_name": str(tmp_path / "m.png")}
    dataset = LoadedDataset(Metadata("t", (Category(1, "dark"), Category(2, "bright"))), [record])
    for seed in range(20):
        policy = ("resize_crop", "lsj")[seed % 2]
        sample = _map(_cfg(policy=policy, color_jitter=False, vertical_flip=0.5), dataset, seed=seed)
        bright = sample["image"][0] > 127
        by_label = dict(zip(sample["instances"].labels.tolist(), sample["instances"].masks, strict=True))
        mask = by_label.get(1, torch.zeros_like(bright))
        assert (bright != mask).float().mean() < 0.02 + 4 / min(bright.shape)


def test_evaluation_attaches_the_truths_asked_for(panoptic: LoadedDataset) -> None:
    cfg = get_cfg()
    cfg.dataset.augmentation.test_min_size = 64
    cfg.model.mode = "semantic"
    mapper = DATASET_MAPPER_REGISTRY.build("EvalMapper", cfg, panoptic.metadata, "val")
    rng = np.random.default_rng(0)
    sample = mapper(panoptic.records[0], rng)
    assert min(sample["image"].shape[1:]) == 64
    assert sample["semantic"].shape == (sample["height"], sample["width"])
    assert not {"panoptic", "instance", "instances"} & set(sample)
    cfg.evaluate.tasks = ["panoptic", "instance"]
    cfg.dataset.val.target_size = [100, 50]
    mapper = DATASET_MAPPER_REGISTRY.build("EvalMapper", cfg, panoptic.metadata, "val")
    sample = EvalMapper(mapper.metadata, mapper.policy, mapper.tasks, with_targets=True)(panoptic.records[0], rng)
    assert sample["image"].shape[1:] == (64, 128)
    assert sample["panoptic"].ids.shape == (sample["height"], sample["width"]) and "semantic" not in sample
    assert sample["instances"].masks.shape[1:] == (64, 128)
    assert len(sample["instances"]) == sum(not s.is_crowd for s in sample["panoptic"].segments)
    assert len(sample["instance"]) == sum(s.is_thing for s in sample["panoptic"].segments)


def test_inference_needs_no_annotation(panoptic: LoadedDataset) -> None:
    bare = {key: panoptic.records[0][key] for key in ("file_name", "image_id")}
    mapper = DATASET_MAPPER_REGISTRY.build("EvalMapper", get_cfg(), panoptic.metadata, "test")
    sample = mapper(bare, np.random.default_rng(0))
    assert set(sample) == {"image", "height", "width", "file_name", "image_id"}
    train = DATASET_MAPPER_REGISTRY.build("TrainMapper", get_cfg(), panoptic.metadata, "train")
    with pytest.raises(ValueError, match="no annotation"):
        train(bare, np.random.default_rng(0))


def test_mistakes_are_named(panoptic: LoadedDataset) -> None:
    cfg = get_cfg()
    cfg.evaluate.tasks = ["panoptical"]
    with pytest.raises(ValueError, match=r"evaluate\.tasks.*'panoptical'.*semantic, panoptic, instance"):
        DATASET_MAPPER_REGISTRY.build("EvalMapper", cfg, panoptic.metadata, "val")
    cfg.dataset.train.target_size = [1, 2, 3]
    with pytest.raises(ValueError, match=r"dataset\.train\.target_size"):
        DATASET_MAPPER_REGISTRY.build("TrainMapper", cfg, panoptic.metadata, "train")
    many = Metadata("many", tuple(Category(i + 1, str(i)) for i in range(300)))
    with pytest.raises(ValueError, match="ignore_label"):
        TrainMapper(many, policy=None, color=None)


@pytest.mark.parametrize(("split", "task"), [("val", "evaluate"), ("test", "inference")])
def test_tiles_are_cut_from_the_image_as_it_is(panoptic: LoadedDataset, split: str, task: str) -> None:
    cfg, rng, record = get_cfg(), np.random.default_rng(0), panoptic.records[0]
    cfg.dataset.augmentation.test_min_size = 64

    def image() -> torch.Tensor:
        return DATASET_MAPPER_REGISTRY.build("EvalMapper", cfg, panoptic.metadata, split)(record, rng)["image"]

    with Image.open(record["file_name"]) as file:
        pixels = torch.from_numpy(np.array(file)).permute(2, 0, 1)
    assert min(image().shape[1:]) == 64
    cfg[task].tile_size = [32, 32]
    assert torch.equal(image(), pixels)
    cfg.dataset[split].target_size = [100, 50]
    with pytest.raises(
        ValueError, match=rf"{task}\.tile_size = \[32, 32\].*dataset\.{split}\.target_size = \[100, 50\]"
    ):
        image()
