"""What was written and is read back scores as the live answers do, in m2f's evaluators and in the official ones."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry
from m2f.data.mappers import EvalMapper
from m2f.data.predictions import PredictionWriter, SavedPredictions
from m2f.data.predictions.formats import category_rows, panoptic_rows
from m2f.data.transforms.policies import ShortestEdge
from m2f.evaluation import InstanceEvaluator, PanopticEvaluator, SemanticEvaluator
from m2f.structures.sample import TASKS

EVALUATORS = {"semantic": SemanticEvaluator, "panoptic": PanopticEvaluator, "instance": InstanceEvaluator}


def evaluated(samples, outputs, metadata, tasks) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for task in tasks:
        evaluator = EVALUATORS[task](metadata)
        evaluator.process(samples, outputs)
        metrics |= evaluator.evaluate()
    return metrics


def write(folder: Path, metadata, tasks, samples, outputs) -> None:
    writer = PredictionWriter(folder, metadata, tasks)
    for sample, output in zip(samples, outputs, strict=True):
        writer.write(sample, output)
    writer.finish()


def assert_reads_back(folder: Path, metadata, tasks, samples, outputs) -> dict[str, float]:
    live = evaluated(samples, outputs, metadata, tasks)
    saved = SavedPredictions([str(folder)], metadata, tasks)
    saved.check(samples)
    again = evaluated(samples, [saved([sample])[0] for sample in samples], metadata, tasks)
    assert again.keys() == live.keys()
    for name, value in live.items():
        np.testing.assert_equal(again[name], value, name)
    return live


def official_ap(truth: Path, results: Path, image_ids: list[int]) -> dict[str, float]:
    """pycocotools' own figures, masks' areas as areas."""
    rows = json.loads(results.read_text())
    for row in rows:
        del row["bbox"]  # given both, loadRes takes areas from boxes
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(rows), "segm")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100")
    return {name: 100 * value for name, value in zip(names, evaluation.stats, strict=False)}


def official_pq(truth: dict[str, Any], truth_folder: Path, results: Path, image_ids: list[int]) -> dict[str, float]:
    api = pytest.importorskip("panopticapi.evaluation")
    found = {row["image_id"]: row for row in json.loads(results.read_text())["annotations"]}
    pairs = [(row, found[row["image_id"]]) for row in truth["annotations"] if row["image_id"] in image_ids]
    categories = {row["id"]: row for row in truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        stat = api.pq_compute_single_core(0, pairs, str(truth_folder), str(results.with_suffix("")), categories)
    average, _ = stat.pq_average(categories, isthing=None)
    return {name.upper(): 100 * average[name] for name in ("pq", "sq", "rq")}


def assert_official(metrics: dict[str, float], task: str, official: dict[str, float]) -> None:
    assert 5 < official["AP" if task == "instance" else "PQ"] < 99
    for name, value in official.items():
        found = metrics[f"{task}/{name}"]
        assert np.isnan(found) if value == -100 else found == pytest.approx(value, abs=1e-9), name


def write_truths(root: Path, metadata, samples) -> None:
    """The samples' truths as `instances.json`, `panoptic.json` and PNGs."""
    images = [{"id": s["image_id"], "height": s["height"], "width": s["width"]} for s in samples]
    objects, maps = [], []
    for sample in samples:
        truth = sample["instance"]
        for label, mask, area in zip(truth.labels.tolist(), truth.masks, truth.areas.tolist(), strict=True):
            code = {"size": mask["size"], "counts": mask["counts"].decode()}
            row = {"category_id": metadata.categories[label].id, "segmentation": code, "area": area, "iscrowd": 0}
            objects.append({"id": len(objects) + 1, "image_id": sample["image_id"], "bbox": [0, 0, 1, 1], **row})
        pixels, segments = panoptic_rows(sample["panoptic"], metadata)
        name = f"{sample['image_id']}.png"
        (root / "panoptic").mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels).save(root / "panoptic" / name)
        maps.append({"image_id": sample["image_id"], "file_name": name, "segments_info": segments})
    categories = category_rows(metadata)
    content = {"info": {}, "images": images, "annotations": objects, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    (root / "panoptic.json").write_text(json.dumps({**content, "annotations": maps}))


def test_made_up_answers_score_the_same_everywhere(tmp_path: Path, scenes) -> None:
    samples, outputs = scenes.many(20)
    samples.sort(key=lambda sample: str(sample["file_name"]))
    write(tmp_path / "out", scenes.metadata, TASKS, samples, outputs)
    metrics = assert_reads_back(tmp_path / "out", scenes.metadata, TASKS, samples, outputs)

    write_truths(tmp_path / "truth", scenes.metadata, samples)
    ids = sorted(sample["image_id"] for sample in samples)
    truth = json.loads((tmp_path / "truth/panoptic.json").read_text())
    assert_official(
        metrics, "instance", official_ap(tmp_path / "truth/instances.json", tmp_path / "out/instance.json", ids)
    )
    official = official_pq(truth, tmp_path / "truth/panoptic", tmp_path / "out/panoptic.json", ids)
    assert_official(metrics, "panoptic", official)
    assert 20 < metrics["semantic/mIoU"] < 95


def test_labels_run_lengths_and_text_ids_come_back_as_well(tmp_path: Path, scenes) -> None:
    samples = [scenes.sample(f"sub/{n}", f"data/sub/{n}.jpg") for n in range(6)]
    outputs = [scenes.smaller(scenes.answer(sample)) for sample in samples]
    write(tmp_path, scenes.metadata, TASKS, samples, outputs)
    assert_reads_back(tmp_path, scenes.metadata, TASKS, samples, outputs)
    for found, output in zip(SavedPredictions([str(tmp_path)], scenes.metadata, TASKS)(samples), outputs, strict=True):
        assert torch.equal(found["semantic"], output["semantic"])
        assert torch.equal(found["panoptic"].ids, output["panoptic"].ids)
        assert found["panoptic"].segments == output["panoptic"].segments


REAL = {
    "coco_panoptic_200": ("panoptic_val2017", "images/val2017", "instances_val2017_from_panoptic", 6),
    "coco_instances_160": ("", "images/val2017", "instances_val2017", 12),
    "dsb2018_256": ("panoptic_val", "images/val", "instances_val", 4),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_answers_for_real_images_score_the_same_everywhere(name: str, real_data: Path, tmp_path: Path, scenes) -> None:
    panoptic, images, instances, count = REAL[name]
    root = real_data / name
    tasks = TASKS if panoptic else ("instance",)
    file = root / f"annotations/{panoptic or instances}.json"
    folders = {"image_dir": str(root / images), "panoptic_dir": str(root / panoptic) if panoptic else ""}
    entry = DatasetEntry(name, "coco_panoptic" if panoptic else "coco", str(file), **folders, max_images=count)
    metadata, records = load_dataset(entry)
    mapper = EvalMapper(metadata, ShortestEdge(32, 64), tasks)
    samples = [mapper(record, np.random.default_rng(0)) for record in records]
    outputs = [scenes.answer(sample, metadata) for sample in samples]
    write(tmp_path, metadata, tasks, samples, outputs)
    metrics = assert_reads_back(tmp_path, metadata, tasks, samples, outputs)

    ids = [sample["image_id"] for sample in samples]
    official = official_ap(root / f"annotations/{instances}.json", tmp_path / "instance.json", ids)
    assert_official(metrics, "instance", official)
    if panoptic:
        official = official_pq(json.loads(file.read_text()), root / panoptic, tmp_path / "panoptic.json", ids)
        assert_official(metrics, "panoptic", official)
