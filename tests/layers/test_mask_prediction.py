import pytest
import torch
import torch.nn.functional as F

from m2f.layers.mask_prediction import MaskPrediction, resize_features, stack_queries
from m2f.layers.points import sample_points

B, Q, C, H, W = 2, 5, 8, 12, 9


@pytest.fixture
def predictions():
    features = torch.randn(B, C, H, W)
    return [MaskPrediction(torch.randn(B, Q, 4), torch.randn(B, Q, C), features) for _ in range(3)]


def dense(prediction):
    return torch.einsum("bqc,bchw->bqhw", prediction.mask_embed, prediction.mask_features)


def test_selected_masks_are_rows_of_the_dense_ones(predictions):
    expected = dense(predictions[0])
    torch.testing.assert_close(predictions[0].all_mask_logits(), expected)
    torch.testing.assert_close(predictions[0].mask_logits(1), expected[1])
    torch.testing.assert_close(predictions[0].mask_logits(1, torch.tensor([4, 0, 4])), expected[1, [4, 0, 4]])
    keep = torch.tensor([True, False, False, True, False])
    torch.testing.assert_close(predictions[0].mask_logits(0, keep), expected[0, [0, 3]])
    assert predictions[0].mask_logits(0, torch.zeros(Q, dtype=torch.bool)).shape == (0, H, W)


def test_points_commute_with_the_product(predictions):
    points = torch.rand(B, 31, 2)
    expected = sample_points(dense(predictions[1]), points)
    torch.testing.assert_close(predictions[1].at_points(points), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 4), (3, 2), (1, 1), (12, 9), (20, 17)])
def test_resizing_commutes_with_the_product(predictions, size):
    level = resize_features(predictions[0].mask_features, [size])[0]
    logits = F.interpolate(dense(predictions[0]), size=size, mode="bilinear", align_corners=False).flatten(2)
    expected = logits.sigmoid() < 0.5
    expected[expected.all(-1)] = False
    blocked = predictions[0].blocked(level)
    certain = logits.abs() > 1e-5
    rows_agree = (expected.all(-1) == blocked.all(-1)).unsqueeze(-1)
    assert torch.equal(blocked & certain & rows_agree, expected & certain & rows_agree)
    assert rows_agree.all()


def test_a_query_with_an_empty_mask_may_look_everywhere():
    features = torch.ones(1, 1, 2, 2)
    prediction = MaskPrediction(torch.zeros(1, 2, 1), torch.tensor([[[-1.0], [1.0]]]), features)
    assert not prediction.blocked(features).any()
    half = torch.tensor([[[[1.0, -1.0]]]])
    assert prediction.blocked(half).tolist() == [[[True, False], [False, True]]]


def test_stacked_queries_are_those_of_the_layers_one_after_the_other(predictions):
    stacked, points = stack_queries(predictions), torch.rand(B, 31, 2)
    assert stacked.class_logits.shape == (B, 3 * Q, 4)
    expected = torch.cat([dense(prediction) for prediction in predictions], dim=1)
    torch.testing.assert_close(stacked.mask_logits(1, torch.tensor([7, 2, 14])), expected[1, [7, 2, 14]])
    torch.testing.assert_close(stacked.at_points(points), sample_points(expected, points), rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_the_dense_masks(predictions):
    prediction = predictions[0]
    leaves = [prediction.mask_embed.requires_grad_(), prediction.mask_features.requires_grad_()]
    points = torch.rand(B, 31, 2)
    expected = torch.autograd.grad(sample_points(dense(prediction), points).square().sum(), leaves)
    answer = torch.autograd.grad(prediction.at_points(points).square().sum(), leaves)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


def test_masks_are_float32_under_autocast(predictions):
    half = MaskPrediction(
        predictions[0].class_logits, predictions[0].mask_embed.bfloat16(), predictions[0].mask_features
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert half.mask_logits(0).dtype == torch.float32
        assert half.at_points(torch.rand(B, 3, 2)).dtype == torch.float32
        torch.testing.assert_close(predictions[0].all_mask_logits(), dense_outside_autocast(predictions[0]))


def dense_outside_autocast(prediction):
    with torch.autocast("cpu", enabled=False):
        return dense(prediction)


def test_attention_masks_carry_no_gradient(predictions):
    prediction = predictions[0]
    prediction.mask_embed.requires_grad_()
    prediction.mask_features.requires_grad_()
    level = resize_features(prediction.mask_features, [(4, 4)])[0]
    assert not level.requires_grad
    assert not prediction.blocked(level).requires_grad
