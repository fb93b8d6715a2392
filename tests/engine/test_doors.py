"""The keys that name weights: whatever home the file has, and what a run says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m2f.checkpoint.schemes import from_m2f
from m2f.engine.run import main

HEAD = ("sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias")


@pytest.fixture
def trained(spec_file: Path, tmp_path: Path) -> dict[str, Any]:
    """The checkpoint of a run of one iteration."""
    assert main(["-e", str(spec_file), "train.max_iters=1", "dataset.val.name="]) == 0
    return torch.load(tmp_path / "results" / "train" / "mask2former_model_latest.pth", weights_only=True)


@pytest.fixture
def official(trained: dict[str, Any]) -> dict[str, Tensor]:
    """Its weights under the official names."""
    return from_m2f(trained["model"], "official")


def evaluate(spec_file: Path, tmp_path: Path, content: object) -> int:
    """Save `content` and evaluate it."""
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return main(["-e", str(spec_file), "--eval-only", "dataset.train.name=", f"evaluate.checkpoint={path}"])


def numbers(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "results" / "evaluate" / "results.json").read_text())


def named(official: dict[str, Tensor], order: list[int], names: list[str]) -> dict[str, Any]:
    """A file that says what its rows are, and has them in another order."""
    rows = [*order, len(order)]
    reordered = {name: tensor[rows] if name in HEAD else tensor for name, tensor in official.items()}
    return {"state_dict": reordered, "meta": {"dataset_meta": {"classes": [names[label] for label in order]}}}


def test_an_official_file_is_evaluated_as_what_it_is(
    spec_file: Path, tmp_path: Path, trained: dict[str, Any], official: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(spec_file, tmp_path, trained) == 0
    expected = numbers(tmp_path)
    assert "weights.pth (m2f names)" in capsys.readouterr().out
    assert evaluate(spec_file, tmp_path, {"model": official, "iteration": 9}) == 0
    assert "weights.pth (official names)" in capsys.readouterr().out
    assert numbers(tmp_path) == expected


def test_classes_in_another_order_are_evaluated_by_their_names(
    spec_file: Path, tmp_path: Path, trained: dict[str, Any], official: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(spec_file, tmp_path, trained) == 0
    expected = numbers(tmp_path)
    names = [row[1] for row in trained["metadata"]["categories"]]
    order = [3, 0, 6, 1, 5, 2, 4]
    assert evaluate(spec_file, tmp_path, named(official, order, names)) == 0
    assert "class head: 7 rows by category name" in capsys.readouterr().out
    assert numbers(tmp_path)["shapes_panoptic_val"] == pytest.approx(expected["shapes_panoptic_val"])
    assert evaluate(spec_file, tmp_path, named(official, order, ["hexagon", *names[1:]])) == 2
    error = capsys.readouterr().err
    assert "labels would mean something else: only the model has disc; only the file has hexagon" in error


def test_what_does_not_fill_the_model_is_not_evaluated(
    spec_file: Path, tmp_path: Path, official: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = {name: tensor for name, tensor in official.items() if name.startswith("backbone.")}
    assert evaluate(spec_file, tmp_path, backbone) == 2
    assert "without which the model cannot answer" in capsys.readouterr().err
    queries = ("query_feat.weight", "query_embed.weight")
    fewer = {name: tensor[:4] if name.endswith(queries) else tensor for name, tensor in official.items()}
    assert evaluate(spec_file, tmp_path, fewer) == 2
    assert "set model.mask_former.num_object_queries to 4" in capsys.readouterr().err


def test_training_says_which_of_two_files_it_reads(
    spec_file: Path, tmp_path: Path, official: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(official, path)
    start = ["-e", str(spec_file), "train.max_iters=1", "dataset.val.name=", "train.resume=never"]
    assert main([*start, f"model.backbone.pretrained_weights={path}"]) == 0
    said = capsys.readouterr().out
    assert f"from {path} (official names)" in said
    assert "pixel_decoder." not in said
    assert main([*start, f"model.backbone.pretrained_weights={path}", f"train.pretrained_model_path={path}"]) == 0
    said = capsys.readouterr().out
    assert "train.pretrained_model_path is set: model.backbone.pretrained_weights is not read" in said
    assert "left at their initial values: 0 tensors" in said
