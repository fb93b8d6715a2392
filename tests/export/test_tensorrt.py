"""What is said where no engine can run; running one needs a GPU and tensorrt."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from m2f.export.tensorrt_runtime import load_engine


def test_missing_files_are_named(make_info, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such engine: .*gone\.engine"):
        load_engine(tmp_path / "gone.engine")
    (tmp_path / "lonely.engine").write_bytes(b"engine")
    with pytest.raises(FileNotFoundError, match=r"lonely\.engine needs lonely\.json beside it"):
        load_engine(str(tmp_path / "lonely.engine"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_tensorrt_or_a_gpu_one_error_has_the_line_that_builds_the_engine(make_info, tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"engine")
    path.with_suffix(".json").write_text(make_info(height=64, width=96).to_json())
    missing = importlib.util.find_spec("tensorrt") is None
    with pytest.raises(ModuleNotFoundError if missing else ValueError) as error:
        load_engine(path)
    message = str(error.value)
    assert message.startswith(f"{path} is a TensorRT engine and ")
    assert f"trtexec --onnx={tmp_path / 'model.onnx'} --saveEngine={path} --minShapes=inputs:1x3x64x96" in message
    assert "\n" not in message
