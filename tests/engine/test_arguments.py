"""The command lines: tasks, help, TAO's launcher words, and what is wrong in one line."""

from __future__ import annotations

import pytest

from m2f.engine.arguments import parse_command, parse_train_net

TASKS = ("train", "evaluate", "inference", "export")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("launcher", [(), ("model", "mask2former"), ("mask2former",)])
@pytest.mark.parametrize("flag", ["-e", "--experiment_spec", "--config-file"])
def test_a_task_with_and_without_the_launchers_words(task: str, launcher: tuple[str, ...], flag: str) -> None:
    found, parsed = parse_command([*launcher, task, flag, "spec.yaml", "train.num_gpus=1", "device", "cpu"])
    assert (found, parsed.spec) == (task, "spec.yaml")
    assert parsed.overrides == ["train.num_gpus=1", "device", "cpu"]


def test_overrides_may_stand_anywhere() -> None:
    _, parsed = parse_command(["train", "train.seed", "-1", "-e", "a.yaml", "results_dir=x"])
    assert parsed.overrides == ["train.seed", "-1", "results_dir=x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a task first: train, evaluate, inference, export"),
        (["quantize", "-e", "a.yaml"], "'quantize' is no task; there are train, evaluate, inference, export"),
        (["train"], "required: -e/--experiment_spec/--config-file (see m2f train -h)"),
        (["train", "-e", "a.yaml", "--gpus", "2"], "--gpus"),
        (["--verbose"], "--verbose"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_command(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_help_lists_the_tasks_and_how_overrides_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_command(["-h"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n  {task} " in said for task in TASKS)
    assert "train.optim.lr=1e-4" in said
    assert "m2f://" in said
    with pytest.raises(SystemExit):
        parse_command(["export", "-h"])
    said = capsys.readouterr().out
    assert "export.onnx_file" in said
    assert "train.optim.lr=1e-4" in said


def test_detectron2s_flags_become_overrides() -> None:
    task, parsed = parse_train_net(["--eval-only", "--num-gpus", "2", "--config-file", "a.yaml", "device=cpu"])
    assert (task, parsed.overrides) == ("evaluate", ["evaluate.num_gpus=2", "device=cpu"])
    task, parsed = parse_train_net(["--resume"])
    assert (task, parsed.spec, parsed.overrides) == ("train", None, ["train.resume=auto"])
