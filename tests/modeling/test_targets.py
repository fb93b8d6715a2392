"""Binary maps read at points, against grid_sample on floats."""

from __future__ import annotations

import torch

from m2f.layers.points import sample_points
from m2f.modeling.targets import CornerMaps, MaskTarget, TargetBatch


def test_corner_maps_sample_as_float_maps_do() -> None:
    maps = torch.rand(5, 17, 23) > 0.5
    points = torch.rand(5, 200, 2)
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])  # the frame's very edges too
    expected = sample_points(maps.float().unsqueeze(1), points).squeeze(1)
    torch.testing.assert_close(CornerMaps(maps).at(torch.arange(5), points), expected, rtol=0, atol=2e-5)


def test_rows_may_repeat_and_points_may_be_shared() -> None:
    maps = torch.rand(3, 8, 8) > 0.5
    points = torch.rand(1, 50, 2)
    rows = torch.tensor([2, 0, 2])
    expected = sample_points(maps[rows].float().unsqueeze(1), points.expand(3, -1, -1)).squeeze(1)
    torch.testing.assert_close(CornerMaps(maps).at(rows, points), expected, rtol=0, atol=2e-5)


def test_outside_true_leaves_the_border_whole() -> None:
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.5], [0.999, 0.999]]])
    values = CornerMaps(torch.ones(1, 6, 6, dtype=torch.bool), outside=True).at(torch.tensor([0]), points)
    torch.testing.assert_close(values, torch.ones(1, 3))


def test_batch_rows_run_image_by_image() -> None:
    masks = torch.rand(5, 12, 10) > 0.5
    batch = TargetBatch(
        [MaskTarget(torch.tensor([4, 1]), masks[:2]), MaskTarget(torch.zeros(0, dtype=torch.int64), masks[:0]),
         MaskTarget(torch.tensor([3, 3, 0]), masks[2:])]
    )  # fmt: skip
    assert batch.counts == [2, 0, 3]
    assert batch.first_rows == [0, 2, 2]
    assert batch.padded_labels().tolist() == [[4, 1, 0], [0, 0, 0], [3, 3, 0]]
    points = torch.rand(3, 30, 2)
    padded = batch.padded_masks_at(points)
    torch.testing.assert_close(padded[2], sample_points(masks[2:].float().unsqueeze(0), points[2:])[0])
    assert padded[1].abs().sum() == padded[0, 2].abs().sum() == 0
    assert batch.weights_at(torch.arange(3), points).min() == 1


def test_void_has_no_weight_in_its_image_only() -> None:
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[:, 4:] = False
    masks = torch.ones(1, 8, 8, dtype=torch.bool)
    label = torch.zeros(1, dtype=torch.int64)
    batch = TargetBatch([MaskTarget(label, masks, valid), MaskTarget(label, masks)])
    points = torch.tensor([[[0.1, 0.5], [0.9, 0.5]]]).expand(2, -1, -1)
    assert batch.weights_at(torch.arange(2), points).tolist() == [[1, 0], [1, 1]]
