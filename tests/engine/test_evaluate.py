"""Evaluation of whatever answers: weights, saved predictions, exported graphs; tiled, augmented; what is expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m2f.engine import api
from m2f.engine.run import command, main

ALL = "evaluate.tasks=[semantic, panoptic, instance]"
Evaluate = Callable[..., dict[str, float]]


@pytest.fixture
def trained(spec_file: Path) -> Path:
    """The spec of a run of a few iterations."""
    assert main(["-e", str(spec_file), "train.max_iters=6", "dataset.val.name="]) == 0
    return spec_file


@pytest.fixture
def evaluate(trained: Path) -> Evaluate:
    return lambda *words: next(iter(api.evaluate(trained, ALL, *words).values()))


def close(one: dict[str, float], other: dict[str, float], points: float) -> None:
    assert one.keys() == other.keys()
    assert one == pytest.approx(other, abs=points, nan_ok=True)


def test_saved_predictions_give_the_numbers_of_the_model(evaluate: Evaluate, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "evaluate"
    alone = evaluate("evaluate.save_predictions=True")
    assert (folder / "per_class.csv").read_text().startswith("dataset,task,class,")
    saved = f"evaluate.predictions=[{folder}/predictions]"
    close(
        evaluate(saved, "evaluate.checkpoint=there_is_none.pth", f"evaluate.results_dir={tmp_path}/again"), alone, 1e-9
    )


def test_several_data_sets_have_a_folder_of_predictions_each(trained: Path, tmp_path: Path) -> None:
    names = "evaluate.datasets=[shapes_panoptic_val, shapes_panoptic_train]"
    alone = api.evaluate(trained, names, "evaluate.save_predictions=True")
    assert list(alone) == ["shapes_panoptic_val", "shapes_panoptic_train"]
    saved = f"evaluate.predictions=[{tmp_path}/results/evaluate/predictions]"
    again = api.evaluate(trained, names, saved, f"evaluate.results_dir={tmp_path}/again")
    for name, metrics in alone.items():
        close(again[name], metrics, 1e-9)


def test_a_graph_of_mask_logits_answers_all_tasks_as_the_model_does(
    trained: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    api.export(trained, f"export.onnx_file={path}", "export.outputs=mask_logits", "export.dynamic_size=True")
    close(evaluate(f"evaluate.checkpoint={path}"), evaluate(), 0.1)


def test_a_graph_says_what_it_cannot_answer(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    api.export(trained, f"export.onnx_file={path}", "export.input_height=64", "export.input_width=64")
    capsys.readouterr()
    assert command(["evaluate", "-e", str(trained), ALL, f"evaluate.checkpoint={path}"]) == 2
    line = capsys.readouterr().err
    assert "answers panoptic, not semantic, instance; export it with export.outputs=mask_logits" in line


@pytest.mark.parametrize(
    "words", [("evaluate.tile_size=[48, 48]",), ("evaluate.tta_flip=True", "evaluate.tta_scales=[1, 1.5]")]
)
def test_tiles_and_augmentation_reach_the_metrics(trained: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    semantic = ("evaluate.tasks=[semantic]", "model.mode=semantic")
    plain, merged = api.evaluate(trained, *semantic), api.evaluate(trained, *semantic, *words)
    assert plain.keys() == merged.keys()
    assert plain != merged


def test_expected_results_decide_on_the_exit_code(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = api.evaluate(trained)["shapes_panoptic_val"]["panoptic/PQ_stuff"]
    words = ["evaluate", "-e", str(trained)]
    assert command([*words, f"evaluate.expected_results=[[panoptic/PQ_stuff, {value}, 0.01]]"]) == 0
    capsys.readouterr()
    assert command([*words, f"evaluate.expected_results=[[panoptic/PQ_stuff, {value + 1}, 0.01]]"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: evaluate.expected_results: panoptic/PQ_stuff is ")


def status_of(folder: Path) -> list[str]:
    return [json.loads(line)["status"] for line in (folder / "status.json").read_text().splitlines()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate.checkpoint=gone.onnx"], "gone.onnx"),
        (["evaluate.trt_engine=gone.engine"], "gone.engine"),
        (["evaluate.predictions=[gone]"], "no such file or folder of predictions: gone"),
        (["evaluate.expected_results=[[panoptic/pq, 1, 1]]"], "did you mean 'panoptic/PQ'"),
    ],
)
def test_mistakes_are_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    capsys.readouterr()
    assert command(["evaluate", "-e", str(trained), *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert status_of(tmp_path / "results" / "evaluate")[-1] == "FAILURE"


def test_the_api_raises_what_the_command_says(spec_file: Path, tmp_path: Path) -> None:
    with pytest.raises(api.UserError, match="did you mean 'train\\.optim\\.lr'"):
        api.train(spec_file, "train.optim.lrr=1")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(api.UserError, match="there is no checkpoint for inference"):
        api.inference(spec_file, f"inference.input=[{spec_file.parent / 'a.png'}]")
    trainer: Any = api.train(spec_file, "train.max_iters=1", "dataset.val.name=")
    assert trainer.iteration == 1
