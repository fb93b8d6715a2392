from __future__ import annotations

import pytest

from m2f.config import load_spec
from m2f.solver import Horizon


@pytest.mark.parametrize(
    ("words", "length", "world", "per_epoch", "max_iters"),
    [
        (["dataset.train.batch_size=4"], 42, 1, 10, 100),
        (["dataset.train.batch_size=4", "train.accumulate_steps=2"], 42, 1, 5, 50),
        (["dataset.train.batch_size=4"], 42, 2, 5, 50),
        (["dataset.train.batch_size=64"], 42, 1, 1, 10),
        (["train.iters_per_epoch=7"], 42, 1, 7, 70),
        (["train.max_iters=33", "train.iters_per_epoch=7"], 42, 1, 7, 33),
        (["train.is_dry_run=True", "train.max_iters=33"], 42, 1, 42, 1),
    ],
)
def test_epochs_become_iterations(words, length, world, per_epoch, max_iters):
    horizon = Horizon.from_config(load_spec(None, words), length, world)
    assert (horizon.iters_per_epoch, horizon.max_iters) == (per_epoch, max_iters)


def test_periods_follow_their_units():
    words = ["train.iters_per_epoch=7", "train.checkpoint_interval=3", "train.validation_interval=2"]
    horizon = Horizon.from_config(load_spec(None, words), 42)
    assert (horizon.checkpoint_period, horizon.validation_period) == (21, 14)
    horizon = Horizon.from_config(load_spec(None, [*words, "train.checkpoint_interval_unit=step"]), 42)
    assert (horizon.checkpoint_period, horizon.validation_period) == (3, 14)
    assert horizon.iterations(2) == 14
