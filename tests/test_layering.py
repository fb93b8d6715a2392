"""Imports point one way, and stand at the top of their file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "m2f"
BASE = {"structures", "config", "registry", "distributed", "encryption"}
ROOMS = {"data", "modeling", "solver", "evaluation", "checkpoint", "export", "merging", "visualization"}
MAY_IMPORT = {
    **{room: BASE | {"layers", room} for room in ROOMS},
    "export": BASE | {"layers", "export", "modeling"},  # it wraps the model
    "engine": BASE | ROOMS | {"layers", "engine"},
    "layers": BASE | {"layers"},
    "structures": {"structures"},
    "config": {"config"},
    "registry": {"registry"},
    "distributed": {"distributed"},
    "encryption": {"encryption"},
}
OPTIONAL = {
    *("hotcoco", "faster_coco_eval", "cityscapesscripts", "timm", "safetensors"),
    *("onnxruntime", "cv2", "cryptography", "tensorrt"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names if node.module == "m2f")


def wrong_edges(room: str, source: str) -> list[str]:
    edges = [(name.split("."), line) for name, line in imports(ast.parse(source))]
    ours = [(parts[1], line) for parts, line in edges if parts[0] == "m2f" and len(parts) > 1]
    allowed = MAY_IMPORT.get(room, set())
    return [f"line {line}: {room} imports {other}" for other, line in ours if other not in allowed | {"__version__"}]


def late_imports(source: str) -> list[str]:
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            late = [(name, line) for name, line in imports(function) if name.split(".")[0] not in OPTIONAL]
            found += [f"line {line}: {name} is imported inside {function.name}" for name, line in late]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    source = path.read_text()
    assert wrong_edges(room_of(path), source) + late_imports(source) == []


def test_the_walk_sees_a_wrong_edge() -> None:
    assert wrong_edges("modeling", "from m2f.data import loader") == ["line 1: modeling imports data"]
    assert wrong_edges("evaluation", "import m2f.engine.hooks") == ["line 1: evaluation imports engine"]
    assert late_imports("def f():\n    import json\n") == ["line 2: json is imported inside f"]


def test_importing_m2f_is_light() -> None:
    source = (PACKAGE / "__init__.py").read_text()
    assert list(imports(ast.parse(source))) == []
