"""Tests of projects: pytest must not import a project under a second name, or its components register twice."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector:
    """Every folder is a plain one: a package would be imported for its setup, under a name of pytest's own."""
    folder: pytest.Collector = pytest.Dir.from_parent(parent, path=path)
    return folder
