import math

import pytest
import torch

from m2f.layers.deformable_attention import deformable_attention, portable, reference
from m2f.layers.deformable_attention.module import MultiScaleDeformableAttention

SHAPES = [(2, 3), (5, 4)]
IMPLEMENTATIONS = [reference.deformable_attention, portable.deformable_attention, deformable_attention]


def inputs(B=2, Q=3, M=2, D=4, P=3, dtype=torch.float32):
    """Locations reach outside of the maps on every side."""
    S = sum(h * w for h, w in SHAPES)
    value = torch.randn(B, S, M, D, dtype=dtype)
    locations = torch.rand(B, Q, M, len(SHAPES), P, 2, dtype=dtype) * 1.6 - 0.3
    return value, locations, torch.rand(B, Q, M, len(SHAPES), P, dtype=dtype)


def one_by_one(value, locations, weights):
    """The equation, one corner of one point at a time."""
    B, Q, M, L, P, _ = locations.shape
    out = torch.zeros(B, Q, M, value.shape[-1], dtype=value.dtype)
    starts = [0, SHAPES[0][0] * SHAPES[0][1]]
    for index in torch.cartesian_prod(*(torch.arange(n) for n in (B, Q, M, L, P))).tolist():
        b, q, m, level, p = index
        height, width = SHAPES[level]
        x = locations[b, q, m, level, p, 0].item() * width - 0.5
        y = locations[b, q, m, level, p, 1].item() * height - 0.5
        for i in (math.floor(y), math.floor(y) + 1):
            for j in (math.floor(x), math.floor(x) + 1):
                if 0 <= i < height and 0 <= j < width:
                    share = (1 - abs(y - i)) * (1 - abs(x - j)) * weights[b, q, m, level, p]
                    out[b, q, m] += share * value[b, starts[level] + i * width + j, m]
    return out.flatten(2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_follows_the_equation(implementation):
    value, locations, weights = inputs(dtype=torch.float64)
    torch.testing.assert_close(implementation(value, SHAPES, locations, weights), one_by_one(value, locations, weights))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_follow_finite_differences(implementation):
    leaves = [tensor.requires_grad_() for tensor in inputs(B=1, Q=2, M=2, D=2, P=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda v, at, w: implementation(v, SHAPES, at, w), leaves)


def test_the_implementations_agree_in_float32():
    answers = []
    for implementation in IMPLEMENTATIONS[:2]:
        torch.manual_seed(1)
        leaves = [tensor.requires_grad_() for tensor in inputs(Q=50, M=4, D=8)]
        out = implementation(leaves[0], SHAPES, *leaves[1:])
        answers.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)


def test_levels_that_do_not_add_up_are_refused():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="26 pixels in all, but value has 25"):
        deformable_attention(value[:, 1:], SHAPES, locations, weights)


def test_module_starts_with_equal_weights_on_a_ring_of_points():
    module = MultiScaleDeformableAttention(8, num_heads=4, num_levels=2, num_points=2)
    offsets = module.sampling_offsets.bias.detach().view(4, 2, 2, 2)  # (M, L, P, xy)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(offsets[:, 0, 0], expected)
    torch.testing.assert_close(offsets[:, 1, 1], 2 * expected)
    query, value = torch.randn(1, 3, 8), torch.randn(1, 26, 8)
    assert module(query, torch.rand(3, 2), value, SHAPES).shape == (1, 3, 8)


def test_offsets_are_in_pixels_of_their_level():
    """One head, weights zero but for the bias: the query must read exactly one pixel to the right."""
    module = MultiScaleDeformableAttention(4, num_heads=1, num_levels=1, num_points=1)
    with torch.no_grad():
        module.value_proj.weight.copy_(torch.eye(4))
        module.output_proj.weight.copy_(torch.eye(4))
    value = torch.randn(1, 12, 4)  # 3 rows of 4
    centre_of_first = torch.tensor([[0.5 / 4, 0.5 / 3]])
    torch.testing.assert_close(module(torch.randn(1, 1, 4), centre_of_first, value, [(3, 4)]), value[:, 1:2])


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"10 channels .* 4 heads"):
        MultiScaleDeformableAttention(10, num_heads=4, num_levels=1, num_points=1)
