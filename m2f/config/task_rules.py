"""What one task needs of a spec beyond what all of them do, and what it cannot honour."""

from __future__ import annotations

import logging

from m2f.config import rules
from m2f.config.node import CfgNode
from m2f.config.validate import check_ranges, fail

logger = logging.getLogger(__name__)

TASKS = ("train", "evaluate", "inference", "export")


def check_task(cfg: CfgNode, task: str) -> None:
    """Check what one task alone reads, and refuse what it needs and m2f cannot do.

    Args:
        cfg: a tree from `load_spec`.
        task: train | evaluate | inference | export.

    Raises:
        SpecError: a value that this task cannot honour.
        ValueError: there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; it is one of {', '.join(TASKS)}")
    check_ranges(cfg, rules.TASK_RANGES[task])
    if task == "export":
        _check_export(cfg)
        return
    if task == "train":
        _check_best_metric(cfg)
    else:
        _check_answers(cfg, task)
    _refuse_several_processes(cfg, task)


def _check_answers(cfg: CfgNode, task: str) -> None:
    """How the answers of evaluation and inference come about."""
    node = cfg[task]
    if node.checkpoint and node.trt_engine:
        fail(cfg, f"{task}.trt_engine", f"{task}.checkpoint is set as well; keep one", others=[f"{task}.checkpoint"])
    if node.tile_size and (node.tta_flip or node.tta_scales):
        others = [f"{task}.tta_flip", f"{task}.tta_scales"]
        fail(cfg, f"{task}.tile_size", "tiles and test-time augmentation exclude each other", others=others)
    if task == "inference" and not (node.save_overlays or node.save_predictions):
        others = ["inference.save_predictions"]
        fail(cfg, "inference.save_overlays", "save_predictions is False as well: nothing would be kept", others=others)
    for row in node.get("expected_results", []):
        if not _is_expectation(row):
            problem = f"{row} is not [metric, value, tolerance], such as [panoptic/PQ, 52, 0.5]"
            fail(cfg, "evaluate.expected_results", problem)


def _is_expectation(row: list[object]) -> bool:
    """Whether it is a name and two numbers, the second not negative."""
    is_row = len(row) == 3 and isinstance(row[0], str) and all(type(number) in (int, float) for number in row[1:])
    return is_row and row[2] >= 0  # type: ignore[operator]


def _check_export(cfg: CfgNode) -> None:
    """The input's size, and outputs that the mode does not have."""
    for key in () if cfg.export.dynamic_size else ("export.input_height", "export.input_width"):
        if cfg.leaf(key) % 32:
            fail(cfg, key, f"it must be a multiple of 32, such as {max(round(cfg.leaf(key) / 32), 2) * 32}")
    if cfg.export.outputs == "panoptic_map" and cfg.model.mode != "panoptic":
        problem = f"model.mode is {cfg.model.mode}; only panoptic has a map of segments"
        fail(cfg, "export.outputs", problem, others=["model.mode"])


def _check_best_metric(cfg: CfgNode) -> None:
    """What is wrong or odd for certain; which metrics there are is known only after an evaluation."""
    if cfg.train.best_metric.startswith("val_loss") and cfg.train.best_mode == "max":
        logger.warning("train.best_mode is max: the HIGHEST %s counts as the best", cfg.train.best_metric)
    tasks = cfg.evaluate.tasks or [cfg.model.mode]
    word = cfg.train.best_metric.partition("/")[0]
    if word in rules.TASKS and word not in tasks and not cfg.evaluate.evaluators:
        problem = f"this run evaluates {', '.join(tasks)} only; see evaluate.tasks"
        fail(cfg, "train.best_metric", problem, others=["evaluate.tasks", "model.mode"])


def _refuse_several_processes(cfg: CfgNode, task: str) -> None:
    for name, unit in (("num_gpus", "GPU"), ("num_nodes", "node")):
        if cfg[task][name] > 1:
            ids = " (gpu_ids counts too)" if name == "num_gpus" else ""
            others = [f"{task}.gpu_ids"]
            fail(cfg, f"{task}.{name}", f"this version of m2f runs on one {unit}; set it to 1{ids}", others=others)
    if task == "train" and cfg.train.distributed_strategy != "ddp":
        fail(
            cfg, "train.distributed_strategy", "this version of m2f runs one process, for which only 'ddp' is accepted"
        )
