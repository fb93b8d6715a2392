"""Tables and results.json."""

import csv
import json
import math

from m2f.evaluation import format_results, write_class_csv, write_results

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


def test_class_csv_has_a_row_per_class_and_a_column_per_metric(tmp_path):
    path = tmp_path / "new" / "per_class.csv"
    more = {"semantic/mIoU": 40.0, 'semantic/IoU-hot-dog, "long"': 99.99999, "semantic/IoU-Tür": math.nan}
    write_class_csv(path, {**RESULTS, "toy_test": more})
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["dataset", "task", "class", "PQ", "SQ", "IoU"],
        ["toy_val", "panoptic", "disc", "50.0000", "", ""],
        ["toy_val", "panoptic", "hot-dog", "25.0000", "", ""],
        ["toy_test", "semantic", 'hot-dog, "long"', "", "", "100.0000"],
        ["toy_test", "semantic", "Tür", "", "", ""],
    ]
    assert [p.name for p in path.parent.iterdir()] == ["per_class.csv"]


def test_class_csv_of_no_classes_is_a_header(tmp_path):
    write_class_csv(tmp_path / "c.csv", {"toy": {"panoptic/PQ": 1.0, "val_loss": 2.0}})
    assert (tmp_path / "c.csv").read_text() == "dataset,task,class\n"


def pytest_fail(word):
    raise AssertionError(f"{word} is not JSON")
