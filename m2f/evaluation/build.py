"""Evaluators by task word, and those a spec adds."""

from __future__ import annotations

from collections.abc import Sequence

from m2f.config import CfgNode
from m2f.evaluation.evaluator import Evaluator
from m2f.registry import Registry
from m2f.structures.metadata import Metadata

EVALUATOR_REGISTRY = Registry(
    "evaluator", "`build(name, cfg, metadata)` returns an Evaluator; the one of a task bears the task's word as name."
)


def build_evaluators(cfg: CfgNode, metadata: Metadata, tasks: Sequence[str]) -> list[Evaluator]:
    """One evaluator per task, then those of `evaluate.evaluators`.

    Raises:
        KeyError: a name is not registered.
    """
    names = [*tasks, *(name for name in cfg.evaluate.evaluators if name not in tasks)]
    return [EVALUATOR_REGISTRY.build(name, cfg, metadata) for name in names]
