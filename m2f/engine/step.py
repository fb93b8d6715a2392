"""One training step: micro-batches in, gradients out, clipped once, weights and rates moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from m2f import distributed
from m2f.solver import Schedule
from m2f.solver.clipping import Clipper
from m2f.structures.sample import ModelInput

AUTOCAST_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class StepResult(NamedTuple):
    """What a step says of itself, averaged over processes and micro-batches."""

    losses: dict[str, float]  # weighted parts
    total_loss: float
    gradient_norm: float  # before clipping


class TrainStep:
    """Forward, backward, clip, step.

    Args:
        model: in train mode, `model(inputs, num_masks=...)` gives weighted losses by name.
        optimizer: of the model's parameters.
        schedule: moves the optimiser's rates.
        clip: clips the gradients of the parameters given and returns their global norm before that.
        precision: fp32 | fp16 | bf16, of autocast; fp16 scales the loss.
        device: where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        clip: Clipper,
        precision: str,
        device: torch.device,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip = clip
        self.device = device
        self.dtype = AUTOCAST_DTYPES.get(precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def __call__(self, batches: Sequence[list[ModelInput]], after_backward: Callable[[], None]) -> StepResult:
        """Take one optimiser step over the micro-batches together.

        Args:
            batches: one batch per micro-step; their gradients are averaged.
            after_backward: called once, when all gradients are there.

        Raises:
            FloatingPointError: a loss or gradient is not finite; on every process at once, and no weight has moved.
        """
        num_masks = self._num_masks(batches)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            parts = [self._forward_backward(batch, num_masks, 1 / len(batches)) for batch in batches]
        except FloatingPointError as error:  # the matcher's, which sees it first
            raise FloatingPointError(f"{error}; {self._circumstances(batches)}") from error
        after_backward()
        self.scaler.unscale_(self.optimizer)
        gradient_norm = float(self.clip(p for p in self.model.parameters() if p.requires_grad))
        result = self._result(parts, gradient_norm)
        self._require_finite(result, batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return result

    def _num_masks(self, batches: Sequence[list[ModelInput]]) -> float:
        """What mask losses are divided by, so that several small batches give the gradient of one big one.

        Note: the classification loss is a mean weighted by class within each micro-batch, as in the paper's code; only
        where micro-batches differ in their number of targets does the mean of those means differ from the big batch's.
        """
        targets = sum(len(sample["instances"]) for batch in batches for sample in batch)
        mean = distributed.all_reduce_mean(torch.tensor(float(targets), device=self.device))
        return max(float(mean), 1.0) / len(batches)

    def _forward_backward(self, batch: list[ModelInput], num_masks: float, share: float) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            losses: dict[str, Tensor] = self.model(batch, num_masks=num_masks)
        parts = {name: loss * share for name, loss in losses.items()}
        self.scaler.scale(torch.stack(list(parts.values())).sum()).backward()
        return {name: part.detach() for name, part in parts.items()}

    def _result(self, parts: list[dict[str, Tensor]], gradient_norm: float) -> StepResult:
        """Sum over micro-batches, mean over processes; one copy to the host."""
        totals = torch.stack([torch.stack(list(part.values())) for part in parts]).sum(0)
        values = distributed.all_reduce_mean(totals).tolist()
        return StepResult(dict(zip(parts[0], values, strict=True)), sum(values), gradient_norm)

    def _require_finite(self, result: StepResult, batches: Sequence[list[ModelInput]]) -> None:
        # The losses are means over processes, so one bad process shows on all of them. A gradient that overflows in
        # fp16 is what the scaler is there for: it skips the step.
        gradients_matter = not self.scaler.is_enabled()
        if math.isfinite(result.total_loss) and (math.isfinite(result.gradient_norm) or not gradients_matter):
            return
        losses = ", ".join(f"{name} {value:.4g}" for name, value in result.losses.items())
        raise FloatingPointError(
            f"loss or gradient is not finite: total loss {result.total_loss}, gradient norm {result.gradient_norm}; "
            f"{losses}; {self._circumstances(batches)}"
        )

    def _circumstances(self, batches: Sequence[list[ModelInput]]) -> str:
        files = ", ".join(str(sample.get("file_name", "?")) for batch in batches for sample in batch)
        return f"learning rate {self.schedule.lr:.4g}; images: {files}"
