"""What an exported graph says of itself: all that its callers need to know to feed it and to read its outputs.

Stands in the ONNX file's metadata under `METADATA_KEY`, and beside the file as `<stem>.json`. Needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from m2f.structures.metadata import Metadata

METADATA_KEY = "m2f"
INPUT_NAME = "inputs"
_TAO_OUTPUTS = {
    "semantic": ("pred_masks",),
    "panoptic": ("prob_masks", "pred_masks", "pred_scores", "pred_classes"),
    "instance": ("pred_masks", "pred_scores", "pred_classes"),
}
_OUTPUTS = {
    "mask_logits": ("mask_logits", "class_logits"),
    "panoptic_map": ("panoptic_ids", "segment_ids", "segment_classes", "segment_scores"),
}


@dataclass(frozen=True)
class ExportInfo:
    """Attributes:
    mode: semantic | panoptic | instance: what the outputs answer.
    outputs: tao | mask_logits (answers every task) | panoptic_map (of mode panoptic).
    batch_size: images per run; -1: any number.
    height: of the input, in pixels; -1: any multiple of `divisibility`.
    width: likewise.
    divisibility: of a free height or width.
    normalize_in_graph: the input is uint8 RGB; otherwise float32, (x / 255 - pixel_mean) / pixel_std.
    pixel_mean: (3,) RGB, of 1.
    pixel_std: (3,) RGB, of 1.
    min_size: evaluation resizes the shortest edge to this, in pixels, ...
    max_size: ... unless the longest would pass this.
    target_size: (width, height) of a plain resize before that; empty: none.
    object_mask_threshold: panoptic: a query's class probability must exceed it.
    overlap_threshold: panoptic: least share of a query's mask that it must win.
    top_k: instance: (query, class) pairs looked at.
    metadata: what the labels mean.
    m2f_version: that exported it.
    checkpoint: file name of the weights.
    checkpoint_sha256: of that file.
    opset: of ONNX.
    on_cpu: False: it holds nodes that only TensorRT runs, with its plugin of multi-scale deformable attention.
    fp16: weights and activations have half precision.

    Raises:
        ValueError: mode and outputs contradict each other or are none of these words.
    """

    mode: str
    outputs: str
    batch_size: int
    height: int
    width: int
    divisibility: int
    normalize_in_graph: bool
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    min_size: int
    max_size: int
    target_size: tuple[int, ...]
    object_mask_threshold: float
    overlap_threshold: float
    top_k: int
    metadata: Metadata
    m2f_version: str
    checkpoint: str
    checkpoint_sha256: str
    opset: int
    on_cpu: bool
    fp16: bool

    def __post_init__(self) -> None:
        if self.mode not in _TAO_OUTPUTS:
            raise ValueError(f"mode {self.mode!r} of a graph is none of {', '.join(_TAO_OUTPUTS)}")
        if self.outputs not in ("tao", *_OUTPUTS):
            raise ValueError(f"outputs {self.outputs!r} of a graph are none of tao, {', '.join(_OUTPUTS)}")
        if self.outputs == "panoptic_map" and self.mode != "panoptic":
            raise ValueError(f"export.outputs: panoptic_map answers mode panoptic, not {self.mode}")

    @property
    def output_names(self) -> tuple[str, ...]:
        """The graph's outputs, in order."""
        return _OUTPUTS.get(self.outputs) or _TAO_OUTPUTS[self.mode]

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be answered from the outputs; the graph's own mode first."""
        others = tuple(task for task in _TAO_OUTPUTS if task != self.mode)
        return (self.mode, *others) if self.outputs == "mask_logits" else (self.mode,)

    def to_json(self) -> str:
        """One JSON object."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({**values, "metadata": self.metadata.to_dict()}, indent=2)

    @classmethod
    def from_json(cls, text: str, source: str = "the description of a graph") -> ExportInfo:
        """The inverse of `to_json`; keys that a later version added are passed over.

        Args:
            text: JSON.
            source: where it comes from, for messages.

        Raises:
            ValueError: it is broken, or a key is missing.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            values = {field.name: data[field.name] for field in fields(cls)}
            values |= {key: tuple(values[key]) for key in ("pixel_mean", "pixel_std", "target_size")}
            return cls(**{**values, "metadata": Metadata.from_dict(values["metadata"])})
        except KeyError as error:
            raise ValueError(f"{source}: key {error} is missing; m2f's export task writes it") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source} is not what m2f's export task writes: {error}") from error


def info_beside(path: Path) -> ExportInfo:
    """What `<stem>.json` beside a model file says of it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is broken.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise FileNotFoundError(f"{path} needs {beside.name} beside it: copy it from where m2f exported the graph")
    return ExportInfo.from_json(beside.read_text(encoding="utf-8"), str(beside))
