#!/usr/bin/env python
"""Walk through train, evaluate, inference and export for all modes, and print whether the metrics stay what they are.

`check_four_tasks.py [--data FOLDER] [--iterations N] [--only WORD] --output-dir FOLDER`. The embedded data set is
always there; with `--data`, the folder of `coco_panoptic_200`, `camvid` and `dsb2018_256`, so are real pictures. Small
models learn a few pictures nearly by heart: what is compared should not be zero.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from m2f.engine import api

LARGEST_DIFFERENCE = 0.1  # points


@dataclass(frozen=True)
class Case:
    """One model on one data set; `size` is the network's (height, width), `same` whether all images have it."""

    name: str
    spec: str
    metric: str
    size: tuple[int, int]
    same: bool
    settings: tuple[str, ...] = ()
    data: str = ""  # folder below --data; none: embedded


def _shapes(mode: str, metric: str, classes: int) -> Case:
    train, val = (f"dataset.{split}.name=shapes_{mode}_{split}" for split in ("train", "val"))
    kind = {"panoptic": "coco_panoptic", "instance": "coco", "semantic": "ade"}[mode]
    types = (f"dataset.train.type={kind}", f"dataset.val.type={kind}", f"model.sem_seg_head.num_classes={classes}")
    settings = (train, val, *types, f"model.mode={mode}", f"evaluate.tasks=[{mode}]")
    return Case(f"shapes {mode}", "m2f://quickstart/shapes_panoptic", metric, (128, 128), True, settings)


# The validation set is made of pictures that were trained on.
_BY_HEART = ("dataset.val.max_images=8", "dataset.train.max_images=8", "dataset.augmentation.color_jitter=False")
CASES = (
    _shapes("panoptic", "panoptic/PQ", 7),
    _shapes("instance", "instance/AP", 4),
    _shapes("semantic", "semantic/mIoU", 7),
    Case(
        "camvid semantic",
        "m2f://small/camvid_semantic",
        "semantic/mIoU",
        (352, 480),
        False,
        ("dataset.val.target_size=[480, 352]", "dataset.augmentation.test_min_size=352", "dataset.val.max_images=24"),
        "camvid",
    ),
    Case(
        "coco panoptic", "m2f://small/coco_panoptic_overfit", "panoptic/PQ", (256, 448), False, (), "coco_panoptic_200"
    ),
    Case(
        "dsb instance",
        "m2f://small/dsb2018_instance",
        "instance/AP",
        (256, 256),
        True,
        (
            *_BY_HEART,
            "dataset.val.instance_json=annotations/instances_train.json",
            "dataset.val.img_dir=images/train",
            *(f"dataset.augmentation.{key}=256" for key in ("test_min_size", "test_max_size")),
            *("dataset.augmentation.train_min_size=[256, 256]", "dataset.augmentation.train_crop_size=[256, 256]"),
            *("dataset.augmentation.vertical_flip=0", "dataset.augmentation.horizontal_flip=0"),
        ),
        "dsb2018_256",
    ),
)


class Walk:
    """One case from training to the last evaluation.

    Args:
        case: what is trained.
        iterations: of training.
        folder: gets everything.
        data: the folder of the real data; unused by embedded data.
    """

    def __init__(self, case: Case, iterations: int, folder: Path, data: Path) -> None:
        self.case, self.folder = case, folder
        root = (f"dataset.root_dir={data / case.data}",) if case.data else ()
        self.common = (*case.settings, *root, f"train.max_iters={iterations}", f"results_dir={folder}")

    def row(self) -> list[str]:
        """The line of the table: the metric from weights, saved predictions and graphs."""
        began = time.perf_counter()
        api.train(self.case.spec, *self.common, "dataset.val.name=", "train.num_visualizations=0")
        trained = time.perf_counter() - began
        torch_metric = self._evaluate("torch", "evaluate.save_predictions=True")
        saved = self._evaluate(
            "saved", f"evaluate.predictions=[{self.folder}/torch/predictions/{self._dataset('torch')}]"
        )
        tao, logits = self._exported("tao"), self._exported("mask_logits", "export.dynamic_size=True")
        images = api.inference(self.case.spec, *self.common, f"inference.input=[{self._pictures()}]").images
        values = [torch_metric, saved, tao, logits]
        return [
            self.case.name,
            f"{trained:.0f} s",
            *(f"{value:.3f}" for value in values),
            str(images),
            self._verdict(values),
        ]

    def _exported(self, outputs: str, *settings: str) -> float:
        height, width = self.case.size
        path = self.folder / f"{outputs}.onnx"
        size = (f"export.input_height={height}", f"export.input_width={width}", f"export.outputs={outputs}")
        api.export(self.case.spec, *self.common, f"export.onnx_file={path}", *size, *settings)
        return self._evaluate(outputs, f"evaluate.checkpoint={path}")

    def _evaluate(self, name: str, *settings: str) -> float:
        words = (*self.common, f"evaluate.results_dir={self.folder / name}", *settings)
        (metrics,) = api.evaluate(self.case.spec, *words).values()
        return metrics[self.case.metric]

    def _dataset(self, name: str) -> str:
        return next(iter(json.loads((self.folder / name / "results.json").read_text())))

    def _pictures(self) -> Path:
        """A folder of a few pictures: the overlays of the evaluation serve as well as any."""
        return self.folder / "torch" / "visualizations"

    def _verdict(self, values: list[float]) -> str:
        torch_metric, saved, tao, logits = values
        must = [saved, logits, *([tao] if self.case.same else [])]
        worst = max(abs(value - torch_metric) for value in must)
        note = "" if self.case.same else f"; tao {tao - torch_metric:+.2f}"
        return f"{'equal' if worst <= LARGEST_DIFFERENCE else 'DIFFERENT'} (worst {worst:.3f}{note})"


def main(argv: list[str] | None = None) -> int:
    """Walk; 1 when a metric that must be equal is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--iterations", type=int, default=300, help="of training, for each case")
    parser.add_argument("--only", default="", help="cases whose name holds this word")
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args(argv)
    rows = []
    for case in CASES:
        if args.only in case.name and (args.data or not case.data):
            walk = Walk(case, args.iterations, (args.output_dir / case.name.replace(" ", "_")).resolve(), args.data)
            rows.append(walk.row())
    logging.getLogger("m2f").handlers.clear()
    head = [
        "case",
        "training",
        "weights",
        "saved predictions",
        "ONNX as TAO's",
        "ONNX mask logits",
        "inferred",
        "verdict",
    ]
    print(tabulate(rows, head, "pipe", disable_numparse=True))
    return int(any("DIFFERENT" in row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
