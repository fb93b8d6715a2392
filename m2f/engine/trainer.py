"""`DefaultTrainer`: builds each room once, left to right, and runs them; every `build_*` may be overridden."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m2f import distributed
from m2f.checkpoint.checkpointer import Checkpointer, load_file
from m2f.checkpoint.loading import load_weights
from m2f.checkpoint.spelling import find_checkpoint
from m2f.config import CfgNode
from m2f.data.build import entries, load_dataset
from m2f.data.catalog import LoadedDataset
from m2f.data.loader import TrainLoader, build_eval_loader, build_train_loader
from m2f.engine import resume
from m2f.engine.answering import load_answers, model_answers
from m2f.engine.evaluation import Answers, EvaluationSet, Results, evaluate_sets, flat_metrics, require_same_classes
from m2f.engine.events import EventStorage
from m2f.engine.hooks import (
    HOOK_REGISTRY,
    BestCheckpointer,
    EarlyStopping,
    EvalHook,
    IterationTimer,
    LossAverage,
    PeriodicCheckpointer,
    WritersHook,
)
from m2f.engine.random_state import seed_everything, set_random_state
from m2f.engine.setup import Task, build_device, evaluates, setup_cudnn, task_directory, tasks_of
from m2f.engine.step import TrainStep
from m2f.engine.train_loop import HookBase, TrainerBase
from m2f.engine.weights import log_report
from m2f.engine.writers import ConsoleWriter, JsonWriter, StatusWriter, TensorBoardWriter, Writer
from m2f.evaluation import build_evaluators
from m2f.modeling.build import build_model
from m2f.solver import Horizon, Schedule, build_clipper, build_optimizer, build_schedule
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput

logger = logging.getLogger(__name__)


class DefaultTrainer(TrainerBase):
    """A training run, or the evaluation of its checkpoint, as a spec has it.

    Args:
        cfg: frozen.
        task: "train", or "evaluate" for a run that only evaluates: it needs no training data.

    Attributes:
        seed: of this run; a negative `train.seed` draws a fresh one.
        position: training samples that all processes together have consumed.
        random_state: where the generators of this process go on when training begins; None: where they are.
    """

    def __init__(self, cfg: CfgNode, task: Task = "train") -> None:
        super().__init__()
        self.cfg = cfg
        self.task = task
        self.directory = task_directory(cfg, task)
        self.device = build_device(cfg, task)
        self.seed = cfg.train.seed if cfg.train.seed >= 0 else distributed.shared_seed()
        self.position = 0
        self.random_state: dict[str, Any] | None = None
        self._answers: Answers | None = None  # None: the model as it is
        setup_cudnn(cfg)
        seed_everything(self.seed + distributed.rank())
        if task == "train":
            self.max_iters = self.horizon.max_iters
            self.register_hooks(self.build_hooks())

    # The parts, each built once when it is first needed.

    @cached_property
    def train_set(self) -> LoadedDataset:
        """The training records."""
        (entry,) = entries(self.cfg, "train")
        loaded = load_dataset(entry)
        logger.info(
            "training on %s: %d images, %d classes", entry.name, len(loaded.records), loaded.metadata.num_classes
        )
        return loaded

    @cached_property
    def eval_sets(self) -> list[EvaluationSet]:
        """What is evaluated; empty, with a warning, where a training spec names nothing."""
        if self.task == "train" and not evaluates(self.cfg):
            logger.warning("dataset.val names no data: this run is not evaluated")
            return []
        return self.build_eval_sets()

    @cached_property
    def metadata(self) -> Metadata:
        """The classes of the model."""
        return self.train_set.metadata if self.task == "train" else self.eval_sets[0].metadata

    @cached_property
    def model(self) -> nn.Module:
        """The model, on its device, answering the tasks that are evaluated."""
        model = self.build_model(self.metadata).to(self.device)
        for data in self.eval_sets:
            require_same_classes(self.metadata, data.metadata, "the model", f"dataset {data.name}")
        model.tasks = tasks_of(self.cfg)  # type: ignore[assignment]  # a plain attribute of the meta-architecture
        return model

    @cached_property
    def horizon(self) -> Horizon:
        """Epochs and iterations of the run."""
        return Horizon.from_config(self.cfg, len(self.train_set.records), distributed.world_size())

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Moves the weights."""
        return self.build_optimizer(self.model)

    @cached_property
    def schedule(self) -> Schedule:
        """Moves the rates."""
        return self.build_schedule(self.optimizer)

    @cached_property
    def step(self) -> TrainStep:
        """One iteration."""
        clip = build_clipper(self.cfg)
        return TrainStep(self.model, self.optimizer, self.schedule, clip, self.cfg.train.precision, self.device)

    @cached_property
    def checkpointer(self) -> Checkpointer:
        """The checkpoints of the training folder, in an evaluation too."""
        return Checkpointer(task_directory(self.cfg, "train"), self.cfg.model_name, self.cfg.encryption_key)

    @cached_property
    def writers(self) -> list[Writer]:
        """Where the numbers go; opened late, when it is known where the run goes on."""
        return self.build_writers() if distributed.is_main() else []

    # What a subclass may replace.

    def build_model(self, metadata: Metadata) -> nn.Module:
        """The model for the classes of `metadata`, on the CPU."""
        return build_model(self.cfg, metadata)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the parameters that learn."""
        return build_optimizer(self.cfg, model)

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> Schedule:
        """The schedule of the optimiser's rates."""
        return build_schedule(self.cfg, optimizer, self.horizon)

    def build_train_loader(self, start: int) -> TrainLoader:
        """Endless batches from sample `start` on."""
        return build_train_loader(self.cfg, self.train_set, start, self.seed)

    def build_eval_sets(self) -> list[EvaluationSet]:
        """`evaluate.datasets`, else `dataset.val`, each with its loader and evaluators."""
        sets = []
        for entry in entries(self.cfg, "val", self.cfg.evaluate.datasets):
            loaded = load_dataset(entry)
            logger.info("evaluating on %s: %d images", entry.name, len(loaded.records))
            loader = build_eval_loader(self.cfg, loaded, "val", tasks_of(self.cfg), with_targets=self._wants_val_loss)
            evaluators = self.build_evaluators(loaded.metadata)
            data = (entry.name, loaded.metadata, loaded.records, entry.image_dir)
            sets.append(EvaluationSet(*data, loader, evaluators))
        return sets

    def build_evaluators(self, metadata: Metadata) -> list[Any]:
        """One evaluator per task, and those that the spec adds."""
        return build_evaluators(self.cfg, metadata, tasks_of(self.cfg))

    def build_hooks(self) -> list[HookBase]:
        """All hooks in order; why this order is said in `hooks.py`."""
        train, horizon = self.cfg.train, self.horizon
        average = LossAverage()
        hooks: list[HookBase] = [IterationTimer(), average]
        hooks += [HOOK_REGISTRY.build(name, self.cfg, self) for name in train.hooks]
        if not train.is_dry_run:
            unit, keep = train.checkpoint_interval_unit, train.keep_checkpoints
            saved = PeriodicCheckpointer(
                self.checkpointer, horizon.checkpoint_period, horizon.iters_per_epoch, unit, keep
            )
            hooks.append(saved)
        hooks.append(EvalHook(self._metrics, horizon.validation_period, average, self.schedule.observe))
        hooks += self._watchers()
        return [*hooks, WritersHook(train.log_interval)]

    def build_writers(self) -> list[Writer]:
        """Console, metrics.json, TensorBoard and status.json."""
        epoch = self.horizon.iters_per_epoch
        return [
            ConsoleWriter(self.max_iters, epoch),
            JsonWriter(self.directory / "metrics.json", self.iteration),
            TensorBoardWriter(self.directory, self.iteration),
            StatusWriter(self.directory / "status.json", self.max_iters, epoch),
        ]

    # Training.

    def train(self) -> None:
        """Run to the end of training from wherever the run stands."""
        self.storage = EventStorage(self.iteration)
        self.storage.iteration = max(self.iteration - 1, 0)
        if self.iteration >= self.max_iters:
            logger.info(
                "training is finished: %d of %d iterations are done; evaluating only", self.iteration, self.max_iters
            )
        self._batches: Iterator[list[ModelInput]] | None = None  # opened by the first step: a finished run needs none
        self.model.train()
        if self.random_state is not None:
            set_random_state(self.random_state)
        try:
            super().train()
        finally:
            # Now, by reference count: found later by the cyclic collector, workers take five seconds each to stop.
            self._batches = None

    def run_step(self) -> None:
        """Fetch the micro-batches and take one step with them."""
        began = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.build_train_loader(self.position))
        batches = [next(self._batches) for _ in range(self.cfg.train.accumulate_steps)]
        self.storage.put_scalar("data_time", time.perf_counter() - began)
        rate = self.schedule.lr
        try:
            result = self.step(batches, lambda: self._tell("after_backward"))
        except FloatingPointError as error:
            raise FloatingPointError(f"iteration {self.iteration + 1} of {self.max_iters}: {error}") from error
        self.position += len(batches) * self.cfg.dataset.train.batch_size * distributed.world_size()
        self.storage.put_scalars(
            {**result.losses, "total_loss": result.total_loss, "gradient_norm": result.gradient_norm}
        )
        self.storage.put_scalar("lr", rate, smoothed=False)

    # Evaluation.

    def evaluate(self) -> Results:
        """Evaluate the model as it is on every set; write results.json, the tables and the pictures."""
        wants_pictures = self.cfg.evaluate.save_visualizations
        results, keepers = evaluate_sets(
            self._answers or model_answers(self),
            self.eval_sets,
            directory=self.directory,
            seed=self.seed,
            losses=self._wants_val_loss,
            saved_tasks=tasks_of(self.cfg) if self.task == "evaluate" and self.cfg.evaluate.save_predictions else (),
            num_pictures=self.cfg.train.num_visualizations if wants_pictures else 0,
            max_batches=1 if self.cfg.train.is_dry_run else None,
        )
        for writer in self.writers if self.task == "train" else []:
            for name, picture in (item for keeper in keepers for item in keeper.pictures.items()):
                writer.add_image(name, picture, max(self.iteration - 1, 0))
            if isinstance(writer, StatusWriter):
                writer.report("RUNNING", "Evaluation metrics generated.", flat_metrics(results))
        return results

    def _metrics(self) -> dict[str, float]:
        return flat_metrics(self.evaluate())

    @property
    def _wants_val_loss(self) -> bool:
        train = self.cfg.train
        watched = train.optim.monitor_name if train.optim.lr_scheduler == "AutoReduce" else ""
        return self.task == "train" and "val_loss" in (watched, train.best_metric)

    def _watchers(self) -> list[HookBase]:
        train = self.cfg.train
        if self._wants_val_loss or train.best_metric:
            key = "train.best_metric" if train.best_metric else "train.optim.monitor_name"
            if not self.eval_sets:
                raise ValueError(f"{key} watches the evaluation, but dataset.val names no data")
        if not train.best_metric or train.is_dry_run:
            return []
        stopping = EarlyStopping(train.best_metric, train.best_mode, train.early_stop_patience)
        best = BestCheckpointer(train.best_metric, train.best_mode, self.checkpointer)
        return [stopping, best] if train.early_stop_patience else [best]

    # Checkpoints.

    def training_state(self) -> dict[str, Any]:
        """See `resume.training_state`."""
        return resume.training_state(self)

    def resume_or_load(self) -> None:
        """Go on from a checkpoint, or start from weights, in this order.

        `train.resume_training_checkpoint_path`; the latest checkpoint of the results folder, unless `train.resume` is
        never; `train.pretrained_model_path`; `model.backbone.pretrained_weights`.
        """
        train = self.cfg.train
        if train.is_dry_run:
            self._load_pretrained()
            return
        if distributed.is_main():
            self.checkpointer.remove_partial()
        found = self._resumable()
        if found is not None:
            resume.restore(self, *found)
        else:
            self._load_pretrained()

    def _resumable(self) -> tuple[Path, dict[str, Any]] | None:
        train = self.cfg.train
        if train.resume_training_checkpoint_path:
            path = find_checkpoint(train.resume_training_checkpoint_path)
            return path, load_file(path, self.cfg.encryption_key)
        found = self.checkpointer.load_latest() if train.resume == "auto" else None
        if found is None and self.checkpointer.latest() is not None:
            never = train.resume == "never"
            reason = "train.resume is never" if never else f"{self.checkpointer.latest_path} is not there"
            logger.warning("%s: the checkpoints in %s will be overwritten", reason, self.checkpointer.directory)
        return found

    def _load_pretrained(self) -> None:
        backbone, whole = self.cfg.model.backbone.pretrained_weights, self.cfg.train.pretrained_model_path
        if whole and backbone:
            logger.warning("train.pretrained_model_path is set: model.backbone.pretrained_weights is not read")
        if whole:
            log_report(load_weights(self.model, whole, key=self.cfg.encryption_key))
        elif backbone:
            log_report(load_weights(self.model, backbone, part="backbone", key=self.cfg.encryption_key))
        else:
            logger.info("starting from random weights")

    def load_for_evaluation(self) -> None:
        """See `answering.load_answers`."""
        self._answers = load_answers(self)
