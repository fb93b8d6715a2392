"""The command: exit codes, what is said, what is written, and what is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from m2f.config import load_spec
from m2f.engine.run import main
from m2f.engine.setup import task_directory
from m2f.engine.trainer import DefaultTrainer

QUICK = ["train.max_iters=1"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def status(folder: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]
    return [(row["status"], row["message"]) for row in rows]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.optim.lr_scheduler=MultStep",
            "train.optim.lr_scheduler: unknown schedule 'MultStep'; did you mean 'MultiStep'",
        ),
        ("train.optim.type=Adam", "train.optim.type: unknown optimiser 'Adam'"),
        ("model.backbone.type=swim", "model.backbone.type: unknown backbone 'swim'; did you mean 'swin'"),
        ("model.sem_seg_head.pixel_decoder=FPN", "Registered: FPNPixelDecoder, MSDeformAttnPixelDecoder"),
        ("dataset.train.sampler=Random", "dataset.train.sampler: unknown sampler"),
        ("dataset.train.mapper=Mapper", "dataset.train.mapper: unknown dataset mapper"),
        ("dataset.val.type=voc", "dataset.val.type: unknown dataset format 'voc'"),
        ("dataset.train.name=shapes", "dataset.train: unknown dataset 'shapes'"),
        ("evaluate.datasets=[nope]", "evaluate.datasets: unknown dataset 'nope'"),
        ("evaluate.evaluators=[nope]", "evaluate.evaluators: unknown evaluator 'nope'"),
        ("train.hooks=[nope]", "train.hooks: unknown hook 'nope'"),
        ("train.optim.lrr=1", "did you mean 'train.optim.lr'"),
        ("train.num_gpus=2", "train.num_gpus"),
    ],
)
def test_a_wrong_spec_is_one_line_and_writes_nothing(
    spec_file: Path, results: Path, capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    assert main(["--config-file", str(spec_file), override]) == 2
    assert words in error_line(capsys)
    assert not results.exists()


def test_a_wrong_argument_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--no-such-flag"]) == 2
    assert "--no-such-flag" in capsys.readouterr().err


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--eval-only" in capsys.readouterr().out


def test_flags_and_overrides_in_any_order(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train.seed", "-1", "--num-gpus", "2", "-e", str(spec_file), "--resume"]) == 2
    assert "train.num_gpus" in error_line(capsys)


def test_missing_data_are_the_users_mistake(
    spec_file: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [f"dataset.train.panoptic_json={tmp_path / 'no.json'}", f"dataset.train.img_dir={tmp_path}"]
    assert main(["-e", str(spec_file), *gone, f"dataset.train.panoptic_dir={tmp_path}"]) == 2
    assert "dataset.train.panoptic_json" in error_line(capsys)
    assert [row[0] for row in status(results / "train")] == ["STARTED", "FAILURE"]
    assert "Traceback" in (results / "train" / "log.txt").read_text()


def test_a_broken_image_met_in_training_is_the_users_mistake(
    spec_file: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"no image")
    (images / "list.jsonl").write_text(json.dumps({"img": "a.png", "segm": "a.png"}) + "\n")
    ade = [f"dataset.train.annot_file={images / 'list.jsonl'}", f"dataset.train.img_dir={images}"]
    more = ["dataset.train.type=ade", f"dataset.train.root_dir={images}", "dataset.train.num_workers=1"]
    assert main(["-e", str(spec_file), *ade, *more, "dataset.val.name=", "model.mode=semantic"]) == 2
    assert "a.png" in error_line(capsys)
    assert status(results / "train")[-1][0] == "FAILURE"


def test_an_unwritable_results_folder_is_the_users_mistake(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["-e", str(spec_file), f"results_dir={tmp_path / 'file'}"]) == 2
    assert "cannot be written to" in error_line(capsys)


def test_where_a_task_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for words, folder in (
        ([], "results/train"),
        (["results_dir=runs"], "runs/train"),
        (["results_dir=~/runs"], f"{tmp_path}/runs/train"),
        (["results_dir=runs", "train.results_dir=mine"], "mine"),
    ):
        assert str(task_directory(load_spec(None, words), "train")) == folder


class Defective(DefaultTrainer):
    error: type[BaseException] = ZeroDivisionError

    def run_step(self) -> None:
        raise self.error("inside")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ZeroDivisionError, 1, "ZeroDivisionError: inside"),
        (KeyboardInterrupt, 130, "interrupted"),
        (FloatingPointError, 1, "error: training diverged"),
    ],
)
def test_exit_codes_of_a_run(
    spec_file: Path,
    results: Path,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException],
    code: int,
    words: str,
) -> None:
    trainer = type("Trainer", (Defective,), {"error": error})
    assert main(["-e", str(spec_file)], trainer) == code
    assert words in capsys.readouterr().err
    assert status(results / "train")[-1][0] == "FAILURE"
    assert not list((results / "train").glob("*.pth"))


def test_divergence_names_its_place_and_keeps_the_checkpoints(
    spec_file: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-e", str(spec_file), "train.max_iters=2"]) == 0
    path = results / "train" / "mask2former_model_latest.pth"
    state = torch.load(path, weights_only=True)
    next(iter(state["model"].values())).fill_(torch.nan)
    path.unlink()
    torch.save(state, path)
    assert main(["-e", str(spec_file), "train.max_iters=4"]) == 1
    line = error_line(capsys)
    assert "iteration 3 of 4: " in line
    assert "not finite" in line
    assert "learning rate 0.001; images: " in line
    assert (results / "train" / "model_epoch_000.pth").is_file()


def test_training_writes_what_it_should(spec_file: Path, results: Path) -> None:
    assert main(["-e", str(spec_file), "train.best_metric=panoptic/PQ", "train.keep_checkpoints=2"]) == 0
    written = {path.name for path in (results / "train").iterdir()}
    assert {
        "log.txt",
        "spec.yaml",
        "status.json",
        "metrics.json",
        "results.json",
        "visualizations",
        "model_epoch_002.pth",
        "model_epoch_003.pth",
        "mask2former_model_latest.pth",
        "mask2former_model_best.pth",
    } <= written
    assert not {"model_epoch_000.pth", "model_epoch_001.pth"} & written
    kinds = [row[0] for row in status(results / "train")]
    assert (kinds[0], kinds[-1]) == ("STARTED", "SUCCESS")
    assert load_spec(results / "train" / "spec.yaml") == load_spec(
        spec_file, ["train.best_metric=panoptic/PQ", "train.keep_checkpoints=2"]
    )
    checkpoint = torch.load(results / "train" / "mask2former_model_latest.pth", weights_only=True)
    assert [row[1] for row in checkpoint["metadata"]["categories"]][:2] == ["disc", "square"]
    assert list((results / "train" / "visualizations" / "shapes_panoptic_val").glob("*_panoptic.png"))


def test_step_unit_names_epoch_and_iteration(spec_file: Path, results: Path) -> None:
    steps = ["train.checkpoint_interval=3", "train.checkpoint_interval_unit=step", "dataset.val.name="]
    assert main(["-e", str(spec_file), *steps]) == 0
    names = sorted(path.name for path in (results / "train").glob("model_epoch*"))
    assert names == [f"model_epoch_00{e}_step_0000{s}.pth" for e, s in ((1, 3), (2, 6), (3, 8))]


def test_evaluation_alone_gives_the_training_runs_numbers(
    spec_file: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = "evaluate.tasks=[panoptic, semantic, instance]"
    assert main(["-e", str(spec_file), tasks, *QUICK]) == 0
    assert main(["-e", str(spec_file), tasks, "--eval-only", "dataset.train.name="]) == 0
    trained, alone = (json.loads((results / task / "results.json").read_text()) for task in ("train", "evaluate"))
    assert trained == alone
    assert {name.split("/")[0] for name in alone["shapes_panoptic_val"]} == {"panoptic", "semantic", "instance"}
    assert [row[0] for row in status(results / "evaluate")] == ["STARTED", "RUNNING", "SUCCESS"]
    path = f"evaluate.checkpoint={results / 'train' / 'model_epoch=000.pth'}"
    assert main(["-e", str(spec_file), "--eval-only", path, "evaluate.datasets=[shapes_panoptic_train]"]) == 0
    again = json.loads((results / "evaluate" / "results.json").read_text())
    assert set(again) == {"shapes_panoptic_train"}


def test_evaluation_without_a_checkpoint_says_where_it_looked(
    spec_file: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-e", str(spec_file), "--eval-only"]) == 2
    assert f"set evaluate.checkpoint; {results / 'train'} has none" in error_line(capsys)


def test_other_classes_are_refused(spec_file: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-e", str(spec_file), *QUICK]) == 0
    path = results / "train" / "mask2former_model_latest.pth"
    state = torch.load(path, weights_only=True)
    state["metadata"]["categories"][1][1] = "hexagon"
    path.unlink()
    torch.save(state, path)
    assert main(["-e", str(spec_file), "--eval-only"]) == 2
    line = error_line(capsys)
    assert "differ from label 1 on" in line
    assert "hexagon" in line
    assert "square" in line


def test_dry_run_does_one_of_each_and_saves_nothing(spec_file: Path, results: Path) -> None:
    assert main(["-e", str(spec_file), "train.is_dry_run=True"]) == 0
    assert not list((results / "train").glob("*.pth"))
    lines = [json.loads(line) for line in (results / "train" / "metrics.json").read_text().splitlines()]
    assert {line["iteration"] for line in lines} == {0}
    assert "panoptic/PQ" in lines[-1]


def test_without_val_training_runs_and_says_so(
    spec_file: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-e", str(spec_file), *QUICK, "dataset.val.name="]) == 0
    assert "this run is not evaluated" in capsys.readouterr().out
    assert not (results / "train" / "results.json").exists()
    watch = ["train.optim.lr_scheduler=AutoReduce", "train.optim.monitor_name=val_loss"]
    for more in ([], ["train.is_dry_run=True"]):
        assert main(["-e", str(spec_file), *QUICK, "dataset.val.name=", *watch, *more]) == 2
        assert "train.optim.monitor_name watches the evaluation" in error_line(capsys)


def test_a_second_run_in_a_process_does_not_speak_twice(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        capsys.readouterr()
        assert main(["-e", str(spec_file), *QUICK, "train.resume=never", "dataset.val.name="]) == 0
    assert capsys.readouterr().out.count("starting from random weights") == 1
    assert len(logging.getLogger("m2f").handlers) == 2


def test_a_subclass_replaces_a_part(spec_file: Path, results: Path) -> None:
    class Linear(DefaultTrainer):
        def build_evaluators(self, metadata: Any) -> list[Any]:  # noqa: ARG002
            return []

    assert main(["-e", str(spec_file), *QUICK], Linear) == 0
    assert json.loads((results / "train" / "results.json").read_text()) == {"shapes_panoptic_val": {}}
