"""Tiny datasets on disk, and the embedded one drawn once for all tests of a run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from m2f.data.datasets.shapes import FOLDER, write_shapes


def _load(name: str) -> ModuleType:
    """A module of this folder, which is no package under pytest's importlib mode."""
    spec = importlib.util.spec_from_file_location(f"m2f_tests_{name}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def builders() -> ModuleType:
    """The functions of builders.py: `write_instances`, `write_panoptic`, `write_pairs`, and the contents they write."""
    return _load("builders")


@pytest.fixture
def instances_root(tmp_path: Path, builders: ModuleType) -> Path:
    builders.write_instances(tmp_path)
    return tmp_path


@pytest.fixture
def panoptic_root(tmp_path: Path, builders: ModuleType) -> Path:
    builders.write_panoptic(tmp_path)
    return tmp_path


@pytest.fixture
def pairs_root(tmp_path: Path, builders: ModuleType) -> Path:
    builders.write_pairs(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def _few_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / FOLDER, {"train": 12, "val": 6})
    return root


@pytest.fixture
def shapes_root(_few_shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`M2F_DATASETS` points at a short `shapes` (12 train and 6 val pictures); the catalog's names read it."""
    monkeypatch.setenv("M2F_DATASETS", str(_few_shapes))
    return _few_shapes
