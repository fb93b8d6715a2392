"""The model as a graph has it: images in, the answers of one mode out, as tensors of which only the batch may vary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2f.export.panoptic_graph import Candidates, merge
from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling.postprocess import DecisionRule
from m2f.structures.metadata import Metadata
from m2f.structures.sample import TASKS

FRAME = ("height", "width")


def build_graph(model: Any, mode: str, outputs: str, normalize_in_graph: bool = False) -> MaskGraph:
    """What is exported: a callable on (B, 3, H, W) images that gives the tensors of its head's `outputs`.

    Args:
        model: a meta-architecture with `layers`, `metadata`, `rule`, `pixel_mean` and `pixel_std`. It becomes a part of
            the graph, neither copied nor changed; in eval mode it gives the answers that are wanted.
        mode: semantic, panoptic or instance.
        outputs: "tao", "mask_logits" or "panoptic_map".
        normalize_in_graph: take uint8 RGB instead of normalised float32.

    Raises:
        ValueError: mode or outputs are unknown, or they do not go together.
    """
    head = head_of(mode, outputs)(model.metadata, model.rule).to(model.pixel_mean.device)
    return MaskGraph(model, head, normalize_in_graph)


class MaskGraph(nn.Module):
    """Normalise where that is asked for, predict, and answer in the frame of the input.

    Args:
        model: see `build_graph`.
        head: from the last layer's prediction and the frame's (height, width) to the outputs.
        normalize_in_graph: the input is uint8.
    """

    def __init__(self, model: Any, head: Head, normalize_in_graph: bool) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.normalize_in_graph = normalize_in_graph
        self.divisibility: int = model.size_divisibility

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Answer.

        Args:
            inputs: (B, 3, H, W): float32 normalised RGB, or uint8 RGB; see `build_graph`.
        """
        if self.normalize_in_graph:
            inputs = (inputs.float() / 255 - self.model.pixel_mean) / self.model.pixel_std
        outputs: tuple[Tensor, ...] = self.head(self.model.layers(inputs)[-1], inputs.shape[2:])
        return outputs


class Head(nn.Module):
    """The last layer's prediction to the tensors of one mode.

    Args:
        metadata: what the labels mean.
        rule: thresholds, constants of the graph.
    """

    outputs: ClassVar[Mapping[str, tuple[str, ...]]]  # by name, what each axis counts
    used: Tensor

    def __init__(self, metadata: Metadata, rule: DecisionRule) -> None:
        super().__init__()
        self.rule, self.num_classes = rule, metadata.num_classes
        used = [not category.is_gap for category in metadata.categories]
        self.has_gaps = not all(used)
        self.register_buffer("used", torch.tensor([*used, True]).float(), persistent=False)  # (K+1,)

    def class_probabilities(self, prediction: MaskPrediction) -> Tensor:
        """(B, Q, K+1); zero at labels that no category uses."""
        probabilities = prediction.class_logits.softmax(dim=-1)
        return probabilities * self.used if self.has_gaps else probabilities


class MaskLogitsHead(Head):
    """What the answers of every task follow from, at any size: (B, Q, H/4, W/4) and (B, Q, K+1) logits."""

    outputs: ClassVar = {
        "mask_logits": ("batch", "queries", "mask_height", "mask_width"),
        "class_logits": ("batch", "queries", "classes"),
    }

    def forward(self, prediction: MaskPrediction, size: torch.Size) -> tuple[Tensor, ...]:  # noqa: ARG002 - the heads' signature
        """See the class."""
        return prediction.all_mask_logits(), prediction.class_logits


class SemanticHead(Head):
    """TAO's semantic output: (B, K, H, W) scores, -1 at labels that no category uses."""

    outputs: ClassVar = {"pred_masks": ("batch", "classes", *FRAME)}

    def forward(self, prediction: MaskPrediction, size: torch.Size) -> tuple[Tensor, ...]:
        """See the class."""
        by_class = self.class_probabilities(prediction)[..., :-1].transpose(1, 2)  # (B, K, Q)
        masks = upsample(prediction.all_mask_logits(), size).sigmoid()
        scores = (by_class @ masks.flatten(2)).view(*by_class.shape[:2], *size)
        return (scores + (self.used[:-1, None, None] - 1) if self.has_gaps else scores,)


class InstanceHead(Head):
    """TAO's instance outputs: masks 0 or 1 (B, N, H, W), scores (B, N) falling, labels (B, N), of any class."""

    outputs: ClassVar = {
        "pred_masks": ("batch", "objects", *FRAME),
        "pred_scores": ("batch", "objects"),
        "pred_classes": ("batch", "objects"),
    }

    def forward(self, prediction: MaskPrediction, size: torch.Size) -> tuple[Tensor, ...]:
        """See the class."""
        probabilities = self.class_probabilities(prediction)[..., :-1].flatten(1)  # (B, Q K)
        num = min(self.rule.top_k, int(probabilities.shape[1]))
        scores, best = probabilities.topk(num)
        queries = torch.div(best, self.num_classes, rounding_mode="trunc")
        chosen = MaskPrediction(scores, take(prediction.mask_embed, queries), prediction.mask_features)
        logits = upsample(chosen.all_mask_logits(), size)
        inside = logits > 0
        quality = (logits.sigmoid() * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)
        scores, order = (scores * quality).topk(num)
        return take(inside, order).float(), scores, best.gather(1, order) % self.num_classes


class PanopticHead(Head):
    """TAO's panoptic outputs, for the caller to merge: (B, Q, H, W) twice, (B, Q) twice; see `candidates`."""

    outputs: ClassVar = {
        "prob_masks": ("batch", "queries", *FRAME),
        "pred_masks": ("batch", "queries", *FRAME),
        "pred_scores": ("batch", "queries"),
        "pred_classes": ("batch", "queries"),
    }

    def forward(self, prediction: MaskPrediction, size: torch.Size) -> tuple[Tensor, ...]:
        """See the class."""
        masks, scores, labels = self.candidates(prediction, size)
        return masks * scores[..., None, None], masks, scores, labels

    def candidates(self, prediction: MaskPrediction, size: torch.Size) -> Candidates:
        """Every query's mask probability, and its best class; score 0 and label K where that is no-object."""
        scores, labels = self.class_probabilities(prediction).max(dim=-1)
        masks = upsample(prediction.all_mask_logits(), size).sigmoid()
        return Candidates(masks, scores * (labels != self.num_classes), labels)


class PanopticMapHead(PanopticHead):
    """Merged segments: ids (B, H, W) of each pixel, and ids, labels and scores (B, Q) of the segments; see `merge`."""

    outputs: ClassVar = {
        "panoptic_ids": ("batch", *FRAME),
        "segment_ids": ("batch", "queries"),
        "segment_classes": ("batch", "queries"),
        "segment_scores": ("batch", "queries"),
    }
    is_thing: Tensor

    def __init__(self, metadata: Metadata, rule: DecisionRule) -> None:
        super().__init__(metadata, rule)
        is_thing = [category.is_thing for category in metadata.categories]
        self.register_buffer("is_thing", torch.tensor([*is_thing, True]), persistent=False)  # (K+1,)

    def forward(self, prediction: MaskPrediction, size: torch.Size) -> tuple[Tensor, ...]:
        """See the class."""
        return merge(self.candidates(prediction, size), self.is_thing, self.rule)


_TAO: dict[str, type[Head]] = {"semantic": SemanticHead, "panoptic": PanopticHead, "instance": InstanceHead}


def head_of(mode: str, outputs: str) -> type[Head]:
    """What the graph of a mode ends in.

    Args:
        mode: semantic, panoptic or instance.
        outputs: "tao" for TAO's outputs of the mode, "mask_logits" for what all three modes follow from, or
            "panoptic_map" for merged segments.

    Raises:
        ValueError: one of them is unknown, or they do not go together.
    """
    if mode not in TASKS:
        raise ValueError(f"model.mode is {mode!r}; it is one of {', '.join(TASKS)}")
    if outputs == "panoptic_map" and mode != "panoptic":
        raise ValueError(f"export.outputs is panoptic_map, but model.mode is {mode}; set model.mode to panoptic")
    heads = {"tao": _TAO[mode], "mask_logits": MaskLogitsHead, "panoptic_map": PanopticMapHead}
    if outputs not in heads:
        raise ValueError(f"export.outputs is {outputs!r}; it is one of {', '.join(heads)}")
    return heads[outputs]


def upsample(mask_logits: Tensor, size: torch.Size) -> Tensor:
    """(B, N, h, w) bilinearly to (B, N, height, width)."""
    return F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Of each image's rows (B, N, ...) those of its (B, M) index: (B, M, ...).

    One gather of whole rows for the batch; `torch.gather` would need an index for every number of a row.
    """
    first = torch.arange(rows.shape[0], device=rows.device).unsqueeze(1) * rows.shape[1]
    return rows.flatten(0, 1).index_select(0, (first + index).flatten()).view(*index.shape, *rows.shape[2:])
