"""Images of different sizes as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """Images padded at the right and at the bottom to one frame.

    Attributes:
        tensor: (B, C, H, W), zero outside the images.
        sizes: (height, width) of each image inside the frame.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]

    @classmethod
    def pad(cls, images: Sequence[Tensor], divisibility: int = 1) -> ImageBatch:
        """Put (C, h, w) images of one dtype and device into the smallest frame that holds them all.

        Args:
            images: at least one.
            divisibility: height and width of the frame are multiples of this many pixels.

        Raises:
            ValueError: there is no image, or `divisibility` is below 1.
        """
        if not images:
            raise ValueError("a batch needs at least one image")
        if divisibility < 1:
            raise ValueError(f"divisibility is {divisibility}; it must be at least 1")
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height, width = (-(-max(side) // divisibility) * divisibility for side in zip(*sizes, strict=True))
        tensor = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for slot, image, (h, w) in zip(tensor, images, sizes, strict=True):
            slot[:, :h, :w] = image
        return cls(tensor, sizes)

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of the frame."""
        return int(self.tensor.shape[-2]), int(self.tensor.shape[-1])


def pad_to(maps: Tensor, size: tuple[int, int], value: bool = False) -> Tensor:
    """Extend (..., h, w) bool maps to (..., height, width) at the right and at the bottom.

    Raises:
        ValueError: the maps are larger than `size`.
    """
    if maps.shape[-2] > size[0] or maps.shape[-1] > size[1]:
        raise ValueError(f"maps of {tuple(maps.shape[-2:])} pixels do not fit into a frame of {size}")
    padded = torch.full((*maps.shape[:-2], *size), value, dtype=torch.bool, device=maps.device)
    padded[..., : maps.shape[-2], : maps.shape[-1]] = maps
    return padded
