"""A fresh environment that holds numpy, Pillow, onnxruntime and m2f without its needs runs a graph."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import importlib.util, sys
import numpy as np
from m2f.export.runtime import OnnxModel
found, = OnnxModel(sys.argv[1]).predict([np.zeros((75, 101, 3), np.uint8)], ["semantic", "panoptic", "instance"])
print(found.semantic.shape, found.panoptic.ids.shape, found.instance.masks.shape[1:])
print([name for name in ("torch", "scipy", "pycocotools", "yacs", "onnx") if importlib.util.find_spec(name)])
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_bare_environment_runs_a_graph(make_info, write_graph, tmp_path: Path) -> None:
    source = tmp_path / "source"  # building in the checkout would leave files there
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "build", "results"))
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "numpy", "pillow", "onnxruntime", cwd=tmp_path)
    run(python, "-m", "pip", "install", "-q", "--no-deps", source, cwd=tmp_path)
    printed = run(python, "-c", SCRIPT, write_graph(make_info()), cwd=tmp_path)
    assert printed.splitlines() == ["(5, 75, 101) (75, 101) (75, 101)", "[]"]
