"""Points on masks: where masks are compared in training, and how a map is read there.

A point is (x, y) in [0, 1] of the padded frame, so that it means the same on maps of any resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LogitsAt = Callable[[Tensor], Tensor]
"""Mask logits (N, P) of N masks at points (N, P, 2)."""


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps bilinearly at points, in float32 at least.

    Args:
        maps: (B, C, H, W) of any dtype. Pixel (row i, column j) lies at ((j + 0.5) / W, (i + 0.5) / H); zero outside.
        points: (B, P, 2), (x, y) in [0, 1].

    Returns:
        (B, C, P).
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    grid = (2 * points.to(maps.dtype) - 1).unsqueeze(1)  # (B, 1, P, 2): the long axis last is the one CPUs vectorise
    with torch.autocast(maps.device.type, enabled=False):
        return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(2)


def uncertain_points(
    logits_at: LogitsAt,
    num_masks: int,
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
    device: torch.device,
) -> Tensor:
    """Draw points of which most lie where the prediction hesitates, the rest anywhere.

    Args:
        logits_at: gives the masks' logits (N, P') at candidate points (N, P', 2); called once, without gradients.
        num_masks: N.
        num_points: P.
        oversample_ratio: candidates per point wanted, at least 1.
        importance_ratio: share in [0, 1] of the P points that are the most uncertain candidates.
        device: where the points are drawn and returned.

    Returns:
        (N, P, 2) float32, (x, y) in [0, 1].

    Source: PointRend, arXiv:1912.08193, section 3.1; uncertainty is nearness of the logit to zero.
    """
    num_important = int(importance_ratio * num_points)
    rest = torch.rand(num_masks, num_points - num_important, 2, device=device)
    if num_important == 0 or num_masks == 0:
        return torch.cat([rest, torch.rand(num_masks, num_important, 2, device=device)], dim=1)
    candidates = torch.rand(num_masks, max(int(oversample_ratio * num_points), num_important), 2, device=device)
    with torch.no_grad():
        nearest = logits_at(candidates).abs().topk(num_important, dim=1, largest=False, sorted=False).indices
    important = candidates.gather(1, nearest.unsqueeze(-1).expand(-1, -1, 2))
    return torch.cat([important, rest], dim=1)


class PointSource(Protocol):
    """Says at which points masks are compared; a test may put fixed points in the place of random ones."""

    def matching(self, batch: int, num: int, device: torch.device) -> Tensor:
        """Points (B, P, 2) float32 shared by all queries and targets of an image."""
        ...

    def losses(self, logits_at: LogitsAt, masks: int, num: int, device: torch.device) -> Tensor:
        """Points (N, P, 2) float32, its own for each of N matched masks; see `uncertain_points`."""
        ...


class RandomPoints:
    """The paper's points: uniform for matching, mostly uncertain ones for the losses; from torch's global generator.

    Args:
        oversample_ratio: see `uncertain_points`.
        importance_ratio: see `uncertain_points`.

    Raises:
        ValueError: a ratio is out of range.
    """

    def __init__(self, oversample_ratio: float = 3.0, importance_ratio: float = 0.75) -> None:
        if oversample_ratio < 1:
            raise ValueError(f"oversample_ratio is {oversample_ratio}; it must be at least 1")
        if not 0 <= importance_ratio <= 1:
            raise ValueError(f"importance_sample_ratio is {importance_ratio}; it must lie in [0, 1]")
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio

    def matching(self, batch: int, num: int, device: torch.device) -> Tensor:
        """Uniform points (B, P, 2)."""
        return torch.rand(batch, num, 2, device=device)

    def losses(self, logits_at: LogitsAt, masks: int, num: int, device: torch.device) -> Tensor:
        """Points (N, P, 2), most of them where `logits_at` is near zero."""
        return uncertain_points(logits_at, masks, num, self.oversample_ratio, self.importance_ratio, device)


class FixedPoints:
    """The same points at every call: losses that repeat exactly, and parity with stored answers.

    Args:
        matching: (P, 2).
        losses: (P', 2); default: those of the matching.
    """

    def __init__(self, matching: Tensor, losses: Tensor | None = None) -> None:
        self._matching = matching.float()
        self._losses = self._matching if losses is None else losses.float()

    def matching(self, batch: int, num: int, device: torch.device) -> Tensor:  # noqa: ARG002 - the protocol's arguments
        """The fixed points (B, P, 2), whatever number is asked for."""
        return self._matching.to(device).expand(batch, -1, -1)

    def losses(self, logits_at: LogitsAt, masks: int, num: int, device: torch.device) -> Tensor:  # noqa: ARG002
        """The fixed points (N, P', 2), whatever number is asked for."""
        return self._losses.to(device).expand(masks, -1, -1)
