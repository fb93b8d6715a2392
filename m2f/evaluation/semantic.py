"""Semantic segmentation: intersection over union and accuracy, counted over all pixels of all images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from m2f import distributed
from m2f.config import CfgNode
from m2f.evaluation.build import EVALUATOR_REGISTRY
from m2f.evaluation.evaluator import Evaluator, truth_of
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput


@EVALUATOR_REGISTRY.register("semantic")
class SemanticEvaluator(Evaluator):
    """mIoU, fwIoU, mACC, pACC, and IoU and ACC of each class, at each image's own size.

    Means run over the classes that occur in the truth; the others count only as the errors they are. Pixels whose truth
    is `metadata.ignore_label` are left out. Where an answer of labels holds none, the true class has missed a pixel,
    and no class has a false one.

    Args:
        metadata: classes and ignore label.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.reset()

    @classmethod
    def from_config(cls, _cfg: CfgNode, metadata: Metadata) -> dict[str, Any]:
        """It reads no key."""
        return {"metadata": metadata}

    def reset(self) -> None:
        """Forget everything."""
        # (K, K+1) pixels: rows are truth, columns prediction, the last one no answer
        classes = self._metadata.num_classes
        self._confusion = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def process(self, inputs: list[ModelInput], outputs: list[ModelOutput]) -> None:
        """Count the pixels of input["semantic"] against the labels, or the highest scores, of output["semantic"].

        Raises:
            ValueError: there is no truth, or it holds a label that is neither a class nor the ignore label.
        """
        classes = self._metadata.num_classes
        for sample, output in zip(inputs, outputs, strict=True):
            predicted = output["semantic"]
            if predicted.ndim == 3:
                predicted = predicted.max(0).indices  # several times as fast as argmax on a CPU
            truth = truth_of(sample, "semantic").to(predicted.device)
            counted = truth != self._metadata.ignore_label
            truth, predicted = truth[counted], predicted[counted]
            if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < classes:
                raise ValueError(
                    f"{sample.get('file_name', 'an image')}: the semantic truth holds labels {int(truth.min())} to "
                    f"{int(truth.max())}, but dataset {self._metadata.name!r} has labels 0 to {classes - 1} and "
                    f"dataset.ignore_label {self._metadata.ignore_label}"
                )
            predicted = torch.where((predicted >= 0) & (predicted < classes), predicted, classes)
            counts = torch.bincount(truth * (classes + 1) + predicted, minlength=classes * (classes + 1))
            self._confusion += counts.view(classes, classes + 1).cpu()

    def evaluate(self) -> dict[str, float] | None:
        """Percentages "semantic/mIoU", "fwIoU", "mACC", "pACC", "IoU-<name>", "ACC-<name>"; None except on rank 0."""
        shards = distributed.gather(self._confusion.numpy())
        return self._metrics(np.sum(shards, axis=0).astype(np.float64)) if shards else None

    def _metrics(self, confusion: np.ndarray) -> dict[str, float]:
        """Percentages of a (K, K+1) confusion matrix; NaN for a class that does not occur in the truth."""
        hits, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)[:-1]
        present = true > 0
        accuracy, iou = np.full_like(hits, np.nan), np.full_like(hits, np.nan)
        accuracy[present] = hits[present] / true[present]
        iou[present] = hits[present] / (true + predicted - hits)[present]
        share = true[present] / true.sum() if present.any() else true[present]
        metrics = {
            "mIoU": iou[present].mean() if present.any() else np.nan,
            "fwIoU": (iou[present] * share).sum() if present.any() else np.nan,
            "mACC": accuracy[present].mean() if present.any() else np.nan,
            "pACC": (accuracy[present] * share).sum() if present.any() else np.nan,
        }
        named = [(label, c.name) for label, c in enumerate(self._metadata.categories) if not c.is_gap]
        metrics |= {f"IoU-{name}": iou[label] for label, name in named}
        metrics |= {f"ACC-{name}": accuracy[label] for label, name in named}
        return {f"semantic/{name}": 100 * float(value) for name, value in metrics.items()}
