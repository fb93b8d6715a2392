"""The command line of the converter: what it prints, how it ends, and that a mistake leaves nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from m2f.checkpoint.loading import read_state
from m2f.config import dump_spec, load_spec
from m2f.modeling.build import build_model
from m2f.structures.metadata import Category, contiguous_metadata

CLASSES = contiguous_metadata("toys", [Category(1, "ball"), Category(2, "rug", is_thing=False)])
SIZES = [
    "model.backbone.type=resnet",
    "model.backbone.resnet.type=custom",
    "model.backbone.resnet.depth=18",
    "model.backbone.resnet.stem_channels=8",
    "model.backbone.resnet.res2_channels=8",
    "model.backbone.resnet.width=8",
    "model.sem_seg_head.num_classes=2",
    "model.sem_seg_head.convs_dim=32",
    "model.sem_seg_head.mask_dim=16",
    "model.sem_seg_head.transformer_enc_layers=1",
    "model.mask_former.hidden_dim=32",
    "model.mask_former.nheads=4",
    "model.mask_former.dec_layers=2",
]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools" / "convert_checkpoint.py"
    spec = importlib.util.spec_from_file_location("tool_convert_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    cfg = load_spec(None, SIZES)
    path = tmp_path / "model_epoch_009.pth"
    content = {"model": build_model(cfg, CLASSES).state_dict(), "metadata": CLASSES.to_dict(), "m2f_version": "0.1.0"}
    torch.save({**content, "iteration": 3}, path)
    (tmp_path / "spec.yaml").write_text(dump_spec(cfg))
    return path


def test_three_lines_on_stdout_and_zero(
    tool: ModuleType, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pkl"
    assert tool.main([str(checkpoint), "--to", "official", "--output", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    count = len(read_state(checkpoint)[0])
    assert said == [
        f"read {count} tensors from {checkpoint} (m2f names)",
        f"wrote {out}: {count + 1} tensors for official, 2 classes",
        "dropped: metadata, iteration",
    ]


def test_arguments_come_in_any_order(
    tool: ModuleType, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    spec, first, second = (str(tmp_path / name) for name in ("spec.yaml", "one", "two"))
    to = ["--to", "huggingface"]
    assert (
        tool.main([str(checkpoint), "train.seed=3", *to, "--output", first, "-e", spec, "model.mode", "semantic"]) == 0
    )
    assert tool.main([*to, "--config-file", spec, "--output", second, str(checkpoint), "train.seed=3"]) == 0
    assert "2 classes (ball, rug)" in capsys.readouterr().out
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "two" / "config.json").read_text()


def test_a_finished_output_is_replaced_with_overwrite_alone(
    tool: ModuleType, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint), "--to", "tao", "--output", str(tmp_path / "tao.pth")]
    assert [tool.main(command), tool.main(command), tool.main([*command, "--overwrite"])] == [0, 2, 0]
    assert f"error: {tmp_path / 'tao.pth'} is there already; remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        ("absent.pth", "--to m2f --output out.pth", "checkpoint absent.pth does not exist"),
        ("{here}/broken.pth", "--to m2f --output out.pth", "broken.pth: not a readable checkpoint"),
        ("{whole}", "--to huggingface --output out", "spec as --config-file"),
        ("{whole}", "--to tao --output out.pkl", "out.pkl: a file for tao ends in .pth"),
        ("{whole}", "--to m2f --output out.pth train.sed=1", "brings no spec for train.sed"),
        ("{whole}", "--to m2f --output out.pth -e {here}/spec.yaml train.sed=1", "did you mean 'train.seed'"),
        ("{whole}", "--to m2f --output out.pth -e absent.yaml", "absent.yaml: there is no such"),
        ("{whole}", "--to m2f --output out.pth -e {here}/spec.yaml model.backbone.type=vit", "unknown backbone 'vit'"),
        (
            "{whole}",
            "--to m2f --output out.pth -e {here}/spec.yaml model.mask_former.dec_layers=4",
            "belong to another transformer_decoder",
        ),
    ],
)
def test_a_mistake_is_one_line_and_two_and_leaves_nothing(
    tool: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    words: str,
    message: str,
) -> None:
    (tmp_path / "broken.pth").write_bytes(checkpoint.read_bytes()[:5000])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    command = [word.format(here=tmp_path, whole=checkpoint) for word in (source, *words.split())]
    assert tool.main(command) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert list((tmp_path / "work").iterdir()) == []


def test_an_unknown_home_is_two(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main(["a.pth", "--to", "keras", "--output", "b.h5"])
    assert ended.value.code == 2
    assert "invalid choice: 'keras'" in capsys.readouterr().err
