"""Where the numbers of a run go: console, metrics.json, TensorBoard, status.json."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from m2f.engine.events import HISTORY, Event, EventStorage

logger = logging.getLogger(__name__)

Status = Literal["STARTED", "RUNNING", "SUCCESS", "FAILURE", "SKIPPED"]
_AUX_LOSS = re.compile(r"loss_.*_\d+$")


class Writer:
    """Carries what a storage holds to one place; a member overrides what concerns it."""

    def tick(self, storage: EventStorage) -> None:
        """Called after every iteration; must be cheap and must not read tensors at most of them."""

    def write(self, storage: EventStorage) -> None:
        """Called every `train.log_interval` iterations, and after an evaluation."""

    def add_image(self, name: str, picture: np.ndarray, iteration: int) -> None:
        """Take a picture (H, W, 3) uint8 RGB; most writers have no place for one."""

    def close(self) -> None:
        """Called once, when the run ends for whatever reason."""


class _Unwritten:
    """Tells which names have a newer value than the last time it was asked."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}

    def take(self, storage: EventStorage) -> dict[str, Event]:
        fresh = {name: e for name, e in storage.shown().items() if e.iteration > self._written.get(name, -1)}
        self._written.update({name: event.iteration for name, event in fresh.items()})
        return fresh


class ConsoleWriter(Writer):
    """One log line per interval; on a terminal a progress bar below it.

    Reads the names "total_loss", "loss_*", "lr", "data_time" and "time" (seconds), as far as they are there.

    Args:
        max_iters: iterations of the whole run.
        iters_per_epoch: for the epoch shown.
    """

    def __init__(self, max_iters: int, iters_per_epoch: int) -> None:
        self._max_iters = max_iters
        self._iters_per_epoch = max(iters_per_epoch, 1)
        self._shown = -1
        self._bar: tqdm[Any] | None = None

    def tick(self, storage: EventStorage) -> None:
        """Move the progress bar, where standard error is a terminal."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = tqdm(total=self._max_iters, initial=storage.start_iteration, unit="it", leave=False)
        self._bar.update(storage.iteration + 1 - self._bar.n)

    def write(self, storage: EventStorage) -> None:
        """Log one line."""
        if "time" not in storage or storage.iteration == self._shown:
            return  # an evaluation in between has its own table
        self._shown = storage.iteration
        if self._bar is not None:
            self._bar.clear()
        logger.info(self._line(storage))

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, storage: EventStorage) -> str:
        done = storage.iteration + 1
        epochs = math.ceil(self._max_iters / self._iters_per_epoch)
        seconds_left = storage.median("time", HISTORY) * (self._max_iters - done)
        parts = [
            f"epoch {storage.iteration // self._iters_per_epoch + 1}/{epochs}",
            f"iteration {done}/{self._max_iters}",
            *_loss_parts(storage),
            *([f"lr {storage.latest('lr'):.3g}"] if "lr" in storage else []),
            *([f"data_time {storage.median('data_time'):.4f}s"] if "data_time" in storage else []),
            f"time {storage.median('time'):.4f}s",
            f"eta {timedelta(seconds=int(seconds_left))}",
            f"max_mem {max_memory_mib():.0f}MiB",
        ]
        return "  ".join(parts)


def _loss_parts(storage: EventStorage) -> list[str]:
    """The total, the last layer's parts, and the other layers' (`loss_ce_0` ...) in one sum."""
    losses = {name: event.value for name, event in storage.shown().items() if name.startswith("loss_")}
    aux = [value for name, value in losses.items() if _AUX_LOSS.match(name)]
    parts = [f"total_loss {storage.median('total_loss'):.4g}"] if "total_loss" in storage else []
    parts += [f"{name} {value:.4g}" for name, value in losses.items() if not _AUX_LOSS.match(name)]
    return parts + ([f"loss_aux {sum(aux):.4g}"] if aux else [])


def max_memory_mib() -> float:
    """The most memory this process has held so far, in MiB: CUDA's where it is in use, else resident memory."""
    on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    if on_device:
        return on_device / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB


class JsonWriter(Writer):
    """metrics.json: one JSON object per line, `{"iteration": i, name: value, ...}`; not finite is null.

    Args:
        path: the file; its folder is made.
        start_iteration: lines of this iteration and later are dropped from an existing file, so that a resumed run
            says everything once. A last line cut short by a kill is dropped as well.
    """

    def __init__(self, path: str | Path, start_iteration: int = 0) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._unwritten = _Unwritten()
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _is_before(line, start_iteration)]
            fresh = self._path.with_name(f"{self._path.name}.tmp")
            fresh.write_text("".join(f"{line}\n" for line in kept))
            os.replace(fresh, self._path)
        self._file = self._path.open("a")

    def write(self, storage: EventStorage) -> None:
        """Append what is new since the last call, a line per iteration."""
        by_iteration: dict[int, dict[str, float | None]] = {}
        for name, event in self._unwritten.take(storage).items():
            by_iteration.setdefault(event.iteration, {})[name] = _finite(event.value)
        for iteration, values in sorted(by_iteration.items()):
            self._file.write(json.dumps({"iteration": iteration, **dict(sorted(values.items()))}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_before(line: str, iteration: int) -> bool:
    try:
        return bool(json.loads(line)["iteration"] < iteration)
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no word for NaN


class TensorBoardWriter(Writer):
    """TensorBoard scalars and pictures.

    Args:
        directory: where the event files go.
        purge_step: TensorBoard hides what earlier files say of this step and later; the start iteration.
    """

    def __init__(self, directory: str | Path, purge_step: int = 0) -> None:
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)
        self._unwritten = _Unwritten()

    def write(self, storage: EventStorage) -> None:
        """Add the scalars that are new since the last call."""
        for name, event in self._unwritten.take(storage).items():
            self._writer.add_scalar(name, event.value, event.iteration)

    def add_image(self, name: str, picture: np.ndarray, iteration: int) -> None:
        """Add a picture (H, W, 3) uint8 RGB."""
        self._writer.add_image(name, picture, iteration, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class StatusWriter(Writer):
    """TAO's status.json: JSON lines with date, time, status, verbosity and message.

    A RUNNING line with kpi and progress is written by itself at the end of each epoch of training; everything else
    comes from `report`.

    Args:
        path: the file; its folder is made, lines are appended.
        max_iters: iterations of the whole run; 0 for a task that does not train.
        iters_per_epoch: where epochs end.
    """

    def __init__(self, path: str | Path, max_iters: int = 0, iters_per_epoch: int = 1) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._max_iters = max_iters
        self._iters_per_epoch = max(iters_per_epoch, 1)
        self._epoch_began = time.perf_counter()

    def report(self, status: Status, message: str, kpi: Mapping[str, float] | None = None, **more: Any) -> None:
        """Append one line; `more` adds or replaces fields (`verbosity`, `epoch`, ...)."""
        now = datetime.now()
        line: dict[str, Any] = {
            "date": now.strftime("%m/%d/%Y"),
            "time": now.strftime("%H:%M:%S"),
            "status": status,
            "verbosity": "ERROR" if status == "FAILURE" else "INFO",
            "message": message,
        }
        if kpi is not None:
            line["kpi"] = {name: _finite(float(value)) for name, value in kpi.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({**line, **more}) + "\n")

    def tick(self, storage: EventStorage) -> None:
        """Report the epoch that ends with this iteration, if one does."""
        done = storage.iteration + 1
        if done % self._iters_per_epoch and done != self._max_iters:
            return
        seconds, self._epoch_began = time.perf_counter() - self._epoch_began, time.perf_counter()
        per_step = storage.median("time") if "time" in storage else seconds / self._iters_per_epoch
        kpi = {"train_loss": storage.median("total_loss")} if "total_loss" in storage else {}
        self.report(
            "RUNNING",
            "Train metrics generated.",
            kpi,
            epoch=storage.iteration // self._iters_per_epoch,
            step=storage.iteration,
            max_epoch=math.ceil(self._max_iters / self._iters_per_epoch),
            max_step=self._max_iters,
            time_per_epoch=str(timedelta(seconds=seconds)),
            time_per_step=str(timedelta(seconds=per_step)),
            eta=str(timedelta(seconds=per_step * (self._max_iters - done))),
        )
