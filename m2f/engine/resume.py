"""What a training checkpoint holds, how a run takes it back, and when it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import m2f
from m2f import distributed
from m2f.config import CfgNode, dump_spec, dumped_leaves
from m2f.engine.evaluation import require_same_classes
from m2f.engine.random_state import random_state
from m2f.structures.metadata import Metadata

logger = logging.getLogger(__name__)

TRAINING_KEYS = (
    "model",
    "optimizer",
    "schedule",
    "scaler",
    "iteration",
    "position",
    "hooks",
    "rng",
    "spec",
    "metadata",
)
SHOWN = 3  # differences that an error lists

# Keys that change what a weight means without changing its name or shape; with another value the old weights are noise.
STRUCTURAL_KEYS = (
    "model.meta_architecture",
    "model.backbone.type",
    "model.backbone.swin.num_heads",
    "model.backbone.swin.qk_scale",
    "model.backbone.swin.window_size",
    "model.backbone.efficientvit.dim",
    "model.sem_seg_head.pixel_decoder",
    "model.sem_seg_head.common_stride",
    "model.sem_seg_head.deformable_transformer_encoder_in_features",
    "model.mask_former.transformer_decoder",
    "model.mask_former.nheads",
    "model.mask_former.pre_norm",
)
# Differences between two specs that change nothing of what is learned. No stored spec has the encryption key.
QUIET_KEYS = (
    "encryption_key",
    "results_dir",
    "train.results_dir",
    "train.resume",
    "train.resume_training_checkpoint_path",
)


def training_state(trainer: Any) -> dict[str, Any]:
    """Everything that a run needs to go on as if it had never stopped, in tensors and plain containers.

    All processes must call it: each one's random state is in there.
    """
    return {
        "model": trainer.model.state_dict(),
        "optimizer": optimizer_state(trainer.optimizer, trainer.model),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.step.scaler.state_dict(),
        "iteration": trainer.iteration,
        "epoch": trainer.iteration // trainer.horizon.iters_per_epoch,
        "position": trainer.position,
        "seed": trainer.seed,
        "hooks": trainer.hook_states(),
        "rng": distributed.all_gather(random_state()),
        "spec": dump_spec(trainer.cfg),
        "metadata": trainer.metadata.to_dict(),
        "m2f_version": m2f.__version__,
    }


def restore(trainer: Any, path: Path, state: dict[str, Any]) -> None:
    """Put a trainer where `training_state` was taken; settings that have changed in the spec hold from here on.

    Raises:
        ValueError: `state` holds weights alone, or those of another architecture or other classes.
    """
    require_training_checkpoint(state, path)
    require_same_architecture(trainer.model, state, trainer.cfg, path)
    require_same_classes(Metadata.from_dict(state["metadata"]), trainer.metadata, f"checkpoint {path}", "dataset.train")
    note_changed_settings(state, trainer.cfg)
    trainer.model.load_state_dict(state["model"])
    load_optimizer_state(trainer.optimizer, trainer.model, state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    if trainer.step.scaler.is_enabled() and state["scaler"]:
        trainer.step.scaler.load_state_dict(state["scaler"])
    trainer.iteration, trainer.position = state["iteration"], state["position"]
    if trainer.cfg.train.seed < 0:
        trainer.seed = state["seed"]
    trainer.load_hook_states(state["hooks"])
    if distributed.rank() < len(state["rng"]):
        trainer.random_state = state["rng"][distributed.rank()]
    logger.info("resuming from %s after %d of %d iterations", path, trainer.iteration, trainer.max_iters)


def require_training_checkpoint(state: dict[str, Any], path: object) -> None:
    """Refuse a file that holds weights alone.

    Raises:
        ValueError: a part of the training state is missing.
    """
    missing = [key for key in TRAINING_KEYS if key not in state]
    if missing:
        raise ValueError(
            f"checkpoint {path} cannot be resumed from: it lacks {', '.join(missing)}; "
            "to start from its weights alone set train.pretrained_model_path"
        )


def require_same_architecture(model: nn.Module, state: dict[str, Any], cfg: CfgNode, path: object) -> None:
    """Refuse to go on with weights of another network.

    Raises:
        ValueError: names, shapes or structural keys differ; the message has the first differences.
    """
    here, there = model.state_dict(), state["model"]
    lines = [
        f"{key} is {old!r} there and {new!r} here"
        for key, old, new in _differences(state, cfg)
        if key in STRUCTURAL_KEYS and not _is_of_another_backbone(key, cfg)
    ]
    lines += [f"{name} is {_shape(there, name)} there and {_shape(here, name)} here" for name in _changed(here, there)]
    if lines:
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise ValueError(
            f"checkpoint {path} is of another architecture: {'; '.join(lines[:SHOWN])}{more}. "
            "Use the same model section, another train.results_dir, or train.resume: never"
        )


def _is_of_another_backbone(key: str, cfg: CfgNode) -> bool:
    sections = key.split(".")[:-1]
    return len(sections) == 3 and sections[1] == "backbone" and sections[2] != cfg.model.backbone.type


def _changed(here: dict[str, Tensor], there: dict[str, Tensor]) -> list[str]:
    return [name for name in {**here, **there} if _shape(here, name) != _shape(there, name)]


def _shape(state: dict[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "absent"


def note_changed_settings(state: dict[str, Any], cfg: CfgNode) -> None:
    """Say which settings a resumed run has otherwise than the run that it continues; the new ones hold."""
    changes = [f"{key}: {old!r} -> {new!r}" for key, old, new in _differences(state, cfg) if key not in QUIET_KEYS]
    if changes:
        logger.warning(
            "the spec has changed since the checkpoint was written; it holds from here on: %s", "; ".join(changes)
        )


def _differences(state: dict[str, Any], cfg: CfgNode) -> list[tuple[str, Any, Any]]:
    """(key, value there, value here) of the keys that both specs have; versions of m2f may differ in the others."""
    there = dumped_leaves(state["spec"])
    return [(key, there[key], value) for key, value in cfg.leaves() if key in there and there[key] != value]


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Moments and step counts by parameter name.

    By name and without the groups' settings: these come from the spec and the schedule, so that a resumed run may
    have other rates or another grouping and no moment ends up at the wrong parameter.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        "type": type(optimizer).__name__,
        "state": {names[id(parameter)]: dict(values) for parameter, values in optimizer.state.items()},
    }


def load_optimizer_state(optimizer: Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Take back what `optimizer_state` gave.

    Raises:
        ValueError: the optimiser is of another type.
    """
    if saved["type"] != type(optimizer).__name__:
        raise ValueError(
            f"train.optim.type: the checkpoint was trained with {saved['type']}, whose state "
            f"{type(optimizer).__name__} cannot use; start from its weights with train.pretrained_model_path"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: saved["state"][name] for index, name in enumerate(ordered) if name in saved["state"]}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
