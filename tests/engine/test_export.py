"""The export task: what it writes and says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from m2f.encryption import is_encrypted
from m2f.engine.run import command, main
from m2f.export.info import ExportInfo
from m2f.export.runtime import OnnxModel

SIZE = ("export.input_height=64", "export.input_width=96", "export.parity_count=2")
Export = Callable[..., int]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def export(spec_file: Path) -> Export:
    """Export a trained model with some settings."""
    assert main(["-e", str(spec_file), "train.max_iters=1", "dataset.val.name="]) == 0
    return lambda *words: command(["export", "-e", str(spec_file), *SIZE, *words])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_files_certificate_and_the_engines_command(
    export: Export, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export() == 0
    stem = results / "export" / "mask2former_model_latest"
    said = capsys.readouterr().out
    assert "export.opset_version 12 is raised to 16" in said
    assert f"trtexec --onnx={stem}.onnx --saveEngine={stem}.engine --minShapes=inputs:1x3x64x96" in said
    info = ExportInfo.from_json(stem.with_suffix(".json").read_text())
    assert (info.height, info.width, info.opset, info.mode, info.outputs) == (64, 96, 16, "panoptic", "tao")
    assert (info.checkpoint, len(info.checkpoint_sha256)) == ("mask2former_model_latest.pth", 64)
    assert OnnxModel(stem.with_suffix(".onnx")).info == info
    certificate = json.loads(stem.with_suffix(".parity.json").read_text())
    assert certificate["passed"]
    assert len(certificate["pictures"]) == 2
    assert [comparison["batch_size"] for comparison in certificate["comparisons"]] == [1, 2]
    assert {"spec.yaml", "status.json", "log.txt"} <= {path.name for path in (results / "export").iterdir()}
    assert not list((results / "export").glob(".*"))


def test_instances_come_with_what_deepstream_reads(export: Export, tmp_path: Path) -> None:
    path = tmp_path / "made" / "model.onnx"
    assert export("model.mode=instance", f"export.onnx_file={path}") == 0
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"model.onnx", "model.json", "model.parity.json", "model_nvinfer.txt", "model_labels.txt"}
    assert (path.parent / "model_labels.txt").read_text().splitlines()[:2] == ["disc", "square"]


def test_a_graph_that_answers_otherwise_gets_no_name(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made" / "model.onnx"
    assert export(f"export.onnx_file={path}") == 0
    before = path.read_bytes()
    capsys.readouterr()
    assert export(f"export.onnx_file={path}", "export.parity_tolerance=1e-30", "export.batch_size=1") == 1
    assert "does not answer as the model does" in error_line(capsys)
    assert path.read_bytes() == before
    path.unlink()
    assert export(f"export.onnx_file={path}", "export.parity_tolerance=1e-30") == 1
    assert not path.exists()
    assert not json.loads((path.parent / "model.parity.json").read_text())["passed"]
    assert not list(path.parent.glob(".*"))


def test_plugin_nodes_are_certified_on_a_copy(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    assert export(f"export.onnx_file={path}", "export.on_cpu=False") == 0
    assert "each plugin node is replaced by standard operators" in capsys.readouterr().out
    assert json.loads((tmp_path / "model.parity.json").read_text())["plugin_nodes_replaced"]
    types = [node.op_type for node in onnx.load(path).graph.node]
    assert types.count("MultiscaleDeformableAttnPlugin_TRT") == 1  # the spec has one layer
    assert "GridSample" not in types
    with pytest.raises(ValueError, match="MultiscaleDeformableAttnPlugin_TRT nodes, which only TensorRT runs"):
        OnnxModel(path)


def test_encrypted_it_is_an_etlt(export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    assert export(f"export.onnx_file={path}", "encryption_key=hush-hush") == 0
    assert not path.exists()
    assert is_encrypted(path.with_suffix(".etlt"))
    assert OnnxModel(path.with_suffix(".etlt"), "hush-hush").tasks == ("panoptic",)
    with pytest.raises(ValueError, match="encryption_key"):
        OnnxModel(path.with_suffix(".etlt"))
    left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"hush-hush" not in left + capsys.readouterr().out.encode()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export.checkpoint=gone.pth"], "gone.pth"),
        (["export.opset_version=99"], "export.opset_version is 99; torch's exporter writes 16 to 20"),
        (["export.input_height=100"], "'export.input_height' is 100: it must be a multiple of 32"),
        (["export.onnx_file=model.pb"], "export.onnx_file is 'model.pb'; it must end in .onnx"),
        (["export.onnx_file=model.etlt"], "which needs encryption_key"),
        (["export.parity_images=[gone.png]"], "no such image: gone.png"),
        (["model.sem_seg_head.num_classes=9"], "model.sem_seg_head.num_classes is 9, but the dataset has 7 classes"),
        (["export.outputs=panoptic_map", "model.mode=semantic"], "only panoptic has a map of segments"),
    ],
)
def test_mistakes_are_one_line(
    export: Export, results: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    capsys.readouterr()
    assert export(*words) == 2
    assert said in error_line(capsys)
    assert not list(results.rglob("*.onnx"))


def test_without_data_it_is_certified_on_drawn_pictures(
    export: Export, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("dataset.val.name=", "model.mode=semantic", "export.outputs=mask_logits") == 0
    assert "certified on drawn pictures" in capsys.readouterr().out
    (path,) = (results / "export").glob("*.parity.json")
    assert json.loads(path.read_text())["pictures"] == ["shapes/0", "shapes/1"]


def test_given_pictures_of_any_size(export: Export, results: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 131, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert export(f"export.parity_images=[{tmp_path / 'a.png'}]", "export.batch_size=3") == 0
    (path,) = (results / "export").glob("*.parity.json")
    assert json.loads(path.read_text())["pictures"] == [str(tmp_path / "a.png")]
