"""The four tasks, each prepared (what the user gave is read and checked) and then run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m2f.config import CfgNode
from m2f.engine.evaluation import flat_metrics
from m2f.engine.expectations import require_expected
from m2f.engine.export import ExportRun
from m2f.engine.inference import InferenceRun
from m2f.engine.predictor import build_predictor
from m2f.engine.setup import Task, build_device, task_directory
from m2f.engine.trainer import DefaultTrainer


@dataclass(frozen=True)
class Outcome:
    """What a task leaves behind beside its files.

    Attributes:
        value: of the Python API.
        message: says in status.json what `kpi` is.
        kpi: name -> number.
    """

    value: Any = None
    message: str = ""
    kpi: Mapping[str, float] = field(default_factory=dict)


class Job(ABC):
    """One run of one task.

    Args:
        cfg: frozen.
        trainer_class: what trains, and builds the model of an evaluation.
    """

    task: Task

    def __init__(self, cfg: CfgNode, trainer_class: type[DefaultTrainer]) -> None:
        self.cfg, self.trainer_class = cfg, trainer_class
        self.directory = task_directory(cfg, self.task)
        self.device = build_device(cfg, self.task)

    @abstractmethod
    def prepare(self) -> None:
        """Read what the user gave; what is wrong with it raises."""

    @abstractmethod
    def run(self) -> Outcome:
        """Do the work."""


class TrainJob(Job):
    """Training, resumed where it was."""

    task = "train"

    def prepare(self) -> None:
        """Build the trainer and load its weights."""
        self._trainer = self.trainer_class(self.cfg, "train")
        self._trainer.resume_or_load()

    def run(self) -> Outcome:
        """Train to the end."""
        self._trainer.train()
        return Outcome(self._trainer)


class EvaluateJob(Job):
    """Metrics of a model or of saved predictions."""

    task = "evaluate"

    def prepare(self) -> None:
        """Build the data sets and load what answers."""
        self._trainer = self.trainer_class(self.cfg, "evaluate")
        self._trainer.load_for_evaluation()

    def run(self) -> Outcome:
        """Evaluate, then compare with what is expected."""
        results = self._trainer.evaluate()
        metrics = flat_metrics(results)
        require_expected(metrics, self.cfg.evaluate.expected_results)
        return Outcome(results, "Evaluation metrics generated.", metrics)


class InferenceJob(Job):
    """Pictures and predictions for images without truth."""

    task = "inference"

    def prepare(self) -> None:
        """Find the images and load what answers."""
        self._run = InferenceRun(self.cfg, self.directory, lambda: build_predictor(self.cfg, self.device))

    def run(self) -> Outcome:
        """Answer all images."""
        summary = self._run.run()
        kpi = {"images": summary.images, "seconds": summary.seconds, "unreadable": len(summary.unreadable)}
        return Outcome(summary, "Inference results generated.", kpi)


class ExportJob(Job):
    """An ONNX file with its certificate."""

    task = "export"

    def prepare(self) -> None:
        """Load the model and the pictures of the certificate."""
        self._run = ExportRun(self.cfg, self.directory)

    def run(self) -> Outcome:
        """Write, compare, and give the file its name."""
        summary = self._run.run()
        return Outcome(summary, "Export parity measured.", summary.kpi)


JOBS: dict[Task, type[Job]] = {job.task: job for job in (TrainJob, EvaluateJob, InferenceJob, ExportJob)}
