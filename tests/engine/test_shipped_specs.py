"""Every spec that ships loads, and every name in it is there."""

from pathlib import Path

import pytest

from m2f.config import check_task, load_spec
from m2f.engine.setup import resolve_names

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("projects/*/configs/*.yaml")])
TO_RUN = [path for path in SPECS if "_base_" not in path.parts and not path.name.startswith("_")]


@pytest.mark.parametrize("path", TO_RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_spec_could_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cfg = load_spec(path, [])
    for task in ("train", "evaluate"):
        check_task(cfg, task)
        resolve_names(cfg, task)
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# python tools/train_net.py --config-file {path.relative_to(ROOT)}")


def test_there_are_specs() -> None:
    assert len(TO_RUN) > 10
