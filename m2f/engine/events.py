"""The numbers of a run while it works; `writers.py` carries them to console and files."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

WINDOW = 20  # values whose median is shown
HISTORY = 1000  # values kept per name; the ETA is a median over all of them


class Event(NamedTuple):
    """The last value of one name."""

    value: float
    iteration: int


class EventStorage:
    """Scalars by name, each with a short history.

    Args:
        start_iteration: the first iteration of this process, counted from 0; more than 0 on resume.

    Attributes:
        iteration: the running iteration, counted from 0; the trainer sets it before each step.
        start_iteration: as given.
    """

    def __init__(self, start_iteration: int = 0) -> None:
        self.start_iteration = start_iteration
        self.iteration = start_iteration
        self._history: dict[str, deque[float | Tensor]] = {}
        self._iterations: dict[str, int] = {}
        self._smoothed: dict[str, bool] = {}
        self._has_tensors = False

    def put_scalar(self, name: str, value: float | Tensor, smoothed: bool = True) -> None:
        """Remember a value of the running iteration.

        Args:
            name: e.g. "loss_ce", "panoptic/PQ".
            value: a number, or a tensor of one element. A tensor stays on its device and is read only when a writer
                asks, so nothing here makes the host wait; do not change it in place afterwards.
            smoothed: writers show the median of the last 20 values; False: the value itself.
        """
        if isinstance(value, Tensor):
            value = value.detach().reshape(())
            self._has_tensors = True
        self._history.setdefault(name, deque(maxlen=HISTORY)).append(value)
        self._iterations[name] = self.iteration
        self._smoothed[name] = smoothed

    def put_scalars(self, values: Mapping[str, float | Tensor], smoothed: bool = True) -> None:
        """`put_scalar` for several names."""
        for name, value in values.items():
            self.put_scalar(name, value, smoothed)

    def __contains__(self, name: str) -> bool:
        return name in self._history

    def latest(self, name: str) -> float:
        """The last value.

        Raises:
            KeyError: nothing was put under `name`.
        """
        return self._numbers(name)[-1]

    def median(self, name: str, window: int = WINDOW) -> float:
        """The median of the last `window` values; NaN where one of them is NaN.

        Raises:
            KeyError: nothing was put under `name`.
        """
        values = self._numbers(name)[-window:]
        return math.nan if any(map(math.isnan, values)) else statistics.median(values)

    def shown(self) -> dict[str, Event]:
        """What writers show of every name: the median of a smoothed one, the last value of the others."""
        return {
            name: Event(self.median(name) if self._smoothed[name] else self.latest(name), self._iterations[name])
            for name in self._history
        }

    def _numbers(self, name: str) -> list[float]:
        self._fetch_tensors()
        return list(self._history[name])  # type: ignore[arg-type]  # _fetch_tensors left only floats

    def _fetch_tensors(self) -> None:
        """Turn all waiting tensors into floats with one transfer per device and dtype."""
        if not self._has_tensors:
            return
        waiting: dict[tuple[torch.device, torch.dtype], list[tuple[deque[float | Tensor], int, Tensor]]] = {}
        for values in self._history.values():
            for index, value in enumerate(values):
                if isinstance(value, Tensor):
                    waiting.setdefault((value.device, value.dtype), []).append((values, index, value))
        for rows in waiting.values():
            numbers = torch.stack([value for _, _, value in rows]).tolist()
            for (values, index, _), number in zip(rows, numbers, strict=True):
                values[index] = float(number)
        self._has_tensors = False
