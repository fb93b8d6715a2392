"""SIGKILL at random moments, ten times in a row, then resumed: the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from m2f.checkpoint.checkpointer import PARTIAL_PREFIX
from m2f.data.datasets.shapes import FOLDER, write_shapes

ROOT = Path(__file__).resolve().parents[2]
KILLS = 10
KILLS_WHILE_WRITING = 3
MAX_ITERS = 120
NOT_LATER_THAN = 600.0  # seconds for one process

SPEC: dict[str, Any] = {
    "device": "cpu",
    "model": {
        "mode": "panoptic",
        "backbone": {"type": "efficientvit", "efficientvit": {"name": "b0"}},
        "sem_seg_head": {"num_classes": 7, "convs_dim": 64, "mask_dim": 64, "transformer_enc_layers": 1},
        "mask_former": {
            "hidden_dim": 64,
            "nheads": 4,
            "dim_feedforward": 128,
            "dec_layers": 4,
            "num_object_queries": 20,
            "train_num_points": 256,
            "dropout": 0.1,
        },
    },
    "dataset": {
        "contiguous_id": True,
        "train": {"name": "shapes_panoptic_train", "type": "coco_panoptic", "batch_size": 2, "num_workers": 2},
        "val": {"name": "shapes_panoptic_val", "type": "coco_panoptic", "batch_size": 2, "num_workers": 0},
        "augmentation": {
            "train_min_size": [64, 96],
            "train_max_size": 256,
            "train_crop_size": [96, 96],
            "test_min_size": 96,
            "test_max_size": 256,
        },
    },
    "train": {
        "max_iters": MAX_ITERS,
        "iters_per_epoch": 7,  # so that checkpoints fall into the middle of epochs
        "validation_interval": 3,
        "checkpoint_interval": 3,
        "checkpoint_interval_unit": "step",
        "keep_checkpoints": 2,
        "accumulate_steps": 2,
        "num_visualizations": 0,
        "best_metric": "panoptic/PQ",
        "optim": {"lr": 1e-3, "lr_scheduler": "AutoReduce", "patience": 0},
    },
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    write_shapes(tmp_path / "datasets" / FOLDER, {"train": 24, "val": 4})
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "M2F_DATASETS": str(tmp_path / "datasets"), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    spec = folder.parent / f"{folder.name}.yaml"
    spec.write_text(yaml.safe_dump({**SPEC, "results_dir": str(folder)}))
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "-e", str(spec)]
    # Into files: a pipe that nobody reads would fill up.
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def is_writing(folder: Path) -> bool:
    return any((folder / "train").glob(f"{PARTIAL_PREFIX}*"))


def is_training(folder: Path, since: float) -> bool:
    metrics = folder / "train" / "metrics.json"
    return metrics.is_file() and metrics.stat().st_mtime > since


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)  # its loader workers notice by themselves
    process.wait()


def kill_while_writing(process: subprocess.Popen[bytes], folder: Path, delay: float) -> bool:
    """Wait, then for the file of an unfinished write, then kill; whether that file is still there."""
    wait_in_training(process, folder, delay)
    while process.poll() is None:
        if is_writing(folder):
            kill(process)
            return is_writing(folder)
    return False


def wait_in_training(process: subprocess.Popen[bytes], folder: Path, delay: float) -> float:
    """Wait for the first step and `delay` seconds more; the time of that step."""
    began = time.time()
    while process.poll() is None and not is_training(folder, began) and time.time() < began + NOT_LATER_THAN:
        time.sleep(0.02)
    first = time.time()
    time.sleep(delay)
    return first


def final_state(folder: Path) -> dict[str, Any]:
    state = torch.load(folder / "train" / "mask2former_model_latest.pth", weights_only=True)
    assert state["iteration"] == MAX_ITERS
    return state


@pytest.mark.long
def test_ten_kills_change_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    process = start(tmp_path / "whole", environment)
    began = wait_in_training(process, tmp_path / "whole", 0.0)
    assert process.wait(NOT_LATER_THAN) == 0
    longest = (time.time() - began) / KILLS  # so that ten kills come before the end
    rng, folder, while_writing = random.Random(time.time_ns()), tmp_path / "killed", 0
    for number in range(KILLS):
        process = start(folder, environment)
        # A checkpoint is written in milliseconds, so those kills are aimed; one that came late counts as another.
        if number % 3 == 1 or while_writing + (KILLS - number) <= KILLS_WHILE_WRITING:
            while_writing += kill_while_writing(process, folder, rng.uniform(0, longest / 2))
        else:
            wait_in_training(process, folder, rng.uniform(0, longest))
            kill(process)
        assert process.returncode == -signal.SIGKILL, (tmp_path / "killed.log").read_text()[-3000:]
    assert while_writing >= 2
    assert start(folder, environment).wait(NOT_LATER_THAN) == 0, (tmp_path / "killed.log").read_text()[-3000:]
    whole, killed = final_state(tmp_path / "whole"), final_state(folder)
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, killed["model"][name]), name
    assert whole["optimizer"]["state"].keys() == killed["optimizer"]["state"].keys()
    assert whole["schedule"] == killed["schedule"]
    assert whole["hooks"] == killed["hooks"]
    assert not is_writing(folder)
    resumes = re.findall(r"after (\d+) of", (tmp_path / "killed.log").read_text())
    assert len(resumes) >= KILLS // 2  # the others died before their first checkpoint
    sys.stdout.write(
        f"{KILLS} kills, {while_writing} of them in a write; resumed after {', '.join(resumes)} iterations\n"
    )
