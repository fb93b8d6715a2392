"""Semantic metrics against counting pixel by pixel, and their rules about absent and ignored classes."""

import math

import pytest
import torch

from m2f.evaluation import SemanticEvaluator
from m2f.structures.metadata import Category, contiguous_metadata, raw_id_metadata


def metadata(count: int):
    return contiguous_metadata("toy", [Category(i + 1, f"class{i}") for i in range(count)])


def scores_of(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, classes).permute(2, 0, 1).float()


def brute_force(truths, predictions, classes):
    """(tp, truth, predicted) pixels per class, one pixel at a time."""
    counts = [[0, 0, 0] for _ in range(classes)]
    for truth, predicted in zip(truths, predictions, strict=True):
        for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
            if t == 255:
                continue
            counts[t][0] += t == p
            counts[t][1] += 1
            counts[p][2] += 1
    return counts


def test_equals_a_brute_force_count():
    classes, evaluator = 5, SemanticEvaluator(metadata(5))
    truths = [torch.randint(0, 4, (13 + i, 17)) for i in range(3)]  # class 4 never occurs in the truth
    predictions = [torch.where(torch.rand(t.shape) < 0.6, t, torch.randint(0, 5, t.shape)) for t in truths]
    for truth in truths:
        truth[:2] = 255
    outputs = [{"semantic": torch.rand(5, *p.shape) * 0.5 + scores_of(p, 5)} for p in predictions]
    evaluator.process([{"semantic": t} for t in truths[:2]], outputs[:2])
    evaluator.process([{"semantic": truths[2]}], outputs[2:])
    metrics = evaluator.evaluate()

    counts = brute_force(truths, predictions, classes)
    assert counts[4][1] == 0 < counts[4][2]
    ious = [tp / (t + p - tp) for tp, t, p in counts[:4]]
    accuracies = [tp / t for tp, t, _ in counts[:4]]
    pixels = sum(t for _, t, _ in counts)
    expected = {
        "mIoU": sum(ious) / 4,
        "fwIoU": sum(iou * t / pixels for iou, (_, t, _) in zip(ious, counts, strict=False)),
        "mACC": sum(accuracies) / 4,
        "pACC": sum(tp for tp, _, _ in counts) / pixels,
        **{f"IoU-class{i}": ious[i] for i in range(4)},
        **{f"ACC-class{i}": accuracies[i] for i in range(4)},
    }
    for name, value in expected.items():
        assert metrics[f"semantic/{name}"] == pytest.approx(100 * value, abs=1e-9), name
    assert math.isnan(metrics["semantic/IoU-class4"])


def test_labels_count_as_the_scores_they_come_from():
    truth, predicted = torch.randint(0, 5, (2, 9, 11))
    found = []
    for answer in (scores_of(predicted, 5), predicted):
        evaluator = SemanticEvaluator(metadata(5))
        evaluator.process([{"semantic": truth}], [{"semantic": answer}])
        found.append(evaluator.evaluate())
    assert found[0] == found[1]


@pytest.mark.parametrize("nothing", [255, -1, 2])
def test_no_answer_is_a_miss_and_nobodys_error(nothing):
    evaluator = SemanticEvaluator(metadata(2))
    truth = torch.tensor([[0, 0, 0, 0, 1, 1, 255]])
    evaluator.process([{"semantic": truth}], [{"semantic": torch.tensor([[0, 0, nothing, 1, 1, nothing, 0]])}])
    metrics = evaluator.evaluate()
    assert metrics["semantic/IoU-class0"] == 50  # 2 of 4, none too many
    assert metrics["semantic/IoU-class1"] == pytest.approx(100 / 3)  # 1 of 2, and one too many
    assert metrics["semantic/ACC-class1"] == 50
    assert metrics["semantic/pACC"] == pytest.approx(50)


def test_ignored_pixels_do_not_count():
    evaluator = SemanticEvaluator(metadata(2))
    truth = torch.tensor([[0, 1, 255, 255]])
    evaluator.process([{"semantic": truth}], [{"semantic": scores_of(torch.tensor([[0, 1, 0, 1]]), 2)}])
    assert evaluator.evaluate()["semantic/mIoU"] == 100


def test_gaps_are_not_listed_but_cost_pixels():
    gappy = raw_id_metadata("toy", [Category(1, "a"), Category(3, "c")], num_classes=3)
    evaluator = SemanticEvaluator(gappy)
    truth, predicted = torch.tensor([[0, 0, 2, 2]]), torch.tensor([[0, 0, 2, 1]])
    evaluator.process([{"semantic": truth}], [{"semantic": scores_of(predicted, 3)}])
    metrics = evaluator.evaluate()
    assert metrics["semantic/mIoU"] == 75
    assert [name for name in metrics if "IoU-" in name] == ["semantic/IoU-a", "semantic/IoU-c"]


def test_nothing_seen_is_nan_and_reset_forgets():
    evaluator = SemanticEvaluator(metadata(2))
    evaluator.process([{"semantic": torch.zeros(2, 2).long()}], [{"semantic": torch.rand(2, 2, 2)}])
    evaluator.reset()
    assert all(math.isnan(value) for value in evaluator.evaluate().values())


def test_a_label_out_of_range_is_named():
    evaluator = SemanticEvaluator(metadata(2))
    sample = {"semantic": torch.full((2, 2), 2), "file_name": "street.png"}
    with pytest.raises(ValueError, match=r"street\.png.*labels 2 to 2.*labels 0 to 1"):
        evaluator.process([sample], [{"semantic": torch.rand(2, 2, 2)}])
