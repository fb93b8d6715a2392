"""The hooks of a training run, in the order in which `DefaultTrainer` sets them up.

Timer, loss average and the hooks of `train.hooks` come first, so that a checkpoint holds what they did in its last
iteration. The checkpoint comes before the evaluation, so that a crash in there loses nothing; a run resumed at that
point evaluates first. Whoever acts on metrics does so in `after_evaluation`. The writers come last and carry it all.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Literal

from m2f import distributed
from m2f.checkpoint.checkpointer import Checkpointer
from m2f.checkpoint.spelling import checkpoint_name
from m2f.engine.train_loop import HookBase
from m2f.engine.writers import max_memory_mib
from m2f.registry import Registry

logger = logging.getLogger(__name__)

HOOK_REGISTRY = Registry(
    "hook",
    """`build(name, cfg, trainer)` gives a `HookBase`. The key is `train.hooks`; they act before the checkpoint, which
    holds their state.""",
)


class IterationTimer(HookBase):
    """Scalar "time": seconds of an iteration, hooks not counted."""

    def before_step(self) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def after_step(self) -> None:
        """Stop it."""
        self.trainer.storage.put_scalar("time", time.perf_counter() - self._began)


class LossAverage(HookBase):
    """Mean training loss since the last evaluation: the `train_loss` that AutoReduce may watch."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def after_step(self) -> None:
        """Add the loss of the step."""
        self._sum += self.trainer.storage.latest("total_loss")
        self._count += 1

    def take(self) -> float:
        """The mean, NaN before the first step; begins anew."""
        mean = self._sum / self._count if self._count else math.nan
        self._sum, self._count = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Sum and count."""
        return {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sum and count."""
        self._sum, self._count = state["sum"], state["count"]


class PeriodicCheckpointer(HookBase):
    """Saves the training state every `period` iterations and at the end of training.

    Args:
        checkpointer: where to.
        period: iterations between two checkpoints.
        iters_per_epoch: for the epoch in the name.
        unit: "epoch" names files by epoch, "step" by epoch and iteration.
        keep: how many checkpoints of this run stay; 0 keeps all.
    """

    def __init__(
        self, checkpointer: Checkpointer, period: int, iters_per_epoch: int, unit: Literal["epoch", "step"], keep: int
    ) -> None:
        self._checkpointer = checkpointer
        self._period = period
        self._iters_per_epoch = iters_per_epoch
        self._unit = unit
        self._keep = keep
        self._names: list[str] = []
        self._saved_at = -1

    def after_step(self) -> None:
        """Save where a period ends, and at the last iteration."""
        iteration = self.trainer.iteration
        if iteration % self._period == 0 or iteration == self.trainer.max_iters:
            self._save()

    def after_train(self) -> None:
        """Save where training was stopped early."""
        if self._saved_at != self.trainer.iteration:
            self._save()

    def _save(self) -> None:
        iteration = self.trainer.iteration
        epoch = max(iteration - 1, 0) // self._iters_per_epoch
        name = checkpoint_name(epoch, iteration if self._unit == "step" else None)
        self._saved_at = iteration
        self._names = [*(other for other in self._names if other != name), name]
        state = self.trainer.training_state()
        if distributed.is_main():
            logger.info("saved %s", self._checkpointer.save(name, state))
        self._remove_old()

    def _remove_old(self) -> None:
        if not self._keep:
            return
        old, self._names = self._names[: -self._keep], self._names[-self._keep :]
        if distributed.is_main():
            for name in old:
                self._checkpointer.remove(name)

    def state_dict(self) -> dict[str, Any]:
        """Names of the checkpoints that are kept, and when the last was saved."""
        return {"names": list(self._names), "saved_at": self._saved_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        self._names, self._saved_at = list(state["names"]), state["saved_at"]


class EvalHook(HookBase):
    """Evaluates every `period` iterations and at the end of training; its state says which iteration was the last.

    Args:
        evaluate: gives metrics by name; its result becomes `trainer.evaluation`.
        period: iterations between two evaluations.
        loss_average: adds the `train_loss` of the time since the last evaluation.
        observe: is shown the metrics; a schedule that reduces on a plateau listens.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        period: int,
        loss_average: LossAverage,
        observe: Callable[[dict[str, float]], None],
    ) -> None:
        self._evaluate = evaluate
        self._period = period
        self._loss_average = loss_average
        self._observe = observe
        self._evaluated_at = 0

    def before_train(self) -> None:
        """Make up for an evaluation that a killed run still owed."""
        self._evaluate_if_due()

    def after_step(self) -> None:
        """Evaluate where a period ends."""
        self._evaluate_if_due()

    def _evaluate_if_due(self) -> None:
        iteration = self.trainer.iteration
        is_due = iteration % self._period == 0 or iteration == self.trainer.max_iters
        if not is_due or self._evaluated_at == iteration:
            return
        metrics = self._evaluate()
        self._evaluated_at = iteration
        self.trainer.storage.put_scalars(metrics, smoothed=False)
        # First, so that a checkpoint written after the evaluation, the best one, holds what the schedule made of it.
        self._observe({**metrics, "train_loss": self._loss_average.take()})
        self.trainer.record_evaluation(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Which iteration was evaluated last."""
        return {"evaluated_at": self._evaluated_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        self._evaluated_at = state["evaluated_at"]


class _MetricWatcher(HookBase):
    """Acts after each evaluation on whether `metric` is better than it ever was.

    Args:
        metric: a name such as "panoptic/PQ" or "val_loss".
        mode: "max" where more is better, "min" where less is.
    """

    def __init__(self, metric: str, mode: Literal["max", "min"]) -> None:
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._best: float | None = None

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """Compare with the best."""
        if self._metric not in metrics:
            raise ValueError(f"train.best_metric is {self._metric!r}; an evaluation has {', '.join(sorted(metrics))}")
        value = metrics[self._metric]
        is_better = not math.isnan(value) and (self._best is None or self._sign * value > self._sign * self._best)
        if is_better:
            self._best = float(value)
        self.act(is_better, value)

    def act(self, is_better: bool, value: float) -> None:
        """What follows from an evaluation that gave `value`."""

    def state_dict(self) -> dict[str, Any]:
        """The best value."""
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The best value."""
        self._best = state["best"]


class EarlyStopping(_MetricWatcher):
    """Ends training after `patience` evaluations in a row without a better metric."""

    def __init__(self, metric: str, mode: Literal["max", "min"], patience: int) -> None:
        super().__init__(metric, mode)
        self._patience = patience
        self._waited = 0

    def before_train(self) -> None:
        """A run that ended early has ended, unless it is resumed with more patience."""
        self._stop_if_waited_enough()

    def act(self, is_better: bool, value: float) -> None:  # noqa: ARG002 - the contract
        """Count, and stop."""
        self._waited = 0 if is_better else self._waited + 1
        self._stop_if_waited_enough()

    def _stop_if_waited_enough(self) -> None:
        if self._waited >= self._patience and not self.trainer.stopped:
            self.trainer.stop(f"{self._metric} has not passed {self._best} in {self._waited} evaluations")

    def state_dict(self) -> dict[str, Any]:
        """The best value, and the evaluations since."""
        return {**super().state_dict(), "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        super().load_state_dict(state)
        self._waited = state["waited"]


class BestCheckpointer(_MetricWatcher):
    """Saves the training state as the best one, beside the numbered checkpoints and never as the latest."""

    def __init__(self, metric: str, mode: Literal["max", "min"], checkpointer: Checkpointer) -> None:
        super().__init__(metric, mode)
        self._checkpointer = checkpointer

    def act(self, is_better: bool, value: float) -> None:
        """Save what is better."""
        if not is_better:
            return
        state = self.trainer.training_state()
        if distributed.is_main():
            logger.info(
                "%s = %.4g is the best so far: saved %s", self._metric, value, self._checkpointer.save_best(state)
            )


class WritersHook(HookBase):
    """Carries the storage to `trainer.writers`: every `period` iterations, after an evaluation, and at the end."""

    def __init__(self, period: int) -> None:
        self._period = period
        self._has_news = False

    def before_train(self) -> None:
        """Write an evaluation that was made up for."""
        if self._has_news:
            self._write()

    def after_evaluation(self, metrics: dict[str, float]) -> None:  # noqa: ARG002 - the storage has them
        """Write at the next moment, whatever the period."""
        self._has_news = True

    def after_step(self) -> None:
        """Tick, and write where a period ends."""
        for writer in self.trainer.writers:
            writer.tick(self.trainer.storage)
        iteration = self.trainer.iteration
        if self._has_news or iteration % self._period == 0 or iteration == self.trainer.max_iters:
            self._write()

    def _write(self) -> None:
        self._has_news = False
        self.trainer.storage.put_scalar("max_memory_mib", max_memory_mib(), smoothed=False)
        for writer in self.trainer.writers:
            writer.write(self.trainer.storage)

    def close(self) -> None:
        """Close the writers."""
        for writer in self.trainer.writers:
            writer.close()
