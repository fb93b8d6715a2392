import pytest
import torch

from m2f.layers.points import FixedPoints, RandomPoints, sample_points, uncertain_points

CPU = torch.device("cpu")


def bilinear_at(image, x, y):
    """One value by the definition: pixel centres at half-integers, zero outside."""
    height, width = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = 0.0
    for i in range(height):
        for j in range(width):
            total += float(image[i, j]) * max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(column - j))
    return total


def test_sampling_follows_the_definition_up_to_the_border():
    maps = torch.randn(2, 3, 4, 5)
    points = torch.rand(2, 7, 2)
    points[:, 0] = 0.0  # a corner: a quarter of the pixel
    points[:, 1] = 1.0
    out = sample_points(maps, points)
    for b in range(2):
        for c in range(3):
            expected = [bilinear_at(maps[b, c], *point) for point in points[b].tolist()]
            assert out[b, c].tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(out[:, :, 0], maps[:, :, 0, 0] / 4)


def test_pixel_centres_return_the_pixels():
    maps = torch.randn(1, 2, 3, 4)
    y, x = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(4) + 0.5) / 4, indexing="ij")
    points = torch.stack([x, y], dim=-1).view(1, -1, 2)
    torch.testing.assert_close(sample_points(maps, points), maps.flatten(2))


def test_sampling_is_float32_for_masks_and_half_precision():
    points = torch.rand(1, 5, 2)
    for dtype in (torch.bool, torch.uint8, torch.bfloat16):
        assert sample_points(torch.ones(1, 1, 4, 4).to(dtype), points).dtype == torch.float32
    assert sample_points(torch.ones(1, 1, 4, 4, dtype=torch.float64), points).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sample_points(torch.ones(1, 1, 4, 4), points).dtype == torch.float32


def test_no_masks_and_no_points():
    assert sample_points(torch.randn(0, 1, 4, 4), torch.rand(0, 5, 2)).shape == (0, 1, 5)
    assert RandomPoints().losses(lambda p: p[..., 0], 0, 8, CPU).shape == (0, 8, 2)


def test_uncertain_points_are_those_nearest_to_the_boundary():
    """The logit is the distance to x = 0.5: three quarters of the points must hug that line, the rest lie anywhere."""
    points = uncertain_points(lambda p: p[..., 0] - 0.5, 2, 400, 3.0, 0.75, CPU)
    assert points.shape == (2, 400, 2)
    assert points.dtype == torch.float32
    distance = (points[..., 0] - 0.5).abs()
    assert distance[:, :300].max() < 0.2  # 300 of 1200 candidates: 1/4 of the square, so within 1/8 but for chance
    assert distance[:, 300:].max() > 0.4
    assert 0.4 < points[..., 1].mean() < 0.6


@pytest.mark.parametrize("importance", [0.0, 1.0])
def test_importance_at_its_limits_still_gives_all_points(importance):
    points = uncertain_points(lambda p: p[..., 0], 3, 10, 1.0, importance, CPU)
    assert points.shape == (3, 10, 2)
    assert points.min() >= 0
    assert points.max() <= 1


def test_choosing_points_leaves_no_gradient():
    scale = torch.ones((), requires_grad=True)
    points = RandomPoints().losses(lambda p: scale * p[..., 0], 2, 8, CPU)
    assert not points.requires_grad


def test_random_points_follow_the_global_seed():
    source = RandomPoints()
    torch.manual_seed(3)
    first = source.matching(2, 5, CPU)
    torch.manual_seed(3)
    assert torch.equal(first, source.matching(2, 5, CPU))
    assert not torch.equal(first, source.matching(2, 5, CPU))


def test_fixed_points_answer_every_call_alike():
    matching, losses = torch.rand(4, 2), torch.rand(6, 2)
    source = FixedPoints(matching, losses)
    assert torch.equal(source.matching(3, 100, CPU)[2], matching)
    assert torch.equal(source.losses(lambda p: p[..., 0], 5, 100, CPU)[4], losses)


@pytest.mark.parametrize(("oversample", "importance"), [(0.5, 0.75), (3.0, 1.5), (3.0, -0.1)])
def test_impossible_ratios_are_refused(oversample, importance):
    with pytest.raises(ValueError, match="ratio"):
        RandomPoints(oversample, importance)
