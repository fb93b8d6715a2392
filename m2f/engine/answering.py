"""What answers in an evaluation: the model in training, or what the spec's `evaluate` names."""

from __future__ import annotations

import logging
from typing import Any

from m2f.checkpoint.class_names import m2f_metadata
from m2f.checkpoint.loading import load_state, read_state
from m2f.data.predictions import SavedPredictions
from m2f.engine.evaluation import Answers, require_same_classes
from m2f.engine.predictor import exported_model, merged
from m2f.engine.setup import tasks_of
from m2f.engine.weights import checkpoint_of, log_report

logger = logging.getLogger(__name__)


def model_answers(trainer: Any) -> Answers:
    """The trainer's model as it is at that moment, on tiles or augmented images where the spec says so."""
    return Answers(lambda data: merged(trainer.cfg, "evaluate", trainer.model, data.metadata), trainer.model)


def load_answers(trainer: Any) -> Answers:
    """Load saved predictions, an exported graph, an engine or weights, the first of them that is named.

    Raises:
        FileNotFoundError: what is named is not there; or nothing is, and training has left no checkpoint.
        ValueError: it is of other classes, does not fill the whole model, or cannot answer the tasks.
    """
    if trainer.cfg.evaluate.predictions:
        return _saved_answers(trainer)
    exported = exported_model(trainer.cfg, "evaluate")
    if exported is None:
        _load_weights(trainer)
        return model_answers(trainer)
    for data in trainer.eval_sets:
        require_same_classes(exported.metadata, data.metadata, exported.source, f"dataset {data.name}")
    return Answers(lambda data: merged(trainer.cfg, "evaluate", exported, data.metadata), None)


def _saved_answers(trainer: Any) -> Answers:
    """Read at once, so that what is wrong with the files is said before the work."""
    paths, tasks = trainer.cfg.evaluate.predictions, tasks_of(trainer.cfg)
    logger.info("evaluating the saved predictions in %s; no model is asked", ", ".join(paths))
    saved = {data.name: SavedPredictions(paths, data.metadata, tasks, data.name) for data in trainer.eval_sets}
    for data in trainer.eval_sets:
        saved[data.name].check(data.records)
    return Answers(lambda data: saved[data.name], None)


def _load_weights(trainer: Any) -> None:
    source = checkpoint_of(trainer.cfg, "evaluate")
    weights, info = read_state(source, trainer.model.state_dict().keys(), key=trainer.cfg.encryption_key)
    classes = m2f_metadata(info.rest)
    if classes is not None:
        require_same_classes(classes, trainer.metadata, f"checkpoint {source}", f"dataset {trainer.eval_sets[0].name}")
    log_report(load_state(trainer.model, weights, info, complete=True))
