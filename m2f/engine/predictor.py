"""What answers images in evaluation and inference: a model, an exported graph or an engine; tiled or augmented."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from m2f.config import CfgNode
from m2f.engine.exported import ExportedModel
from m2f.engine.setup import Task, tasks_of
from m2f.engine.weights import checkpoint_of, load_model
from m2f.merging.augmentation import AugmentedPredictor
from m2f.merging.tiles import TiledPredictor
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput, Predict
from m2f.structures.sample import Task as TaskWord

EXPORTED = (".onnx", ".etlt")


@dataclass(frozen=True)
class Predictor:
    """Answers images, whatever does the work.

    Attributes:
        predict: images to answers.
        metadata: the classes.
        tasks: what is answered.
        source: the file that it came from.
    """

    predict: Predict
    metadata: Metadata
    tasks: tuple[TaskWord, ...]
    source: str

    def __call__(self, inputs: list[ModelInput]) -> list[ModelOutput]:
        """One output per input."""
        return self.predict(inputs)


def build_predictor(cfg: CfgNode, device: torch.device) -> Predictor:
    """What `inference` asks: its checkpoint or engine, else the latest checkpoint of the training folder.

    Raises:
        FileNotFoundError: there is no such file, or no checkpoint at all.
        ValueError: the file cannot be used, or cannot answer the tasks.
    """
    tasks = tasks_of(cfg, "inference")
    exported = exported_model(cfg, "inference")
    if exported is not None:
        predict: Predict = exported
        metadata, source = exported.metadata, exported.source
    else:
        path = checkpoint_of(cfg, "inference")
        model = load_model(cfg, path, tasks, device)
        predict, metadata, source = model, model.metadata, str(path)  # type: ignore[assignment]
    return Predictor(merged(cfg, "inference", predict, metadata), metadata, tasks, source)


def exported_model(cfg: CfgNode, task: Task) -> ExportedModel | None:
    """The ONNX graph that `<task>.checkpoint` names, or the engine of `<task>.trt_engine`; None where neither is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be run here, or cannot answer the tasks.
    """
    node, tasks = cfg[task], tasks_of(cfg, task)
    if node.trt_engine:
        return ExportedModel.from_engine(node.trt_engine, tasks)
    if Path(node.checkpoint).suffix in EXPORTED:
        return ExportedModel.from_onnx(node.checkpoint, tasks, cfg.encryption_key)
    return None


def merged(cfg: CfgNode, task: Task, predict: Predict, metadata: Metadata) -> Predict:
    """`predict` on tiles or on augmented images, as the task's keys have it."""
    node, tasks = cfg[task], tasks_of(cfg, task)
    if node.tile_size:
        return TiledPredictor(predict, metadata, tasks, tile_size=tuple(node.tile_size), overlap=node.tile_overlap)
    if node.tta_flip or node.tta_scales:
        scales = node.tta_scales
        thresholds = {name: cfg.model[name] for name in ("object_mask_threshold", "overlap_threshold")}
        return AugmentedPredictor(predict, metadata, tasks, flip=node.tta_flip, scales=scales, **thresholds)
    return predict
