from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2f.export.info import ExportInfo, info_beside
from m2f.structures.metadata import Category, Metadata


def test_json_and_back_is_the_same(make_info, tmp_path: Path) -> None:
    categories = (Category(7, "Straße", True, (1, 2, 3)), Category(9, "(unused id 9)", False, is_gap=True))
    info = make_info(target_size=(960, 544), metadata=Metadata("roads", categories, 254), fp16=True)
    assert ExportInfo.from_json(info.to_json()) == info
    (tmp_path / "graph.json").write_text(info.to_json(), encoding="utf-8")
    assert info_beside(tmp_path / "graph.engine") == info


def test_keys_of_later_versions_are_passed_over_and_missing_ones_named(make_info) -> None:
    data = json.loads(make_info().to_json())
    assert ExportInfo.from_json(json.dumps({**data, "new": 1})) == make_info()
    del data["top_k"]
    with pytest.raises(ValueError, match=r"graph\.json: key 'top_k' is missing"):
        ExportInfo.from_json(json.dumps(data), "graph.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"a"'])
def test_broken_json_is_one_clear_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"graph\.json is not what m2f's export task writes"):
        ExportInfo.from_json(text, "graph.json")


def test_mode_and_outputs_must_fit(make_info) -> None:
    with pytest.raises(ValueError, match="panoptic_map answers mode panoptic, not instance"):
        make_info(mode="instance", outputs="panoptic_map")
    with pytest.raises(ValueError, match="mode 'depth'"):
        make_info(mode="depth")
    with pytest.raises(ValueError, match="outputs 'all'"):
        make_info(outputs="all")


def test_names_and_tasks_follow_mode_and_outputs(make_info) -> None:
    assert make_info().tasks == ("panoptic", "semantic", "instance")
    assert make_info(mode="instance").tasks[0] == "instance"
    assert make_info().output_names == ("mask_logits", "class_logits")
    tao = make_info(mode="instance", outputs="tao")
    assert tao.tasks == ("instance",)
    assert tao.output_names == ("pred_masks", "pred_scores", "pred_classes")
    assert make_info(outputs="panoptic_map").output_names[0] == "panoptic_ids"


def test_a_graph_without_its_description_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"graph\.engine needs graph\.json beside it"):
        info_beside(tmp_path / "graph.engine")
