"""Panoptic quality against panopticapi: its stored answer on real data, and itself on random maps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2f.evaluation import PanopticEvaluator
from m2f.structures.metadata import Category, contiguous_metadata, raw_id_metadata
from m2f.structures.panoptic import PanopticMap, Segment

TOY = contiguous_metadata("toy", [Category(i + 1, f"c{i}", is_thing=i < 3) for i in range(5)])


def read_panoptic(png: Path, segments: list[dict], categories: list[dict]) -> PanopticMap:
    pixels = np.asarray(Image.open(png).convert("RGB"), dtype=np.int64)
    ids = torch.from_numpy(pixels @ np.array([1, 256, 65536]))
    label_of = {c["id"]: label for label, c in enumerate(categories)}
    is_thing = {c["id"]: bool(c["isthing"]) for c in categories}
    rows = [
        Segment(s["id"], label_of[s["category_id"]], is_thing[s["category_id"]], bool(s.get("iscrowd", 0)))
        for s in segments
    ]
    return PanopticMap(ids, rows)


@pytest.mark.realdata
def test_equals_panopticapi_on_real_predictions(oracles: Path, real_data: Path):
    folder = oracles / "panoptic_quality"
    expected = json.loads((folder / "expected.json").read_text())
    truth = json.loads((real_data / expected["truth"]["json"]).read_text())
    answers = json.loads((folder / "predictions.json").read_text())
    answers = {row["image_id"]: row for row in (answers if isinstance(answers, list) else answers["annotations"])}
    categories = truth["categories"]
    metadata = contiguous_metadata("coco", [Category(c["id"], c["name"], bool(c["isthing"])) for c in categories])
    evaluator = PanopticEvaluator(metadata)
    for row in truth["annotations"]:
        png = real_data / expected["truth"]["folder"] / row["file_name"]
        answer = answers[row["image_id"]]
        sample = {"panoptic": read_panoptic(png, row["segments_info"], categories)}
        prediction = read_panoptic(folder / "predictions" / answer["file_name"], answer["segments_info"], categories)
        evaluator.process([sample], [{"panoptic": prediction}])
    metrics = evaluator.evaluate()
    for group, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
        for name in ("pq", "sq", "rq"):
            found = metrics[f"panoptic/{name.upper()}{suffix}"] / 100
            assert found == pytest.approx(expected[group][name], abs=1e-6), (group, name)
    compared = 0
    for category in categories:
        for name, value in expected["per_class"].get(str(category["id"]), {}).items():
            found = metrics[f"panoptic/{name.upper()}-{category['name']}"] / 100
            assert (math.isnan(found) and value == 0) or found == pytest.approx(value, abs=1e-6), category["name"]
            compared += not math.isnan(found)
    assert compared == 3 * expected["all"]["n"]


def random_map(rng: np.random.Generator, crowds: bool) -> PanopticMap:
    """Blocks of 4 pixels with ids from a small, gappy range; 0 (void) among them."""
    pool = np.array([0, 7, 300, 70000, 12, 5, 99])
    ids = np.kron(rng.choice(pool, (5, 6)), np.ones((4, 4), dtype=np.int64))
    segments = []
    for number in np.unique(ids[ids > 0]).tolist():
        label = int(rng.integers(0, 4))  # class 4 is never seen
        segments.append(Segment(number, label, label < 3, crowds and bool(rng.random() < 0.3)))
    return PanopticMap(torch.from_numpy(ids), segments)


def related_map(rng: np.random.Generator, truth: PanopticMap) -> PanopticMap:
    """The truth with some pixels and some labels changed, so that there are matches and errors."""
    noise = random_map(rng, crowds=False)
    ids = torch.where(torch.from_numpy(rng.random(truth.ids.shape) < 0.2), noise.ids, truth.ids)
    labels = {s.id: s.label for s in noise.segments} | {s.id: s.label for s in truth.segments}
    segments = []
    for number in ids.unique().tolist():
        label = labels.get(number, 0) if rng.random() < 0.85 else int(rng.integers(0, 4))
        if number:
            segments.append(Segment(number, label, label < 3))
    return PanopticMap(ids, segments)


def write_panopticapi(folder: Path, maps: list[PanopticMap]) -> list[dict]:
    folder.mkdir()
    rows = []
    for index, value in enumerate(maps):
        ids = value.ids.numpy()
        png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        Image.fromarray(png).save(folder / f"{index}.png")
        infos = [
            {"id": s.id, "category_id": s.label + 1, "iscrowd": int(s.is_crowd), "area": int((ids == s.id).sum())}
            for s in value.segments
        ]
        rows.append({"image_id": index, "file_name": f"{index}.png", "segments_info": infos})
    return rows


def test_equals_panopticapi_on_random_maps(tmp_path: Path):
    panopticapi = pytest.importorskip("panopticapi.evaluation")
    rng = np.random.default_rng(0)
    truths = [random_map(rng, crowds=True) for _ in range(40)]
    answers = [related_map(rng, truth) for truth in truths]
    truth_rows, answer_rows = write_panopticapi(tmp_path / "t", truths), write_panopticapi(tmp_path / "a", answers)
    categories = {i + 1: {"id": i + 1, "isthing": int(i < 3)} for i in range(5)}
    pairs = list(zip(truth_rows, answer_rows, strict=True))
    stat = panopticapi.pq_compute_single_core(0, pairs, str(tmp_path / "t"), str(tmp_path / "a"), categories)

    evaluator = PanopticEvaluator(TOY)
    evaluator.process([{"panoptic": t} for t in truths], [{"panoptic": a} for a in answers])
    metrics = evaluator.evaluate()
    assert sum(s.is_crowd for t in truths for s in t.segments) > 10
    for suffix, isthing in (("", None), ("_things", True), ("_stuff", False)):
        expected, per_class = stat.pq_average(categories, isthing=isthing)
        for name in ("pq", "sq", "rq"):
            assert metrics[f"panoptic/{name.upper()}{suffix}"] == pytest.approx(100 * expected[name], abs=1e-9)
            for number, row in per_class.items():
                found = metrics[f"panoptic/{name.upper()}-c{number - 1}"]
                assert math.isnan(found) if number == 5 else found == pytest.approx(100 * row[name], abs=1e-9)
    assert 20 < metrics["panoptic/PQ"] < 95


def one_row(ids: list[int], *segments: Segment) -> PanopticMap:
    return PanopticMap(torch.tensor([ids]), list(segments))


def quality(truth: PanopticMap, answer: PanopticMap, metadata=TOY) -> dict[str, float]:
    evaluator = PanopticEvaluator(metadata)
    evaluator.process([{"panoptic": truth}], [{"panoptic": answer}])
    return evaluator.evaluate()


def test_void_and_crowd_excuse_false_positives():
    truth = one_row([1, 1, 0, 0, 0, 2, 2, 2], Segment(1, 0, True), Segment(2, 1, True, is_crowd=True))
    on_void = Segment(8, 2, True)
    on_crowd = Segment(9, 1, True)
    other_class = Segment(9, 2, True)
    perfect = quality(truth, one_row([1, 1, 8, 8, 8, 9, 9, 9], Segment(1, 0, True), on_void, on_crowd))
    assert perfect["panoptic/PQ"] == 100
    assert math.isnan(perfect["panoptic/PQ-c1"])
    wrong = quality(truth, one_row([1, 1, 8, 8, 8, 9, 9, 9], Segment(1, 0, True), on_void, other_class))
    assert wrong["panoptic/PQ-c2"] == 0


def test_half_an_overlap_is_no_match():
    truth = one_row([1, 1, 1, 1], Segment(1, 0, True))
    half = quality(truth, one_row([1, 1, 2, 2], Segment(1, 0, True), Segment(2, 3, False)))
    assert half["panoptic/PQ-c0"] == 0
    most = quality(truth, one_row([1, 1, 1, 2], Segment(1, 0, True), Segment(2, 3, False)))
    assert most["panoptic/SQ-c0"] == 75
    assert most["panoptic/PQ"] == 37.5


def test_gaps_never_average_in():
    gappy = raw_id_metadata("toy", [Category(1, "a"), Category(3, "c")], num_classes=3)
    truth = one_row([1, 1, 2, 2], Segment(1, 0, True), Segment(2, 2, True))
    answer = one_row([1, 1, 2, 2], Segment(1, 0, True), Segment(2, 1, False))  # label 1 is the gap
    metrics = quality(truth, answer, gappy)
    assert metrics["panoptic/PQ"] == 50
    assert math.isnan(metrics["panoptic/PQ_stuff"])
    assert "panoptic/PQ-(unused id 2)" not in metrics


def test_an_id_without_a_segment_is_refused():
    truth = one_row([1, 1], Segment(1, 0, True))
    with pytest.raises(ValueError, match="pixels of id 5"):
        quality(truth, one_row([1, 5], Segment(1, 0, True)))
    with pytest.raises(ValueError, match="no pixel"):
        quality(truth, one_row([1, 1], Segment(1, 0, True), Segment(2, 0, True)))
