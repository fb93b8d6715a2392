"""A run that was stopped and resumed equals one that was not, bit for bit; what cannot be resumed is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2f.config import load_spec
from m2f.engine.hooks import HOOK_REGISTRY
from m2f.engine.run import main
from m2f.engine.train_loop import HookBase
from m2f.engine.trainer import DefaultTrainer

# What makes resuming hard: workers, augmentation, checkpoints in mid-epoch, accumulation, a rate that depends on the
# validation loss, dropout, a best metric.
HARD = [
    "dataset.train.num_workers=2",
    "train.iters_per_epoch=3",
    "train.num_epochs=4",
    "train.validation_interval=1",
    "train.checkpoint_interval=2",
    "train.checkpoint_interval_unit=step",
    "train.accumulate_steps=2",
    "train.best_metric=val_loss",
    "train.best_mode=min",
    "train.optim.lr_scheduler=AutoReduce",
    "train.optim.patience=0",
    "train.optim.lr=1e-6",  # too low to improve the validation loss, so that it is reduced
    "train.num_visualizations=0",
    "model.mask_former.dropout=0.1",
]


class StopAt(HookBase):
    """Interrupts the run like Ctrl-C at a moment of an iteration; None: never."""

    at: tuple[str, int] | None = None

    def after_step(self) -> None:
        random.random()  # every generator must be restored, not only those that the model happens to use
        np.random.rand()  # noqa: NPY002
        self._stop("step")

    def after_evaluation(self, metrics: dict[str, float]) -> None:  # noqa: ARG002
        self._stop("evaluation")

    def _stop(self, moment: str) -> None:
        if StopAt.at == (moment, self.trainer.iteration):
            raise KeyboardInterrupt


@HOOK_REGISTRY.register("StopAt")
def build_stop_at(*_: Any) -> StopAt:
    return StopAt()


def run(spec: Path, folder: Path, *overrides: str, stop_at: tuple[str, int] | None = None) -> int:
    StopAt.at = stop_at
    return main(["-e", str(spec), f"results_dir={folder}", "train.hooks=[StopAt]", *overrides])


def latest(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "train" / "mask2former_model_latest.pth", weights_only=True)


def assert_equal(one: Any, other: Any, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def test_resumed_equals_undisturbed(spec_file: Path, tmp_path: Path) -> None:
    assert run(spec_file, tmp_path / "whole", *HARD) == 0
    for stop in (("step", 4), ("evaluation", 6), ("step", 11)):  # in mid-epoch, between checkpoint and evaluation
        assert run(spec_file, tmp_path / "parts", *HARD, stop_at=stop) == 130
    assert run(spec_file, tmp_path / "parts", *HARD) == 0
    whole, parts = latest(tmp_path / "whole"), latest(tmp_path / "parts")
    assert whole.pop("spec") != parts.pop("spec")  # the folder
    assert whole["iteration"] == 12
    assert whole["schedule"]["reductions"] > 0  # else the test would not show that it is restored
    assert_equal(whole, parts)
    assert (tmp_path / "whole" / "train" / "mask2former_model_best.pth").is_file()


def test_fp16_scale_is_restored(spec_file: Path, tmp_path: Path) -> None:
    assert run(spec_file, tmp_path / "run", "train.max_iters=1") == 0
    path = tmp_path / "run" / "train" / "mask2former_model_latest.pth"
    state = latest(tmp_path / "run")
    scaler = {
        "scale": 1024.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 7,
    }
    torch.save({**state, "scaler": scaler}, path)
    trainer = DefaultTrainer(load_spec(spec_file, [f"results_dir={tmp_path / 'run'}", "train.precision=fp16"]))
    trainer.resume_or_load()
    assert trainer.step.scaler.state_dict() == scaler


def test_evaluation_leaves_training_alone(spec_file: Path, tmp_path: Path) -> None:
    assert run(spec_file, tmp_path / "often", "train.validation_interval=1") == 0
    assert run(spec_file, tmp_path / "once", "train.validation_interval=4") == 0
    assert_equal(latest(tmp_path / "often")["model"], latest(tmp_path / "once")["model"])


def test_accumulation_fetches_what_a_big_batch_would(spec_file: Path, tmp_path: Path) -> None:
    assert run(spec_file, tmp_path / "one", "dataset.train.batch_size=4", "train.max_iters=1") == 0
    assert (
        run(spec_file, tmp_path / "two", "dataset.train.batch_size=2", "train.accumulate_steps=2", "train.max_iters=1")
        == 0
    )
    assert latest(tmp_path / "one")["position"] == latest(tmp_path / "two")["position"] == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "model.mask_former.num_object_queries=7",
            "transformer_decoder.query_feat.weight is (6, 32) there and (7, 32) here",
        ),
        ("model.mask_former.nheads=8", "model.mask_former.nheads is 4 there and 8 here"),
    ],
)
def test_changed_architecture_is_refused(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    assert run(spec_file, tmp_path / "run", "train.max_iters=2", "train.validation_interval=4") == 0
    before = latest(tmp_path / "run")
    assert run(spec_file, tmp_path / "run", override) == 2
    assert words in capsys.readouterr().err
    assert_equal(before, latest(tmp_path / "run"))
    spec = load_spec(tmp_path / "run" / "train" / "spec.yaml")  # that of the run whose results lie there
    assert (spec.model.mask_former.num_object_queries, spec.model.mask_former.nheads) == (6, 4)
    assert run(spec_file, tmp_path / "run", override, "train.resume=never", "train.max_iters=1") == 0


def test_finished_run_says_so_and_evaluates(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(spec_file, tmp_path / "run", "train.max_iters=2") == 0
    before = latest(tmp_path / "run")
    (tmp_path / "run" / "train" / "results.json").unlink()
    capsys.readouterr()
    assert run(spec_file, tmp_path / "run", "train.max_iters=2", "--resume") == 0
    assert "training is finished: 2 of 2 iterations are done; evaluating only" in capsys.readouterr().out
    assert (tmp_path / "run" / "train" / "results.json").is_file()
    assert_equal(before, latest(tmp_path / "run"))


def test_removing_the_latest_checkpoint_starts_afresh(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["train.max_iters=2", "train.validation_interval=4", "dataset.val.name="]
    assert run(spec_file, tmp_path / "run", *short) == 0
    (tmp_path / "run" / "train" / "mask2former_model_latest.pth").unlink()
    capsys.readouterr()
    assert run(spec_file, tmp_path / "run", *short) == 0
    said = capsys.readouterr().out
    assert "mask2former_model_latest.pth is not there: the checkpoints in" in said
    assert "starting from random weights" in said


def test_changed_settings_hold_and_are_said(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(spec_file, tmp_path / "run", "train.max_iters=2") == 0
    frozen = latest(tmp_path / "run")["model"]
    assert (
        run(spec_file, tmp_path / "run", "train.max_iters=4", "train.optim.lr=1e-30", "train.optim.weight_decay=0") == 0
    )
    assert "train.optim.lr: 0.001 -> 1e-30" in capsys.readouterr().out
    assert latest(tmp_path / "run")["iteration"] == 4
    for name, tensor in latest(tmp_path / "run")["model"].items():
        if tensor.is_floating_point() and "running" not in name:
            assert torch.allclose(tensor, frozen[name], atol=1e-12), name


def test_explicit_path_wins_and_weights_alone_are_refused(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(spec_file, tmp_path / "run", "train.max_iters=4", "train.validation_interval=2") == 0
    first = tmp_path / "run" / "train" / "model_epoch=000.pth"  # TAO's spelling
    assert (
        run(spec_file, tmp_path / "other", f"train.resume_training_checkpoint_path={first}", "train.max_iters=4") == 0
    )
    assert_equal(latest(tmp_path / "run")["model"], latest(tmp_path / "other")["model"])
    weights = tmp_path / "weights.pth"
    torch.save({"model": latest(tmp_path / "run")["model"]}, weights)
    assert run(spec_file, tmp_path / "third", f"train.resume_training_checkpoint_path={weights}") == 2
    assert "set train.pretrained_model_path" in capsys.readouterr().err
    assert run(spec_file, tmp_path / "third", f"train.pretrained_model_path={weights}", "train.max_iters=1") == 0


def test_fresh_seed_is_kept_by_a_resumed_run(spec_file: Path, tmp_path: Path) -> None:
    fresh = ["train.seed=-1", "train.checkpoint_interval=1"]
    assert run(spec_file, tmp_path / "run", *fresh, "train.max_iters=2") == 0
    seed = latest(tmp_path / "run")["seed"]
    assert run(spec_file, tmp_path / "run", *fresh, "train.max_iters=4") == 0
    assert latest(tmp_path / "run")["seed"] == seed
    assert run(spec_file, tmp_path / "other", *fresh, "train.max_iters=1") == 0
    assert latest(tmp_path / "other")["seed"] != seed


def test_damaged_latest_falls_back_loudly(spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(spec_file, tmp_path / "run", "train.max_iters=4", "train.keep_checkpoints=2") == 0
    whole = latest(tmp_path / "run")
    for name in ("mask2former_model_latest.pth", "model_epoch_001.pth"):
        path = tmp_path / "run" / "train" / name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
    assert run(spec_file, tmp_path / "run", "train.max_iters=4", "train.keep_checkpoints=2") == 0
    assert "FALLING BACK" in capsys.readouterr().out
    assert_equal(whole["model"], latest(tmp_path / "run")["model"])
