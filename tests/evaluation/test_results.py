"""Tables and results.json."""

import json
import math

from m2f.evaluation import format_results, write_results

RESULTS = {
    "toy_val": {
        "val_loss": 12.5,
        "val_loss_ce": 2.0,
        "val_loss_ce_3": 77.0,
        "panoptic/PQ": 61.23456,
        "panoptic/SQ": 80.0,
        "panoptic/PQ-disc": 50.0,
        "panoptic/PQ-hot-dog": 25.0,
        "panoptic/SQ-disc": math.nan,
    },
    "nothing": {},
}


def test_table_has_headline_classes_and_lines_to_copy():
    text = format_results(RESULTS)
    lines = text.splitlines()
    assert "copypaste: Task: panoptic" in lines
    assert lines[lines.index("copypaste: Task: panoptic") + 1] == "copypaste: PQ,SQ"
    assert lines[lines.index("copypaste: Task: panoptic") + 2] == "copypaste: 61.2346,80.0000"
    assert "toy_val: panoptic" in lines
    assert any("hot-dog" in line and "25.000" in line for line in lines)
    assert any("disc" in line and "nan" in line for line in lines)
    assert "77" not in text
    assert "nothing" not in text


def test_results_json_is_valid_json(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, RESULTS)
    read = json.loads(path.read_text(), parse_constant=lambda word: pytest_fail(word))
    assert read["toy_val"]["panoptic/PQ"] == 61.23456
    assert read["toy_val"]["panoptic/SQ-disc"] is None
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def pytest_fail(word):
    raise AssertionError(f"{word} is not JSON")
