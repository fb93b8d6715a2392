"""The four tasks as functions: `evaluate("spec.yaml", "evaluate.checkpoint=model.pth")`.

Each takes what the command line takes and does what it does, files included; what a command says in one line and an
exit code, they raise.
"""

from __future__ import annotations

from pathlib import Path

from m2f.engine.evaluation import Results
from m2f.engine.expectations import CheckFailed
from m2f.engine.export import ExportSummary
from m2f.engine.inference import InferenceSummary
from m2f.engine.run import UserError, execute
from m2f.engine.trainer import DefaultTrainer

__all__ = ["CheckFailed", "UserError", "evaluate", "export", "inference", "train"]

Spec = str | Path | None


def train(spec: Spec, *overrides: str, trainer_class: type[DefaultTrainer] = DefaultTrainer) -> DefaultTrainer:
    """Train, or go on from the latest checkpoint of the results folder.

    Args:
        spec: a YAML file, `m2f://NAME` for a shipped one, or None for the defaults.
        overrides: `key=value` words that win over the spec.
        trainer_class: what trains; a subclass may replace any part.

    Returns:
        The trainer at its last iteration; its `model` has the weights.

    Raises:
        UserError: spec, data or files are wrong; of a wrong spec nothing was written.
        FloatingPointError: training diverged.
    """
    trained: DefaultTrainer = execute("train", spec, overrides, trainer_class).value
    return trained


def evaluate(spec: Spec, *overrides: str, trainer_class: type[DefaultTrainer] = DefaultTrainer) -> Results:
    """Measure a checkpoint, an exported graph or saved predictions; arguments as `train`.

    Returns:
        Data set -> "<task>/<metric>" -> value, in percent.

    Raises:
        UserError: see `train`.
        CheckFailed: a metric is not what `evaluate.expected_results` says; the files are written all the same.
    """
    results: Results = execute("evaluate", spec, overrides, trainer_class).value
    return results


def inference(spec: Spec, *overrides: str) -> InferenceSummary:
    """Answer images, folders and videos; arguments as `train`.

    Returns:
        How many were answered and passed over, and which could not be read.

    Raises:
        UserError: see `train`.
    """
    summary: InferenceSummary = execute("inference", spec, overrides).value
    return summary


def export(spec: Spec, *overrides: str) -> ExportSummary:
    """Write a checkpoint as ONNX, with its parity certificate; arguments as `train`.

    Returns:
        The files, and what the certificate measured.

    Raises:
        UserError: see `train`.
        CheckFailed: the graph does not answer as the model does; no `.onnx` of it is left.
    """
    summary: ExportSummary = execute("export", spec, overrides).value
    return summary
