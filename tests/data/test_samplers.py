from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from m2f.config import get_cfg
from m2f.data.build import SAMPLER_REGISTRY
from m2f.data.samplers import InferenceShard, RepeatFactorSampler, TrainingSampler, repeat_factors


def _take(sampler, count: int, start: int = 0, stride: int = 1) -> list:
    return list(islice(sampler.draws(start, stride), count))


@pytest.mark.parametrize("sampler", [TrainingSampler(7, 3), RepeatFactorSampler(np.array([1.0, 2.5, 1.3, 4.0]), 3)])
def test_a_position_is_all_that_resuming_needs(sampler) -> None:
    whole = _take(sampler, 60)
    assert [draw.position for draw in whole] == list(range(60))
    for start in (0, 1, 6, 7, 8, 35):
        assert _take(sampler, 25, start) == whole[start : start + 25]


@pytest.mark.parametrize("sampler", [TrainingSampler(7, 3), RepeatFactorSampler(np.array([1.0, 2.5, 1.3]), 3)])
def test_ranks_share_the_order_without_overlap(sampler) -> None:
    whole = _take(sampler, 60)
    for world in (2, 3, 20):
        dealt = [_take(sampler, 60 // world, rank, world) for rank in range(world)]
        assert sorted((draw for hand in dealt for draw in hand), key=lambda draw: draw.position) == whole


def test_each_pass_is_another_permutation() -> None:
    draws = [draw.index for draw in _take(TrainingSampler(30, 0), 90)]
    passes = [draws[i : i + 30] for i in (0, 30, 60)]
    assert all(sorted(one) == list(range(30)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert draws != [draw.index for draw in _take(TrainingSampler(30, 1), 90)]


def test_repeat_factors_follow_the_formula() -> None:
    common = {"category_id": 1}
    records = [{"annotations": [common]} for _ in range(99)] + [{"annotations": [common, {"category_id": 2}]}]
    factors = repeat_factors(records, 0.04)
    assert factors[:99].tolist() == [1.0] * 99
    assert factors[99] == pytest.approx(2.0)  # sqrt(0.04 / 0.01)
    assert repeat_factors(
        [{"annotations": []}, {"segments_info": [{"category_id": 1, "iscrowd": 1}]}], 0.5
    ).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"a\.jpg.*TrainingSampler"):
        repeat_factors([{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}], 0.5)


def test_fractions_are_rounded_anew_and_right_on_average() -> None:
    sampler = RepeatFactorSampler(np.array([1.0, 1.25, 3.0]), 0)
    counts = np.array([np.bincount(sampler.pass_indices(i), minlength=3) for i in range(400)])
    assert set(counts[:, 0]) == {1} and set(counts[:, 1]) == {1, 2} and set(counts[:, 2]) == {3}
    assert counts[:, 1].mean() == pytest.approx(1.25, abs=0.07)


def test_from_config() -> None:
    cfg = get_cfg()
    cfg.dataset.train.repeat_threshold = 1.0
    records = [{"annotations": [{"category_id": 1}]}] * 3 + [{"annotations": [{"category_id": 2}]}]
    assert SAMPLER_REGISTRY.build("TrainingSampler", cfg, records, 5).num_records == 4
    assert SAMPLER_REGISTRY.build("RepeatFactorSampler", cfg, records, 5).factors[3] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no image"):
        TrainingSampler(0, 1)
    with pytest.raises(ValueError, match="negative"):
        TrainingSampler(1, -1)


@pytest.mark.parametrize("num_records", [0, 1, 5, 16, 17])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shards_cover_the_set_exactly_once(num_records: int, world: int) -> None:
    shards = [InferenceShard(num_records, rank, world) for rank in range(world)]
    assert [draw.index for shard in shards for draw in shard] == list(range(num_records))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
