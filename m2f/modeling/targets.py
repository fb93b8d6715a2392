"""What the losses compare with: true masks in the padded frame, read at points without ever becoming floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class MaskTarget(NamedTuple):
    """The truth of one image."""

    labels: Tensor  # (N,) int64 in 0 .. K-1
    masks: Tensor  # (N, H, W) bool or uint8, zero-padded to the batch's padded frame
    valid: Tensor | None = None  # (H, W) bool, False where the truth is void; None = valid everywhere


class CornerMaps:
    """Binary maps packed for bilinear sampling: four neighbouring pixels in one byte, so that a point costs one read.

    Args:
        maps: (N, H, W) bool or uint8 of 0 and 1.
        outside: the value beyond the frame.
    """

    def __init__(self, maps: Tensor, outside: bool = False) -> None:
        count, height, width = maps.shape
        framed = torch.full((count, height + 2, width + 2), int(outside), dtype=torch.uint8, device=maps.device)
        framed[:, 1:-1, 1:-1] = maps
        upper, lower = framed[:, :-1], framed[:, 1:]
        # bits: 1 upper left, 2 upper right, 4 lower left, 8 lower right
        codes = upper[..., :-1] + 2 * upper[..., 1:] + 4 * lower[..., :-1] + 8 * lower[..., 1:]
        self.size = (height, width)
        self._codes = codes  # (N, H+1, W+1)

    def at(self, rows: Tensor, points: Tensor) -> Tensor:
        """Values of chosen maps at points, as `sample_points` would give for float maps.

        Args:
            rows: (R,) which map.
            points: (R, P, 2) or (1, P, 2) when shared, (x, y) in [0, 1].

        Returns:
            (R, P) float32 in [0, 1].
        """
        height, width = self.size
        scale = torch.tensor([width, height], dtype=torch.float32, device=points.device)
        place = points.float() * scale - 0.5
        corner = place.floor()
        fx, fy = (place - corner).unbind(-1)
        column, line = (corner.long() + 1).unbind(-1)
        index = line * (width + 1) + column + rows.view(-1, 1) * ((height + 1) * (width + 1))
        code = self._codes.flatten()[index]
        upper = torch.lerp((code & 1).float(), ((code >> 1) & 1).float(), fx.expand_as(index))
        lower = torch.lerp(((code >> 2) & 1).float(), (code >> 3).float(), fx.expand_as(index))
        return torch.lerp(upper, lower, fy.expand_as(index))


class TargetBatch:
    """The targets of a batch as one set of T = N_0 + N_1 + ... rows, image by image.

    Args:
        targets: one per image, in one padded frame.

    Attributes:
        counts: N of each image.
        first_rows: each image's first row among the T.
        labels: (T,) int64.
    """

    def __init__(self, targets: Sequence[MaskTarget]) -> None:
        self.counts = [len(target.labels) for target in targets]
        self.first_rows = [sum(self.counts[:image]) for image in range(len(targets))]
        self.labels = torch.cat([target.labels for target in targets])
        self._masks = CornerMaps(torch.cat([target.masks for target in targets]))
        self._valid = self._pack_valid(targets)

    def _pack_valid(self, targets: Sequence[MaskTarget]) -> CornerMaps | None:
        if all(target.valid is None for target in targets):
            return None
        full = torch.ones(self._masks.size, dtype=torch.bool, device=self.labels.device)
        return CornerMaps(torch.stack([full if t.valid is None else t.valid for t in targets]), outside=True)

    def masks_at(self, rows: Tensor, points: Tensor) -> Tensor:
        """(R, P) values in [0, 1] of the masks `rows` (R,) at points (R or 1, P, 2)."""
        return self._masks.at(rows, points)

    def weights_at(self, images: Tensor, points: Tensor) -> Tensor:
        """(R, P) float32: 1 where the truth of `images` (R,) says something at points (R or 1, P, 2), 0 in void."""
        if self._valid is None:
            return torch.ones(len(images), points.shape[1], device=points.device)
        return (self._valid.at(images, points) > 0.5).float()

    def padded_masks_at(self, points: Tensor) -> Tensor:
        """(B, max N, P) values of each image's masks at its points (B, P, 2); rows beyond N are zero."""
        values = torch.zeros(len(self.counts), max(self.counts), points.shape[1], device=points.device)
        for image, count in enumerate(self.counts):
            rows = torch.arange(count, device=points.device) + self.first_rows[image]
            values[image, :count] = self.masks_at(rows, points[image : image + 1])
        return values

    def padded_labels(self) -> Tensor:
        """(B, max N) int64; rows beyond N are label 0."""
        return torch.nn.utils.rnn.pad_sequence(list(torch.split(self.labels, self.counts)), batch_first=True)
