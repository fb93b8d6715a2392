"""The loop of a training run and the moments at which hooks act. It assumes nothing but that training loops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from m2f.engine.events import EventStorage

logger = logging.getLogger(__name__)


class HookBase:
    """What happens beside the steps: a member overrides the moments that concern it.

    Attributes:
        trainer: the loop; set when the hook is added to it. `trainer.iteration` counts finished iterations.
    """

    trainer: Any

    def before_train(self) -> None:
        """Once, before the first step of this process."""

    def before_step(self) -> None:
        """Before each step; `trainer.iteration` iterations are finished."""

    def after_backward(self) -> None:
        """When all gradients of a step are there, before they are clipped and used."""

    def after_step(self) -> None:
        """After each step, which `trainer.iteration` now counts."""

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """After each evaluation, of the model as it is after `trainer.iteration` iterations.

        A run that was killed between a checkpoint and the evaluation that follows it evaluates first when resumed, so
        this moment comes before its first step then.
        """

    def after_train(self) -> None:
        """Once, when training came to its end; not after a crash."""

    def close(self) -> None:
        """Once, however training ended: release files."""

    def state_dict(self) -> dict[str, Any]:
        """What the hook must remember across a resume, as tensors and plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Evaluation(NamedTuple):
    """The last evaluation of a run."""

    iteration: int  # finished iterations when it was made
    metrics: dict[str, float]


class TrainerBase:
    """Steps until `max_iters` are finished or somebody calls `stop`.

    Attributes:
        iteration: finished iterations, those of an earlier process included.
        max_iters: where training ends.
        storage: the numbers of the run; its `iteration` is the one that runs, counted from 0.
        stopped: why training ends early; empty while it goes on.
        evaluation: the last one; None before the first.
    """

    def __init__(self, max_iters: int = 0) -> None:
        self.iteration = 0
        self.max_iters = max_iters
        self.storage = EventStorage()
        self.stopped = ""
        self.evaluation: Evaluation | None = None
        self.hooks: list[HookBase] = []

    def register_hooks(self, hooks: Sequence[HookBase]) -> None:
        """Append hooks; at each moment they act in this order."""
        for hook in hooks:
            hook.trainer = self
            self.hooks.append(hook)

    def run_step(self) -> None:
        """One iteration; a subclass says what it is."""
        raise TypeError(f"{type(self).__name__} does not define run_step")

    def train(self) -> None:
        """Run from `iteration` to `max_iters`."""
        try:
            self._tell("before_train")
            while self.iteration < self.max_iters and not self.stopped:
                self.storage.iteration = self.iteration
                self._tell("before_step")
                self.run_step()
                self.iteration += 1
                self._tell("after_step")
            self._tell("after_train")
        finally:
            self._tell("close")

    def stop(self, reason: str) -> None:
        """End training after the iteration that runs."""
        self.stopped = reason
        logger.info("training ends early after %d iterations: %s", self.iteration, reason)

    def record_evaluation(self, metrics: dict[str, float]) -> None:
        """Remember an evaluation of the model as it is, and tell the hooks."""
        self.evaluation = Evaluation(self.iteration, metrics)
        self._tell("after_evaluation", metrics)

    def _tell(self, moment: str, *what: Any) -> None:
        for hook in self.hooks:
            getattr(hook, moment)(*what)

    def hook_states(self) -> dict[str, dict[str, Any]]:
        """State of every hook that has one; a second hook of a class is `<class>#2`."""
        return {name: state for name, hook in self._named_hooks() if (state := hook.state_dict())}

    def load_hook_states(self, states: dict[str, dict[str, Any]]) -> None:
        """Give hooks their state back; a hook that is new since then keeps its fresh one."""
        for name, hook in self._named_hooks():
            if name in states:
                hook.load_state_dict(states[name])

    def _named_hooks(self) -> list[tuple[str, HookBase]]:
        seen: dict[str, int] = {}
        named = []
        for hook in self.hooks:
            name = type(hook).__name__
            seen[name] = seen.get(name, 0) + 1
            named.append((name if seen[name] == 1 else f"{name}#{seen[name]}", hook))
        return named
