"""Padding and back."""

from __future__ import annotations

import pytest
import torch

from m2f.structures.image_batch import ImageBatch, pad_to


def test_padding_is_zero_at_right_and_bottom_and_comes_off_again() -> None:
    images = [torch.rand(3, 33, 20) + 1, torch.rand(3, 10, 65) + 1]
    batch = ImageBatch.pad(images, divisibility=32)
    assert batch.tensor.shape == (2, 3, 64, 96)
    assert batch.padded_size == (64, 96)
    assert batch.sizes == [(33, 20), (10, 65)]
    for image, slot, (height, width) in zip(images, batch.tensor, batch.sizes, strict=True):
        torch.testing.assert_close(slot[:, :height, :width], image, rtol=0, atol=0)
        assert int((slot != 0).sum()) == image.numel()


def test_an_exact_multiple_is_not_padded() -> None:
    assert ImageBatch.pad([torch.zeros(3, 64, 32)], 32).padded_size == (64, 32)


@pytest.mark.parametrize(("images", "divisibility"), [([], 32), ([torch.zeros(3, 4, 4)], 0)])
def test_impossible_batches_are_refused(images: list[torch.Tensor], divisibility: int) -> None:
    with pytest.raises(ValueError, match=r"at least"):
        ImageBatch.pad(images, divisibility)


def test_maps_are_extended_with_a_value() -> None:
    maps = torch.ones(2, 3, 4, dtype=torch.bool)
    assert pad_to(maps, (5, 6)).sum() == 2 * 3 * 4
    assert pad_to(maps[0], (5, 6), value=True).all()
    assert pad_to(maps[:0], (5, 6)).shape == (0, 5, 6)
    with pytest.raises(ValueError, match="do not fit"):
        pad_to(maps, (3, 3))
