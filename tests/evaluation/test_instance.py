"""COCO AP against pycocotools used directly, on real annotations; all back-ends against each other."""

import contextlib
import copy
import importlib.util
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from m2f.evaluation import InstanceEvaluator
from m2f.evaluation.coco_backend import BACKENDS
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, contiguous_metadata, raw_id_metadata

INSTALLED = [name for name in BACKENDS if importlib.util.find_spec(name)]
TOY = contiguous_metadata("toy", [Category(1, "disc"), Category(2, "box"), Category(3, "never")])


def quiet(call, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*args)


def perturbed(rle: dict, rng: np.random.Generator) -> dict:
    """The mask moved a little."""
    mask = np.roll(coco_mask.decode(rle), rng.integers(-4, 5, 2), axis=(0, 1))
    return coco_mask.encode(np.asfortranarray(mask))


def coco_samples(coco: COCO, image_ids: list[int], label_of: dict[int, int]):
    """Truths as m2f's readers hand them over, and perturbed truths as predictions."""
    rng = np.random.default_rng(0)
    inputs, outputs, results = [], [], []
    for image_id in image_ids:
        rows = coco.imgToAnns[image_id]
        runs = [coco.annToRLE(row) for row in rows]
        image = coco.imgs[image_id]
        truth = Instances(
            labels=torch.tensor([label_of[row["category_id"]] for row in rows], dtype=torch.int64),
            masks=runs,
            is_crowd=torch.tensor([bool(row["iscrowd"]) for row in rows], dtype=torch.bool),
            areas=torch.tensor([row["area"] for row in rows], dtype=torch.float64),
            ids=torch.tensor([row["id"] for row in rows], dtype=torch.int64),
        )
        found = [(row["category_id"], perturbed(rle, rng)) for row, rle in zip(rows, runs, strict=True) for _ in "ab"]
        found = [found[i] for i in rng.permutation(len(found)) if rng.random() < 0.9]
        scores = torch.from_numpy(rng.choice(np.linspace(0, 1, 23), len(found))).float()  # with equal scores
        for (category, rle), score in zip(found, scores.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": category, "segmentation": rle, "score": score})
        masks = np.zeros((len(found), image["height"], image["width"]), dtype=bool)
        for index, (_, rle) in enumerate(found):
            masks[index] = coco_mask.decode(rle)
        labels = torch.tensor([label_of[category] for category, _ in found], dtype=torch.int64)
        outputs.append({"instance": Instances(labels, torch.from_numpy(masks), scores)})
        inputs.append({"image_id": image_id, "height": image["height"], "width": image["width"], "instance": truth})
    return inputs, outputs, results


@pytest.fixture(scope="module")
def real_samples(real_data: Path):
    coco = quiet(COCO, str(real_data / "coco_instances_160/annotations/instances_val2017.json"))
    image_ids = sorted(coco.imgs)[::-3]  # against the order of the ids
    categories = sorted(coco.cats.values(), key=lambda c: c["id"])
    label_of = {c["id"]: label for label, c in enumerate(categories)}
    metadata = contiguous_metadata("coco", [Category(c["id"], c["name"]) for c in categories])
    return coco, metadata, *coco_samples(coco, image_ids, label_of), image_ids


@pytest.mark.realdata
@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("max_dets", [[1, 10, 100], [1, 3, 7], [500]])
def test_equals_pycocotools_on_real_annotations(real_samples, backend, max_dets):
    coco, metadata, inputs, outputs, results, image_ids = real_samples
    evaluator = InstanceEvaluator(metadata, max_dets, backend)
    for sample, output in zip(inputs, outputs, strict=True):
        evaluator.process([sample], [output])
    metrics = evaluator.evaluate()

    direct = COCOeval(coco, quiet(coco.loadRes, copy.deepcopy(results)), "segm")
    direct.params.imgIds, direct.params.maxDets = image_ids, max_dets
    quiet(direct.evaluate)
    quiet(direct.accumulate)
    precision, recall = direct.eval["precision"], direct.eval["recall"]

    def mean(values):
        return 100 * values[values > -1].mean()

    expected = {"AP": mean(precision[..., 0, -1]), "AP50": mean(precision[0, ..., 0, -1])}
    expected |= {"AP75": mean(precision[5, ..., 0, -1]), "ARs": mean(recall[:, :, 1, -1])}
    expected |= {f"AP{s}": mean(precision[..., i, -1]) for i, s in enumerate("sml", start=1)}
    expected |= {f"AR@{n}": mean(recall[:, :, 0, i]) for i, n in enumerate(max_dets)}
    for label, category in enumerate(metadata.categories):
        if (precision[:, :, label, 0, -1] > -1).any():
            expected[f"AP-{category.name}"] = mean(precision[:, :, label, 0, -1])
    for name, value in expected.items():
        assert metrics[f"instance/{name}"] == pytest.approx(value, abs=1e-9), name
    assert 5 < metrics["instance/AP"] < 95
    if max_dets == [1, 10, 100]:
        quiet(direct.summarize)
        assert metrics["instance/AP"] == pytest.approx(100 * direct.stats[0], abs=1e-9)


@pytest.mark.realdata
def test_back_ends_agree_in_every_figure(real_samples):
    _, metadata, inputs, outputs, *_ = real_samples
    tables = []
    for backend in INSTALLED:
        evaluator = InstanceEvaluator(metadata, [1, 10, 500], backend)
        evaluator.process(inputs, outputs)
        tables.append(evaluator.evaluate())
    for other in tables[1:]:
        assert other.keys() == tables[0].keys()
        for name, value in tables[0].items():
            assert other[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def toy_sample(count: int = 3):
    masks = torch.zeros(count, 40, 50, dtype=torch.bool)
    for index in range(count):
        masks[index, 3 * index : 3 * index + 12, 5 * index : 5 * index + 9] = True
    labels = torch.arange(count) % 2
    runs = [coco_mask.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]
    truth = Instances(labels, runs, is_crowd=torch.zeros(count, dtype=torch.bool), areas=masks.sum((1, 2)).double())
    sample = {"image_id": "first", "height": 40, "width": 50, "instance": truth}
    return sample, Instances(labels, masks, torch.linspace(0.9, 0.5, count))


def evaluated(metadata, samples, **options):
    evaluator = InstanceEvaluator(metadata, **options)
    for sample, found in samples:
        evaluator.process([sample], [{"instance": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize("backend", INSTALLED)
def test_the_truth_scores_100(backend):
    metrics = evaluated(TOY, [toy_sample()], backend=backend)
    assert metrics["instance/AP"] == pytest.approx(100, abs=1e-9)
    assert metrics["instance/box_AP"] == pytest.approx(100, abs=1e-9)
    assert metrics["instance/AP-box"] == pytest.approx(100, abs=1e-9)
    assert math.isnan(metrics["instance/AP-never"])
    assert math.isnan(metrics["instance/APl"])


def test_more_instances_than_100_count_only_where_max_dets_says_so():
    count = 120
    masks = torch.zeros(count, 60, 120, dtype=torch.bool)
    masks[torch.arange(count), 10:40, torch.arange(count)] = True
    labels = torch.zeros(count, dtype=torch.int64)
    sample = {"image_id": 0, "height": 60, "width": 120, "instance": Instances(labels, masks)}
    found = Instances(labels, masks, torch.linspace(1, 0.5, count))
    assert evaluated(TOY, [(sample, found)], max_dets=[1, 10, 500])["instance/AP"] == pytest.approx(100)
    assert evaluated(TOY, [(sample, found)], max_dets=[1, 10, 100])["instance/AP"] < 90


@pytest.mark.parametrize("backend", INSTALLED)
def test_no_answers_score_0_and_no_truth_is_nan(backend):
    sample, found = toy_sample()
    nothing = found[torch.zeros(3, dtype=torch.bool)]
    missed = evaluated(TOY, [(sample, nothing)], backend=backend)
    assert missed["instance/AP"] == 0
    assert math.isnan(missed["instance/AP-never"])
    empty = sample | {"instance": nothing}
    assert math.isnan(evaluated(TOY, [(empty, found)], backend=backend)["instance/AP"])
    assert math.isnan(InstanceEvaluator(TOY, backend=backend).evaluate()["instance/AP"])


def test_only_things_have_a_category():
    categories = [Category(1, "disc"), Category(3, "sky", is_thing=False)]
    metadata = raw_id_metadata("toy", categories, num_classes=3)
    sample, found = toy_sample()
    labels = torch.tensor([0, 0, 2])  # the last one is stuff, in truth and prediction
    stuffed = sample | {"instance": Instances(labels, sample["instance"].masks)}
    metrics = evaluated(metadata, [(stuffed, Instances(labels, found.masks, found.scores))])
    assert metrics["instance/AP"] == pytest.approx(100)
    assert [name for name in metrics if "AP-" in name and "box" not in name] == ["instance/AP-disc"]


def test_an_image_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="'first' comes twice"):
        evaluated(TOY, [toy_sample(), toy_sample()])


@pytest.mark.parametrize("max_dets", [[], [0, 10], [10, 1], [5, 5]])
def test_max_dets_must_ascend(max_dets):
    with pytest.raises(ValueError, match=r"evaluate\.max_dets"):
        InstanceEvaluator(TOY, max_dets)


def test_an_unknown_back_end_is_refused():
    with pytest.raises(ValueError, match=r"evaluate\.coco_backend is 'cocoeval'.*hotcoco"):
        InstanceEvaluator(TOY, backend="cocoeval")


def test_rows_are_plain_json():
    evaluator = InstanceEvaluator(TOY)
    sample, found = toy_sample()
    evaluator.process([sample], [{"instance": found}])
    json.dumps(evaluator._images["first"])
