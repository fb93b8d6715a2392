"""The thin commands: what they print, what they draw, how they end."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from m2f.config import load_spec
from m2f.data.datasets.shapes import FOLDER, write_shapes

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "data:\n"
        "  contiguous_id: True\n"
        "  type: coco_panoptic\n"
        "  train: {name: shapes_panoptic_train, num_workers: 0}\n"
        "  val: {name: shapes_panoptic_val, num_workers: 0}\n"
        "  augmentation: {train_min_size: [64], train_crop_size: [64, 64], test_min_size: 64}\n"
        "model: {sem_seg_head: {num_classes: 7}}\n"
    )
    return path


def test_show_spec_prints_what_load_spec_reads(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train.optim.lr", "1e-3", "train.seed=5"]
    assert tool("show_spec").main([words[0], words[1], "--config-file", str(spec_file), words[2]]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert load_spec(shown) == load_spec(spec_file, words)
    assert tool("show_spec").main(["-e", str(spec_file), "--diff", "train.seed=5"]) == 0
    assert "train: {seed: 5}" in capsys.readouterr().out


def test_show_spec_names_a_mistake(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("show_spec").main(["-e", str(spec_file), "train.sed=5"]) == 2
    said = capsys.readouterr()
    assert "did you mean 'train.seed'" in said.err
    assert said.out == ""


@pytest.mark.parametrize("split", ["train", "val"])
def test_visualize_data_draws_what_is_fed(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    write_shapes(tmp_path / "datasets" / FOLDER, {"train": 2, "val": 2})
    monkeypatch.setenv("M2F_DATASETS", str(tmp_path / "datasets"))
    fed = tmp_path / "fed"
    command = ["dataset.augmentation.horizontal_flip=0", "-e", str(spec_file), "--split", split]
    assert tool("visualize_data").main([*command, "--output-dir", str(fed), "train.seed=3", "--num", "2"]) == 0
    pictures = sorted(fed.iterdir())
    assert [path.name[:3] for path in pictures] == ["000", "001"]
    assert all(Image.open(path).getbbox() for path in pictures)  # not black


def test_visualize_data_names_a_mistake(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["--config-file", str(spec_file), "--output-dir", str(tmp_path / "fed")]
    assert tool("visualize_data").main([*command, "dataset.train.name=shape"]) == 2
    assert "unknown dataset 'shape'" in capsys.readouterr().err + caplog.text
    assert not (tmp_path / "fed").exists()
