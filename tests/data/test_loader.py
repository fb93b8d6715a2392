from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2f.config import get_cfg
from m2f.data.build import DATASET_MAPPER_REGISTRY, load_dataset
from m2f.data.catalog import DatasetCatalog, LoadedDataset
from m2f.data.loader import build_eval_loader, build_train_loader
from m2f.data.packed import PackedRecords

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core


@pytest.fixture
def dataset(shapes_root: Path) -> LoadedDataset:
    return load_dataset(DatasetCatalog.get("shapes_panoptic_train"))


def _cfg(num_workers: int = 0, batch_size: int = 2):
    cfg = get_cfg()
    cfg.device = "cpu"
    cfg.dataset.augmentation.train_crop_size = [64, 64]
    cfg.dataset.augmentation.train_min_size = [64, 96]
    cfg.dataset.augmentation.test_min_size = 64
    for split in ("train", "val"):
        cfg.dataset[split].num_workers, cfg.dataset[split].batch_size = num_workers, batch_size
    return cfg


def _tensors(batches) -> list[Tensor]:
    """All tensors of training batches, in order."""
    return [
        tensor
        for batch in batches
        for sample in batch
        for tensor in (sample["image"], sample["instances"].labels, sample["instances"].masks, sample.get("valid"))
        if tensor is not None
    ]


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_workers_change_nothing(dataset: LoadedDataset) -> None:
    made = [_tensors(islice(build_train_loader(_cfg(workers), dataset, 3, seed=5), 9)) for workers in (0, 1, 2)]
    assert _same(made[0], made[1]) and _same(made[0], made[2])
    assert not _same(made[0], _tensors(islice(build_train_loader(_cfg(), dataset, 3, seed=6), 9)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_going_on_from_a_position_equals_not_stopping(dataset: LoadedDataset, num_workers: int) -> None:
    whole = list(islice(build_train_loader(_cfg(num_workers), dataset), 12))
    rest = list(islice(build_train_loader(_cfg(num_workers), dataset, 7 * 2), 5))
    assert _same(_tensors(whole[7:]), _tensors(rest))


def test_the_global_generator_is_left_alone(dataset: LoadedDataset) -> None:
    state = torch.get_rng_state()
    list(islice(build_train_loader(_cfg(1), dataset), 2))
    list(build_eval_loader(_cfg(1), dataset, "val"))
    assert torch.equal(state, torch.get_rng_state())


def test_a_pass_shows_every_image_once(dataset: LoadedDataset) -> None:
    batches = list(islice(build_train_loader(_cfg(batch_size=3), dataset), 4))
    assert sorted(s["file_name"] for b in batches for s in b) == sorted(r["file_name"] for r in dataset.records)


def test_seed_comes_from_the_spec(dataset: LoadedDataset) -> None:
    cfg = _cfg()
    cfg.train.seed = 5
    same = _tensors(islice(build_train_loader(cfg, dataset), 3))
    assert _same(same, _tensors(islice(build_train_loader(_cfg(), dataset, seed=5), 3)))
    cfg.train.seed = -1
    assert not _same(same, _tensors(islice(build_train_loader(cfg, dataset), 3)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_every_image_once_and_in_order_each_time(dataset: LoadedDataset, num_workers: int) -> None:
    loader = build_eval_loader(
        _cfg(num_workers, batch_size=5), dataset, "val", ("semantic", "panoptic"), with_targets=True
    )
    assert len(loader) == 3
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [5, 5, 2]
        assert [s["file_name"] for b in batches for s in b] == [r["file_name"] for r in dataset.records]
        assert all({"semantic", "panoptic", "instances"} <= set(s) and "instance" not in s for b in batches for s in b)


def test_evaluation_batch_size_and_empty_shards(dataset: LoadedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = _cfg(num_workers=1)
    cfg.evaluate.batch_size = 12
    assert len(build_eval_loader(cfg, dataset, "val")) == 1
    cfg.inference.batch_size = 4
    assert len(build_eval_loader(cfg, dataset, "test")) == 3
    monkeypatch.setattr("m2f.data.loader.rank", lambda: 2)
    monkeypatch.setattr("m2f.data.loader.world_size", lambda: 3)
    two = LoadedDataset(dataset.metadata, dataset.records[:2])
    assert list(build_eval_loader(cfg, two, "val")) == []


def test_ranks_train_on_disjoint_positions(dataset: LoadedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [sample["file_name"] for batch in islice(build_train_loader(_cfg(), dataset), 6) for sample in batch]
    monkeypatch.setattr("m2f.data.loader.world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("m2f.data.loader.rank", lambda rank=rank: rank)
        mine = [sample["file_name"] for batch in islice(build_train_loader(_cfg(), dataset), 3) for sample in batch]
        assert mine == alone[rank::2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named_in_one_line(dataset: LoadedDataset, tmp_path: Path, num_workers: int) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    records = [{**dataset.records[0], "file_name": str(broken)}]
    for loader in (
        build_train_loader(_cfg(num_workers), LoadedDataset(dataset.metadata, records)),
        build_eval_loader(_cfg(num_workers), LoadedDataset(dataset.metadata, records), "val"),
    ):
        with pytest.raises(ValueError, match=r"broken\.jpg") as caught:
            next(iter(loader))
        assert "\n" not in str(caught.value)
    gone = [{**dataset.records[0], "file_name": str(tmp_path / "gone.jpg")}]
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        next(iter(build_train_loader(_cfg(num_workers), LoadedDataset(dataset.metadata, gone))))


def _drops_odd(record, rng):
    return None if record["image_id"] % 2 else {"image_id": record["image_id"], "draw": rng.random()}


def _drops_all(record, rng):
    return None


def _breaks(record, rng):
    return {}["no such key"]


@pytest.fixture
def picky():
    """Mappers that drop images of odd id, drop all, and are broken."""
    mappers = {"DropsOdd": _drops_odd, "DropsAll": _drops_all, "Breaks": _breaks}
    for name, mapper in mappers.items():
        DATASET_MAPPER_REGISTRY.register(name)(lambda *_, mapper=mapper: mapper)
    yield
    for name in mappers:
        DATASET_MAPPER_REGISTRY._obj_map.pop(name)


def test_dropped_images_are_replaced_the_same_way_by_any_worker(dataset: LoadedDataset, picky: None) -> None:
    records = [{"file_name": f"{i}.jpg", "image_id": i} for i in range(10)]
    numbered = LoadedDataset(dataset.metadata, records)
    made = []
    for workers in (0, 2):
        cfg = _cfg(workers)
        cfg.dataset.train.mapper = "DropsOdd"
        made.append([s for batch in islice(build_train_loader(cfg, numbered), 15) for s in batch])
    assert made[0] == made[1]
    assert all(sample["image_id"] % 2 == 0 for sample in made[0])
    assert len({sample["draw"] for sample in made[0]}) == 30
    assert len({sample["image_id"] for sample in made[0]}) == 5


def test_a_mapper_that_drops_everything_or_breaks_is_reported_with_the_image(
    dataset: LoadedDataset, picky: None
) -> None:
    one = LoadedDataset(dataset.metadata, [{"file_name": "only.jpg", "image_id": 1}])
    cfg = _cfg()
    cfg.dataset.train.mapper = cfg.dataset.val.mapper = "DropsAll"
    with pytest.raises(ValueError, match=r"dropped only\.jpg and 100 others"):
        next(iter(build_train_loader(cfg, one)))
    with pytest.raises(ValueError, match=r"dropped only\.jpg$"):
        next(iter(build_eval_loader(cfg, one, "val")))
    cfg.dataset.train.mapper = "Breaks"
    with pytest.raises(RuntimeError, match=r"only\.jpg: KeyError: 'no such key'"):
        next(iter(build_train_loader(cfg, one)))


def test_memory_is_shared(dataset: LoadedDataset) -> None:
    loader = build_train_loader(_cfg(), dataset)
    records = loader._batches.dataset.records
    assert records is dataset.records  # no list of them stays behind on the heap
    assert isinstance(records._bytes, Tensor) and records._bytes.dtype == torch.uint8
    by_hand = LoadedDataset(dataset.metadata, [*dataset.records, *dataset.records])
    records = build_eval_loader(_cfg(), by_hand, "val")._batches.dataset.records
    assert isinstance(records, PackedRecords) and list(records) == by_hand.records


@pytest.mark.parametrize("num_workers", [0, 1])
def test_failures_can_be_taken_beside_the_samples(dataset: LoadedDataset, tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    lost = [{"file_name": str(tmp_path / name), "image_id": name} for name in ("broken.jpg", "gone.jpg", "lost.jpg")]
    good = list(dataset.records[:4])
    records = [good[0], lost[0], good[1], good[2], *lost[1:], good[3]]
    failures = []
    loader = build_eval_loader(
        _cfg(num_workers), LoadedDataset(dataset.metadata, records), "val", tasks=(), on_failure=failures.append
    )
    assert [[s["file_name"] for s in batch] for batch in loader] == [
        [good[0]["file_name"]],
        [good[1]["file_name"], good[2]["file_name"]],
        [good[3]["file_name"]],
    ]
    assert [failure.file_name for failure in failures] == [record["file_name"] for record in lost]
    assert all(failure.file_name in failure.message for failure in failures)


def test_a_broken_mapper_is_no_failure_of_its_image(dataset: LoadedDataset, picky: None) -> None:
    cfg = _cfg()
    cfg.dataset.val.mapper = "Breaks"
    one = LoadedDataset(dataset.metadata, [{"file_name": "only.jpg", "image_id": 1}])
    with pytest.raises(RuntimeError, match="KeyError"):
        list(build_eval_loader(cfg, one, "val", on_failure=[].append))
