"""The meta-architecture: normalise, pad, predict, then losses or answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from m2f import distributed
from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling.backbone.backbone import Backbone
from m2f.modeling.build import (
    BACKBONE_REGISTRY,
    CRITERION_REGISTRY,
    META_ARCH_REGISTRY,
    PIXEL_DECODER_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
)
from m2f.modeling.criterion import MaskTarget
from m2f.modeling.postprocess import DecisionRule, Frame, answer
from m2f.structures.image_batch import ImageBatch, pad_to
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, ModelOutput


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification for all three tasks, arXiv:2112.01527.

    Args:
        backbone: images to feature maps.
        pixel_decoder: feature maps to mask features and three levels for attention.
        transformer_decoder: those to one `MaskPrediction` per layer.
        criterion: predictions and targets to losses.
        metadata: what the labels mean.
        pixel_mean: (3,) RGB, of 1.
        pixel_std: (3,) RGB, of 1.
        size_divisibility: images are padded to multiples of this and of the backbone's own.
        tasks: answers given in eval mode; may be changed at any time.
        rule: thresholds of the answers.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        pixel_decoder: nn.Module,
        transformer_decoder: nn.Module,
        criterion: nn.Module,
        metadata: Metadata,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
        tasks: Sequence[str] = ("panoptic",),
        rule: DecisionRule | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = transformer_decoder
        self.criterion = criterion
        self.metadata = metadata
        self.size_divisibility = math.lcm(max(1, size_divisibility), max(1, backbone.size_divisibility))
        self.tasks = tuple(tasks)
        self.rule = rule or DecisionRule()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: Any, metadata: Metadata) -> dict[str, Any]:
        """Constructor arguments from a cfg: every part by its registered name."""
        model = cfg.model
        num_classes = model.sem_seg_head.num_classes
        backbone = BACKBONE_REGISTRY.build(model.backbone.type, cfg)
        pixel_decoder = PIXEL_DECODER_REGISTRY.build(model.sem_seg_head.pixel_decoder, cfg, backbone.feature_shapes())
        return {
            "backbone": backbone,
            "pixel_decoder": pixel_decoder,
            "transformer_decoder": TRANSFORMER_DECODER_REGISTRY.build(
                model.mask_former.transformer_decoder, cfg, pixel_decoder.multi_scale_channels, num_classes
            ),
            "criterion": CRITERION_REGISTRY.build(model.mask_former.criterion, cfg, num_classes),
            "metadata": metadata,
            "pixel_mean": cfg.dataset.pixel_mean,
            "pixel_std": cfg.dataset.pixel_std,
            "size_divisibility": model.mask_former.size_divisibility,
            "tasks": (model.mode,),
            "rule": DecisionRule(model.object_mask_threshold, model.overlap_threshold, model.test_topk_per_image),
        }

    @property
    def device(self) -> torch.device:
        """Where the model lies and where its answers are."""
        return self.pixel_mean.device

    def forward(
        self, inputs: Sequence[ModelInput], num_masks: float | None = None
    ) -> dict[str, Tensor] | list[ModelOutput]:
        """Losses in train mode, answers in eval mode; see `losses` and `predict`."""
        return self.losses(inputs, num_masks) if self.training else self.predict(inputs)

    def losses(self, inputs: Sequence[ModelInput], num_masks: float | None = None) -> dict[str, Tensor]:
        """Weighted losses by name, in either mode.

        Args:
            inputs: images with their `instances`, and `valid` where there is void.
            num_masks: what mask losses are divided by; None: the number of targets, averaged over ranks, at least 1.

        Raises:
            ValueError: an input has no `instances`.
        """
        batch = self.preprocess(inputs)
        targets = self.targets(inputs, batch.padded_size)
        if num_masks is None:
            count = torch.tensor(float(sum(len(target.labels) for target in targets)), device=self.device)
            num_masks = max(1.0, float(distributed.all_reduce_mean(count)))
        losses: dict[str, Tensor] = self.criterion(self.layers(batch.tensor), targets, num_masks)
        return losses

    @torch.no_grad()
    def predict(self, inputs: Sequence[ModelInput]) -> list[ModelOutput]:
        """The answers of `tasks`, each at its input's (height, width), or at the image's where those are missing."""
        batch = self.preprocess(inputs)
        final = self.layers(batch.tensor)[-1]
        outputs = []
        for i, (sample, size) in enumerate(zip(inputs, batch.sizes, strict=True)):
            wanted = (sample.get("height", size[0]), sample.get("width", size[1]))
            frame = Frame(batch.padded_size, size, wanted)
            outputs.append(answer(final, i, frame, self.metadata, self.rule, self.tasks))
        return outputs

    def layers(self, images: Tensor) -> list[MaskPrediction]:
        """Predictions of the bare queries and of every layer, for normalised and padded images (B, 3, H, W)."""
        pixels = self.pixel_decoder(self.backbone(images))
        predictions: list[MaskPrediction] = self.transformer_decoder(pixels.multi_scale, pixels.mask_features)
        return predictions

    def preprocess(self, inputs: Sequence[ModelInput]) -> ImageBatch:
        """Images on the model's device, normalised, then padded with zeros."""
        images = [sample["image"].to(self.device, non_blocking=True) for sample in inputs]
        normalised = [(image.float() / 255 - self.pixel_mean) / self.pixel_std for image in images]
        return ImageBatch.pad(normalised, self.size_divisibility)

    def targets(self, inputs: Sequence[ModelInput], padded_size: tuple[int, int]) -> list[MaskTarget]:
        """The truth of each input in the padded frame, on the model's device.

        Note: the padding is background and not void, with or without `valid`, as in the reference implementations.
        """
        return [self._target(sample, padded_size) for sample in inputs]

    def _target(self, sample: ModelInput, padded_size: tuple[int, int]) -> MaskTarget:
        if "instances" not in sample:
            raise ValueError(f"losses need 'instances' in every input; {sample.get('file_name', 'an input')} has none")
        labels, masks = sample["instances"].labels, sample["instances"].masks
        if not isinstance(masks, Tensor):
            raise TypeError("losses need masks as a (N, H, W) tensor, not as RLE")
        valid = sample.get("valid")
        return MaskTarget(
            labels.to(self.device),
            pad_to(masks.to(self.device, non_blocking=True), padded_size),
            None if valid is None else pad_to(valid.to(self.device, non_blocking=True), padded_size, value=True),
        )
