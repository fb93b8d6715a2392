"""The moments of the loop, in order, and the state of hooks."""

from __future__ import annotations

from typing import Any

import pytest

from m2f.engine.hooks import EarlyStopping, EvalHook, LossAverage
from m2f.engine.train_loop import HookBase, TrainerBase

MOMENTS = ("before_train", "before_step", "after_step", "after_train", "close")


class Diary(HookBase):
    def __init__(self) -> None:
        self.entries: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in MOMENTS:
            self.entries.append(f"{name} {self.trainer.iteration}")
        return super().__getattribute__(name)

    def state_dict(self) -> dict[str, Any]:
        return {"count": len(self.entries)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = ["loaded"] * state["count"]


class Loop(TrainerBase):
    def __init__(self, max_iters: int, fail_at: int = -1) -> None:
        super().__init__(max_iters)
        self.fail_at = fail_at
        self.losses = [float(max_iters - i) for i in range(max_iters)]

    def run_step(self) -> None:
        assert self.storage.iteration == self.iteration
        if self.iteration == self.fail_at:
            raise RuntimeError("step failed")
        self.storage.put_scalar("total_loss", self.losses[self.iteration])


def test_order_of_moments() -> None:
    loop, diary = Loop(2), Diary()
    loop.register_hooks([diary])
    loop.train()
    assert diary.entries == [
        "before_train 0",
        "before_step 0",
        "after_step 1",
        "before_step 1",
        "after_step 2",
        "after_train 2",
        "close 2",
    ]


def test_a_crash_closes_but_does_not_finish() -> None:
    loop, diary = Loop(3, fail_at=1), Diary()
    loop.register_hooks([diary])
    with pytest.raises(RuntimeError, match="step failed"):
        loop.train()
    assert diary.entries[-1] == "close 1"
    assert not any(entry.startswith("after_train") for entry in diary.entries)


def test_two_hooks_of_a_class_keep_their_own_state() -> None:
    loop, (one, two) = Loop(1), (Diary(), Diary())
    loop.register_hooks([one, two])
    two.entries = ["x"] * 4
    states = loop.hook_states()
    assert states == {"Diary": {"count": 0}, "Diary#2": {"count": 4}}
    other, hooks = Loop(1), (Diary(), Diary())
    other.register_hooks(hooks)
    other.load_hook_states(states)
    assert [len(hook.entries) for hook in hooks] == [0, 4]


def evaluating(loop: Loop, values: list[float], period: int) -> tuple[EvalHook, list[dict[str, float]]]:
    seen: list[dict[str, float]] = []
    left = iter(values)
    average = LossAverage()
    hook = EvalHook(lambda: {"panoptic/PQ": next(left)}, period, average, seen.append)
    loop.register_hooks([average, hook])
    return hook, seen


def test_evaluation_at_periods_and_at_the_end_with_the_mean_loss_since() -> None:
    loop = Loop(5)
    _, seen = evaluating(loop, [1.0, 2.0, 3.0], period=2)
    loop.train()
    assert seen == [
        {"panoptic/PQ": 1.0, "train_loss": 4.5},
        {"panoptic/PQ": 2.0, "train_loss": 2.5},
        {"panoptic/PQ": 3.0, "train_loss": 1.0},
    ]


def test_an_owed_evaluation_is_made_first_and_a_made_one_is_not_repeated() -> None:
    loop = Loop(5)
    _, seen = evaluating(loop, [1.0, 2.0], period=2)
    loop.iteration = 4
    loop.load_hook_states({"EvalHook": {"evaluated_at": 2}})
    loop.train()
    assert [row["panoptic/PQ"] for row in seen] == [1.0, 2.0]  # after 4 and after 5
    again = Loop(5)
    _, seen = evaluating(again, [9.0], period=2)
    again.iteration = 4
    again.load_hook_states({"EvalHook": {"evaluated_at": 4}})
    again.train()
    assert [row["panoptic/PQ"] for row in seen] == [9.0]  # after 5 only


@pytest.mark.parametrize(
    ("mode", "values", "ends"),
    [("max", [1, 2, 1.5, 2, 9, 9], 4), ("min", [3, 2, 2.5, float("nan"), 1, 1], 4), ("max", [1, 2, 1, 3, 2, 4], 6)],
)
def test_early_stopping_waits_for_patience(mode: Any, values: list[float], ends: int) -> None:
    loop = Loop(6)
    evaluating(loop, values, period=1)
    loop.register_hooks([EarlyStopping("panoptic/PQ", mode, patience=2)])
    loop.train()
    assert loop.iteration == ends


@pytest.mark.parametrize(("patience", "ends"), [(2, 3), (4, 5)])
def test_a_run_that_ended_early_has_ended_unless_it_gets_more_patience(patience: int, ends: int) -> None:
    loop = Loop(6)
    evaluating(loop, [2.0, 1.0, 1.0], period=1)
    loop.register_hooks([EarlyStopping("panoptic/PQ", "max", 2)])
    loop.train()
    again = Loop(6)
    evaluating(again, [1.0] * 3, period=1)
    again.register_hooks([EarlyStopping("panoptic/PQ", "max", patience)])
    again.iteration = loop.iteration
    again.load_hook_states(loop.hook_states())
    again.train()
    assert again.iteration == ends
    assert again.stopped


def test_hooks_meet_an_evaluation_when_the_schedule_has_seen_it() -> None:
    # A best checkpoint would otherwise remember the evaluation as made and its effect on the rates as not.
    order: list[str] = []

    class Saves(HookBase):
        def after_evaluation(self, metrics: dict[str, float]) -> None:  # noqa: ARG002
            order.append("hook")

    loop = Loop(1)
    hook = EvalHook(lambda: {"panoptic/PQ": 1.0}, 1, LossAverage(), lambda _: order.append("schedule"))
    loop.register_hooks([hook, Saves()])
    loop.train()
    assert order == ["schedule", "hook"]


def test_an_unknown_metric_lists_what_there_is() -> None:
    loop = Loop(1)
    evaluating(loop, [1.0], period=1)
    loop.register_hooks([EarlyStopping("PQ", "max", 1)])
    with pytest.raises(ValueError, match=r"train\.best_metric is 'PQ'; an evaluation has panoptic/PQ"):
        loop.train()
