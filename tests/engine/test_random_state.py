"""Every generator goes on where it was."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from m2f.checkpoint.checkpointer import Checkpointer, load_file
from m2f.engine.random_state import random_state, seed_everything, separate_randomness, set_random_state


def draw() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))  # noqa: NPY002


def test_state_survives_a_checkpoint(tmp_path: Path) -> None:
    seed_everything(5)
    draw()  # Python and NumPy now hold one half of a pair of normal numbers
    path = Checkpointer(tmp_path, "m").save("model_epoch_000.pth", {"rng": random_state()})
    expected = draw(), draw()
    set_random_state(load_file(path)["rng"])
    assert (draw(), draw()) == expected


def test_separate_randomness_leaves_no_trace() -> None:
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    with separate_randomness(9):
        inside = draw()
    assert draw() == expected
    with separate_randomness(9):
        assert draw() == inside
