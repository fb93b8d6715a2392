"""Every random number generator of the process: seeded, saved, restored, and kept apart from evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of all generators, in tensors and plain containers."""
    version, words, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - see seed_everything
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(word) for word in key], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Take back what `random_state` gave; devices that this machine lacks are left out."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, key, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(key, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, device_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(device_state, device)


@contextmanager
def separate_randomness(seed: int) -> Iterator[None]:
    """Inside, all generators start from `seed`; afterwards they are where they were before.

    Evaluation runs inside, so that training goes on as if nobody had looked, and a validation loss, which samples
    points, is comparable from one evaluation to the next.
    """
    state = random_state()
    seed_everything(seed)
    try:
        yield
    finally:
        set_random_state(state)
