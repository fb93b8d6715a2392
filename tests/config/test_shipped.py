"""`m2f://NAME`: the specs that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2f.config import SpecError, load_spec
from m2f.config.shipped import located, shipped_root


@pytest.mark.parametrize("ending", ["", ".yaml"])
def test_a_shipped_spec_is_found_from_anywhere(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = located(f"m2f://quickstart/shapes_panoptic{ending}")
    assert path == shipped_root() / "quickstart" / "shapes_panoptic.yaml"
    assert load_spec(f"m2f://quickstart/shapes_panoptic{ending}") == load_spec(path)


def test_a_spec_of_ones_own_may_stand_on_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("_BASE_: m2f://small/camvid_semantic\nresults_dir: mine\n")
    cfg = load_spec(tmp_path / "own.yaml")
    assert cfg.results_dir == "mine"
    assert Path(cfg.dataset.label_map) == shipped_root() / "small" / "camvid_labels.json"


def test_every_file_that_a_shipped_spec_names_is_there() -> None:
    specs = [path for path in shipped_root().rglob("*.yaml") if not path.name.startswith("_")]
    maps = [load_spec(path).dataset.label_map for path in specs if path.parent.name != "_base_"]
    assert any(maps)
    assert all(Path(name).is_file() for name in maps if name)


def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"did you mean m2f://quickstart/shapes_panoptic\.yaml"):
        load_spec("m2f://quickstart/shape_panoptic")
    with pytest.raises(SpecError, match=r"there are ade20k/semantic/resnet50\.yaml, "):
        load_spec("m2f://x")


def test_no_name_leaves_the_folder() -> None:
    with pytest.raises(SpecError, match="brings no spec of that name"):
        located("m2f://../setup.py")
