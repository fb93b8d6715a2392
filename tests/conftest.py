"""Shared fixtures: where real data lies, and a fixed seed for every test."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the tensors of tests are small: more threads only wait for each other
ROOT = Path(__file__).resolve().parent.parent


def _beside_the_checkout(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"{variable} is unset and {folder} does not exist: real data is not here")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    return _beside_the_checkout("M2F_REAL_DATA", "data")


@pytest.fixture(scope="session")
def oracles() -> Path:
    return _beside_the_checkout("M2F_ORACLES", "oracles")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code under test may use the global generator
