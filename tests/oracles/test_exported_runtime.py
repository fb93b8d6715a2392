"""The answers of the torch-free runtime against those stored by the official inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from m2f.export.info import ExportInfo
from m2f.export.runtime.postprocess import answer
from m2f.export.runtime.resizing import Frame
from m2f.structures.sample import TASKS

pytestmark = pytest.mark.realdata

PIXELS = 1e-4  # share of an image's pixels in which a mask may differ
SCORE = 1e-5


def test_answers_of_crafted_predictions(postprocess: Any) -> None:
    metadata, rule = postprocess.metadata(), postprocess.rule()
    info = ExportInfo(
        mode="panoptic", outputs="mask_logits", batch_size=1, height=-1, width=-1, divisibility=32,
        normalize_in_graph=False, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1), min_size=1, max_size=1, target_size=(),
        object_mask_threshold=rule.object_mask_threshold, overlap_threshold=rule.overlap_threshold, top_k=rule.top_k,
        metadata=metadata, m2f_version="", checkpoint="", checkpoint_sha256="", opset=17, on_cpu=True, fp16=False,
    )  # fmt: skip
    for image in range(len(postprocess.prediction.class_logits)):
        outputs = {name: postprocess.arrays[f"pred_{old}"][image] for name, old in NAMES.items()}
        found = answer(outputs, Frame(*postprocess.frame(image)), info, TASKS)
        expected = postprocess.output(image)
        assert np.abs(found.semantic - expected["semantic"].numpy()).max() <= 1e-5
        ids, segments = postprocess.arrays[f"panoptic/{image}"], postprocess.json(f"panoptic_segments/{image}")
        assert (found.panoptic.ids != ids).mean() <= PIXELS
        rows = [(s.id, s.label, s.is_thing) for s in found.panoptic.segments]
        assert rows == [(s["id"], s["category_id"], s["isthing"]) for s in segments]
        assert_same_set(found.instance, expected["instance"])


NAMES = {"mask_logits": "masks", "class_logits": "logits"}


def assert_same_set(found: Any, expected: Any) -> None:
    """Each stored object has one found object of its class, score and mask."""
    left = list(range(len(found.labels)))
    assert len(left) == len(expected)
    for label, score, mask in zip(
        expected.labels.tolist(), expected.scores.tolist(), expected.masks.numpy(), strict=True
    ):
        twins = [
            i
            for i in left
            if found.labels[i] == label
            and abs(found.scores[i] - score) <= SCORE
            and (found.masks[i] != mask).mean() <= PIXELS
        ]
        assert twins, f"no object of label {label} with score {score:.6f} and the same mask"
        left.remove(twins[0])
