"""The truth fed as prediction scores 100, through the readers of real data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry
from m2f.data.mappers import EvalMapper
from m2f.data.transforms.policies import ShortestEdge
from m2f.evaluation import InstanceEvaluator, PanopticEvaluator, SemanticEvaluator, inference_on_dataset

EVALUATORS = {"semantic": SemanticEvaluator, "panoptic": PanopticEvaluator, "instance": InstanceEvaluator}
HEADLINES = {
    "semantic": ("mIoU", "fwIoU", "mACC", "pACC"),
    "panoptic": ("PQ", "SQ", "RQ"),
    "instance": ("AP", "box_AP"),
}


class TruthTeller(torch.nn.Module):
    """Answers the truth, crowds left out."""

    def __init__(self, metadata) -> None:
        super().__init__()
        self.metadata = metadata

    def forward(self, inputs):
        return [{task: self.answer(task, sample[task]) for task in EVALUATORS if task in sample} for sample in inputs]

    def answer(self, task, truth):
        if task == "instance":
            return truth[~truth.is_crowd]
        if task == "semantic":
            labels = torch.where(truth == self.metadata.ignore_label, 0, truth)
            classes = torch.arange(self.metadata.num_classes)
            return (labels == classes[:, None, None]).float()
        return truth


def entry(root: Path, name: str) -> DatasetEntry:
    if name == "coco_panoptic":
        root = root / "coco_panoptic_200"
        annotations = str(root / "annotations/panoptic_val2017.json")
        folders = {"image_dir": str(root / "images/val2017"), "panoptic_dir": str(root / "panoptic_val2017")}
        return DatasetEntry(name, name, annotations, **folders, max_images=6)
    root = root / "coco_instances_160"
    annotations = str(root / "annotations/instances_val2017.json")
    return DatasetEntry(name, name, annotations, str(root / "images/val2017"), max_images=30)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "tasks"), [("coco_panoptic", ("semantic", "panoptic", "instance")), ("coco", ("instance",))]
)
def test_the_truth_scores_100(real_data: Path, name: str, tasks: tuple[str, ...]):
    metadata, records = load_dataset(entry(real_data, name))
    mapper = EvalMapper(metadata, ShortestEdge(128, 256), tasks)
    loader = [[mapper(record, np.random.default_rng(0))] for record in records]
    evaluators = [EVALUATORS[task](metadata) for task in tasks]
    metrics = inference_on_dataset(TruthTeller(metadata), loader, evaluators)
    for task in tasks:
        for headline in HEADLINES[task]:
            assert metrics[f"{task}/{headline}"] == pytest.approx(100, abs=1e-9), headline
