"""What comes before a run: names resolved, the results folder, the log, the device."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision

import m2f
from m2f import distributed
from m2f.config import CfgNode, SpecError, dump_spec
from m2f.data.build import DATASET_FORMAT_REGISTRY, DATASET_MAPPER_REGISTRY, SAMPLER_REGISTRY, entries
from m2f.engine.hooks import HOOK_REGISTRY
from m2f.evaluation import EVALUATOR_REGISTRY
from m2f.modeling.build import (
    BACKBONE_REGISTRY,
    CRITERION_REGISTRY,
    META_ARCH_REGISTRY,
    PIXEL_DECODER_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
)
from m2f.registry import Registry
from m2f.solver.build import OPTIMIZER_REGISTRY, SCHEDULE_REGISTRY
from m2f.structures.sample import Task as TaskWord

Task = Literal["train", "evaluate", "inference", "export"]
LOG_FILE = "log.txt"
SPEC_FILE = "spec.yaml"
logger = logging.getLogger(__name__)


def tasks_of(cfg: CfgNode, task: Task = "evaluate") -> tuple[TaskWord, ...]:
    """What is answered: `evaluate.tasks` (in training too) or `inference.tasks`, by default the model's mode."""
    chosen = {"inference": cfg.inference.tasks, "export": []}.get(task, cfg.evaluate.tasks)
    return tuple(chosen) or (cfg.model.mode,)


def resolve_names(cfg: CfgNode, task: Task) -> None:
    """Look up every registered name of a spec, so that a wrong one stops the run before anything is built or written.

    Raises:
        SpecError: a name is unknown; the message has the key, and the names there are.
    """
    rows = _model_names(cfg)
    if task in ("train", "evaluate"):
        rows += _data_names(cfg, "val")
        rows += [("evaluate.tasks", name, EVALUATOR_REGISTRY) for name in tasks_of(cfg)]
        rows += [("evaluate.evaluators", name, EVALUATOR_REGISTRY) for name in cfg.evaluate.evaluators]
    if task == "train":
        rows += [*_data_names(cfg, "train"), *_training_names(cfg)]
    if task == "inference":
        rows += _data_names(cfg, "test")
    for key, name, registry in rows:
        _explain(cfg, key, partial(registry.get, name))
    if task == "train":
        _explain(cfg, "dataset.train", lambda: entries(cfg, "train"))
    if task == "evaluate" or (task == "train" and evaluates(cfg)):
        key = "evaluate.datasets" if cfg.evaluate.datasets else "dataset.val"
        _explain(cfg, key, lambda: entries(cfg, "val", cfg.evaluate.datasets))


def _model_names(cfg: CfgNode) -> list[tuple[str, str, Registry]]:
    model = cfg.model
    return [
        ("model.meta_architecture", model.meta_architecture, META_ARCH_REGISTRY),
        ("model.backbone.type", model.backbone.type, BACKBONE_REGISTRY),
        ("model.sem_seg_head.pixel_decoder", model.sem_seg_head.pixel_decoder, PIXEL_DECODER_REGISTRY),
        ("model.mask_former.transformer_decoder", model.mask_former.transformer_decoder, TRANSFORMER_DECODER_REGISTRY),
        ("model.mask_former.criterion", model.mask_former.criterion, CRITERION_REGISTRY),
    ]


def _data_names(cfg: CfgNode, split: str) -> list[tuple[str, str, Registry]]:
    node = cfg.dataset[split]
    return [
        (f"dataset.{split}.type", node.type, DATASET_FORMAT_REGISTRY),
        (f"dataset.{split}.mapper", node.mapper, DATASET_MAPPER_REGISTRY),
    ]


def _training_names(cfg: CfgNode) -> list[tuple[str, str, Registry]]:
    optim = cfg.train.optim
    return [
        ("dataset.train.sampler", cfg.dataset.train.sampler, SAMPLER_REGISTRY),
        ("train.optim.type", optim.type, OPTIMIZER_REGISTRY),
        ("train.optim.lr_scheduler", optim.lr_scheduler, SCHEDULE_REGISTRY),
        *(("train.hooks", name, HOOK_REGISTRY) for name in cfg.train.hooks),
    ]


def _explain(cfg: CfgNode, key: str, look_up: Callable[[], Any]) -> None:
    try:
        look_up()
    except (KeyError, ValueError) as error:
        source = f"{cfg.source(key)}: " if cfg.was_set(key) else ""
        raise SpecError(f"{source}{key}: {error.args[0]}") from error


def evaluates(cfg: CfgNode) -> bool:
    """Whether the spec names something to evaluate on."""
    val = cfg.dataset.val
    paths = (val.name, val.panoptic_json, val.instance_json, val.annot_file, val.img_dir, val.mask_dir)
    return bool(cfg.evaluate.datasets) or any(paths)


def task_directory(cfg: CfgNode, task: Task) -> Path:
    """Where a task writes: `<task>.results_dir`, else `<results_dir>/<task>`; an empty results_dir is ./results."""
    return Path(cfg[task].results_dir or Path(cfg.results_dir or "results") / task).expanduser()


def prepare_directory(cfg: CfgNode, task: Task) -> Path:
    """Make the results folder of a task and open the log in it.

    Raises:
        SpecError: the folder cannot be written to.
    """
    directory = task_directory(cfg, task)
    try:
        setup_logging(directory)
    except OSError as error:
        raise SpecError(
            f"the results folder {directory} cannot be written to: {error}; set results_dir or {task}.results_dir"
        ) from error
    return directory


def save_spec(cfg: CfgNode, directory: Path) -> None:
    """Save the resolved spec beside the results, once it is certain that they will be this spec's."""
    if distributed.is_main():
        fresh = directory / f"{SPEC_FILE}.tmp"
        fresh.write_text(dump_spec(cfg))
        os.replace(fresh, directory / SPEC_FILE)


def setup_logging(directory: Path | None) -> None:
    """Let m2f speak on standard output and, with tracebacks, into `<directory>/log.txt`.

    A second call replaces the first.

    Args:
        directory: of the log file; None: the console alone.
    """
    root = logging.getLogger("m2f")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.DEBUG)
    root.propagate = False
    rank = distributed.rank()
    if rank == 0:
        _add_handler(root, logging.StreamHandler(sys.stdout), logging.INFO, "%(asctime)s %(message)s")
    if directory is not None:
        name = LOG_FILE if rank == 0 else f"{LOG_FILE}.rank{rank}"
        directory.mkdir(parents=True, exist_ok=True)
        layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        _add_handler(root, logging.FileHandler(directory / name), logging.DEBUG, layout)


def _add_handler(root: logging.Logger, handler: logging.Handler, level: int, layout: str) -> None:
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(layout, datefmt="%Y-%m-%d %H:%M:%S"))
    root.addHandler(handler)


def build_device(cfg: CfgNode, task: Task) -> torch.device:
    """The device of this process, as `device` and the task's `gpu_ids` have it; an export needs none but the CPU.

    Raises:
        ValueError: CUDA is asked for and not there, or has no device of that number.
    """
    if task == "export" or cfg.device == "cpu" or (cfg.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {cfg.device!r} is not available on this machine; set device: auto or cpu")
    number, there = cfg[task].gpu_ids[distributed.rank()], torch.cuda.device_count()
    if not 0 <= number < there:
        raise ValueError(f"{task}.gpu_ids: there is no GPU {number}; this machine has 0 to {there - 1}")
    return torch.device("cuda", number)


def setup_cudnn(cfg: CfgNode) -> None:
    """Hand `train.cudnn` to the library."""
    torch.backends.cudnn.benchmark = cfg.train.cudnn.benchmark
    torch.backends.cudnn.deterministic = cfg.train.cudnn.deterministic


def log_environment(arguments: Sequence[str], device: torch.device) -> None:
    """Say what runs, where."""
    cuda = (
        f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    )
    logger.info("command line: %s", " ".join(arguments))
    logger.info(
        "m2f %s, Python %s, torch %s, torchvision %s, %s, device %s%s",
        m2f.__version__,
        platform.python_version(),
        torch.__version__,
        torchvision.__version__,
        platform.platform(),
        device,
        cuda,
    )
