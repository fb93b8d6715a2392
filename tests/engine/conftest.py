"""A tiny run on the embedded data set: real rooms, thin model, a fraction of a second per iteration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from m2f.data.datasets.shapes import FOLDER, write_shapes

SPEC: dict[str, Any] = {
    "device": "cpu",
    "model": {
        "mode": "panoptic",
        "object_mask_threshold": 0.1,
        "backbone": {
            "type": "efficientvit",
            "efficientvit": {
                "name": "custom",
                "family": "b",
                "widths": [8, 8, 16, 16, 16],
                "depths": [1, 1, 1, 1, 1],
                "dim": 8,
            },
        },
        "sem_seg_head": {
            "num_classes": 7,
            "convs_dim": 32,
            "mask_dim": 16,
            "transformer_enc_layers": 1,
            "encoder_dim_feedforward": 32,
        },
        "mask_former": {
            "hidden_dim": 32,
            "nheads": 4,
            "dim_feedforward": 32,
            "dec_layers": 3,
            "num_object_queries": 6,
            "train_num_points": 64,
        },
    },
    "dataset": {
        "contiguous_id": True,
        "train": {"name": "shapes_panoptic_train", "type": "coco_panoptic", "batch_size": 2, "num_workers": 0},
        "val": {"name": "shapes_panoptic_val", "type": "coco_panoptic", "batch_size": 2, "num_workers": 0},
        "augmentation": {
            "train_min_size": [48, 64],
            "train_max_size": 128,
            "train_crop_size": [64, 64],
            "test_min_size": 64,
            "test_max_size": 128,
        },
    },
    "train": {
        "num_epochs": 4,
        "iters_per_epoch": 2,
        "validation_interval": 2,
        "log_interval": 1,
        "num_visualizations": 1,
        "activation_checkpoint": False,
        "optim": {"lr": 1e-3, "milestones": [3]},
    },
}


@pytest.fixture(scope="session")
def _shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / FOLDER, {"train": 6, "val": 3})
    return root


@pytest.fixture
def spec_file(_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec whose results go to `<tmp_path>/results`."""
    monkeypatch.setenv("M2F_DATASETS", str(_shapes))
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "results_dir": str(tmp_path / "results")}))
    return path


@pytest.fixture
def weights_of() -> Callable[[Path], dict[str, Any]]:
    """Reads a checkpoint's weights."""

    def read(path: Path) -> dict[str, Any]:
        return torch.load(path, weights_only=True)["model"]

    return read
