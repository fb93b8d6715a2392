"""Learning rates over iterations: rate = base rate x factor(iteration) x warm-up.

A schedule saves counters and reductions, never rates, so a rate that is changed in the spec holds after a resume.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from m2f.solver.build import SCHEDULE_REGISTRY
from m2f.solver.horizon import Horizon

logger = logging.getLogger(__name__)

Factor = Callable[[int], float]


def constant(iteration: int) -> float:  # noqa: ARG001 - the signature of a factor
    """Factor 1."""
    return 1.0


def multi_step(milestones: Sequence[int], gamma: float) -> Factor:
    """Factor gamma ** (milestones, in iterations, that have been reached)."""
    return lambda iteration: gamma ** sum(iteration >= milestone for milestone in milestones)


def step(size: int, gamma: float) -> Factor:
    """Factor gamma ** (whole spans of `size` iterations that have passed)."""
    return lambda iteration: gamma ** (iteration // size)


def poly(max_iters: int, power: float, floor: float = 0.0) -> Factor:
    """From 1 to `floor` along (1 - progress) ** power (DeepLab, arXiv:1606.00915)."""
    return lambda iteration: floor + (1 - floor) * (1 - min(1.0, iteration / max_iters)) ** power


def cosine(max_iters: int, floor: float = 0.0) -> Factor:
    """From 1 to `floor` along half a cosine (SGDR without restarts, arXiv:1608.03983)."""
    return lambda iteration: floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, iteration / max_iters))) / 2


def linear_warmup(iters: int, start: float) -> Factor:
    """From `start` to 1 in `iters` iterations, then 1."""
    return lambda iteration: 1.0 if iteration >= iters else start + (1 - start) * iteration / iters


class Schedule:
    """Sets an optimiser's rates before each iteration.

    Args:
        optimizer: fresh; the rates of its groups are the base rates.
        factor: number of finished iterations -> factor.
        warmup: number of finished iterations -> another factor.
        verbose: log every change of a rate.
    """

    def __init__(
        self, optimizer: Optimizer, factor: Factor, warmup: Factor = constant, *, verbose: bool = False
    ) -> None:
        self.iteration = 0
        self._optimizer = optimizer
        self._factor = factor
        self._warmup = warmup
        self._verbose = verbose
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._apply()

    @property
    def lr(self) -> float:
        """The largest rate of now, for the log."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def factor(self) -> float:
        """Rate / base rate of the coming iteration."""
        return self._factor(self.iteration) * self._warmup(self.iteration)

    def step(self) -> None:
        """An iteration is over."""
        self.iteration += 1
        self._apply()

    def observe(self, metrics: Mapping[str, float]) -> None:
        """An evaluation is over; most schedules do not care."""

    def state_dict(self) -> dict[str, Any]:
        """Counters only."""
        return {"iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was saved, and set the rates of that place; after the optimiser's own state."""
        self.iteration = int(state["iteration"])
        self._apply()

    def _apply(self) -> None:
        factor = self.factor()
        for index, (group, base) in enumerate(zip(self._optimizer.param_groups, self._base_rates, strict=True)):
            rate = base * factor
            if self._verbose and rate != group["lr"]:
                logger.info(
                    "iteration %d: learning rate of group %d: %g -> %g", self.iteration, index, group["lr"], rate
                )
            group["lr"] = rate


class AutoReduce(Schedule):
    """Multiplies the rates by `gamma` when a monitored value stops falling.

    Args:
        optimizer: as in `Schedule`.
        monitor: name of the value in what is observed.
        gamma: factor of a drop.
        patience: so many observations in a row may bring no improvement; the next one drops.
        floor: lowest rate / base rate.
        warmup: as in `Schedule`.
        verbose: as in `Schedule`.

    Note:
        An improvement is a fall by more than one part in 10000, as in torch's ReduceLROnPlateau; NaN is none.
    """

    _THRESHOLD = 1e-4

    def __init__(
        self,
        optimizer: Optimizer,
        monitor: str,
        gamma: float,
        patience: int,
        floor: float = 0.0,
        warmup: Factor = constant,
        *,
        verbose: bool = False,
    ) -> None:
        self.best = math.inf
        self.reductions = 0
        self.bad = 0  # observations without improvement since the best or the last drop
        self._monitor = monitor
        self._gamma = gamma
        self._patience = patience
        self._floor = floor
        super().__init__(optimizer, self._reduced, warmup, verbose=verbose)

    def _reduced(self, iteration: int) -> float:  # noqa: ARG002 - the signature of a factor
        return max(self._floor, self._gamma**self.reductions)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Compare the monitored value with the best one.

        Raises:
            KeyError: it is not among `metrics`.
        """
        if self._monitor not in metrics:
            raise KeyError(f"train.optim.monitor_name is {self._monitor!r}, which is not among {', '.join(metrics)}")
        value = metrics[self._monitor]
        if value < self.best - abs(self.best) * self._THRESHOLD or (self.best == math.inf and value < math.inf):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.bad > self._patience:
            self.reductions, self.bad = self.reductions + 1, 0
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Counters, and the best value."""
        return {**super().state_dict(), "best": self.best, "reductions": self.reductions, "bad": self.bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in `Schedule`; the state of another schedule brings its iteration only."""
        self.best = float(state.get("best", math.inf))
        self.reductions = int(state.get("reductions", 0))
        self.bad = int(state.get("bad", 0))
        super().load_state_dict(state)


def _scheduled(cfg: Any, optimizer: Optimizer, factor: Factor) -> Schedule:
    return Schedule(optimizer, factor, _warmup(cfg), verbose=cfg.train.verbose)


def _warmup(cfg: Any) -> Factor:
    return linear_warmup(cfg.train.optim.warmup_iters, cfg.train.optim.warmup_factor)


@SCHEDULE_REGISTRY.register("MultiStep")
def build_multi_step(cfg: Any, optimizer: Optimizer, horizon: Horizon) -> Schedule:
    """A drop by `gamma` at each of `milestones` (epochs)."""
    optim = cfg.train.optim
    return _scheduled(cfg, optimizer, multi_step([horizon.iterations(m) for m in optim.milestones], optim.gamma))


@SCHEDULE_REGISTRY.register("StepLR")
def build_step(cfg: Any, optimizer: Optimizer, horizon: Horizon) -> Schedule:
    """A drop by `gamma` every `step_size` epochs."""
    return _scheduled(cfg, optimizer, step(horizon.iterations(cfg.train.optim.step_size), cfg.train.optim.gamma))


@SCHEDULE_REGISTRY.register("Warmuppoly")  # TAO's spelling
@SCHEDULE_REGISTRY.register("WarmupPoly")
def build_warmup_poly(cfg: Any, optimizer: Optimizer, horizon: Horizon) -> Schedule:
    """Warm-up, then polynomial decay to the end of the run."""
    optim = cfg.train.optim
    return _scheduled(cfg, optimizer, poly(horizon.max_iters, optim.poly_power, optim.min_lr_factor))


@SCHEDULE_REGISTRY.register("Cosine")
def build_cosine(cfg: Any, optimizer: Optimizer, horizon: Horizon) -> Schedule:
    """Warm-up, then half a cosine to the end of the run."""
    return _scheduled(cfg, optimizer, cosine(horizon.max_iters, cfg.train.optim.min_lr_factor))


@SCHEDULE_REGISTRY.register("AutoReduce")
def build_auto_reduce(cfg: Any, optimizer: Optimizer, horizon: Horizon) -> Schedule:  # noqa: ARG001 - the contract
    """A drop by `gamma` when `monitor_name` has not improved for `patience` evaluations."""
    optim = cfg.train.optim
    return AutoReduce(
        *(optimizer, optim.monitor_name, optim.gamma, optim.patience, optim.min_lr_factor, _warmup(cfg)),
        verbose=cfg.train.verbose,
    )
