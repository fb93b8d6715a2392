import pytest
import torch
from torch import nn

from m2f.layers.attention import CrossAttentionBlock, FeedForwardBlock, MultiheadAttention, SelfAttentionBlock


def test_attention_equals_pytorchs_module_with_the_same_parameters():
    ours, theirs = MultiheadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    blocked = torch.rand(2, 5, 7) < 0.5
    blocked[..., 0] = False
    expected = theirs(query, key, value, attn_mask=blocked.repeat_interleave(4, 0), need_weights=False)[0]
    torch.testing.assert_close(ours(query, key, value, blocked), expected)
    torch.testing.assert_close(
        ours(query, key, value), theirs(query, key, value, need_weights=False)[0], rtol=1e-5, atol=1e-6
    )


def test_blocked_pixels_do_not_matter():
    block = CrossAttentionBlock(8, 2)
    queries, positions, pixels = torch.randn(1, 3, 8), torch.randn(3, 8), torch.randn(1, 6, 8)
    blocked = torch.zeros(1, 3, 6, dtype=torch.bool)
    blocked[..., 4:] = True
    before = block(queries, positions, pixels, pixels, blocked)
    pixels[:, 4:] += 10
    torch.testing.assert_close(block(queries, positions, pixels, pixels, blocked), before)
    assert not torch.allclose(block(queries, positions, pixels, pixels, None), before)


def test_self_attention_does_not_depend_on_the_order_of_the_queries():
    block = SelfAttentionBlock(8, 2)
    queries, positions, order = torch.randn(2, 5, 8), torch.randn(5, 8), torch.randperm(5)
    expected = block(queries, positions)[:, order]
    torch.testing.assert_close(block(queries[:, order], positions[order]), expected)


def test_positions_are_compared_but_not_read():
    """With one query attention is the identity on values, so positions cannot matter."""
    block = SelfAttentionBlock(8, 2)
    query = torch.randn(1, 1, 8)
    torch.testing.assert_close(block(query, torch.zeros(1, 8)), block(query, torch.randn(1, 8)))


@pytest.mark.parametrize("block", ["self", "cross", "feed-forward"])
def test_pre_norm_keeps_the_residual_and_post_norm_normalises_the_sum(block):
    x, positions, pixels = torch.randn(2, 3, 8) * 5 + 2, torch.randn(3, 8), torch.randn(2, 4, 8)

    def run(pre_norm):
        if block == "self":
            module = SelfAttentionBlock(8, 2, pre_norm)
            nn.init.zeros_(module.self_attn.out_proj.weight)
            return module(x, positions)
        if block == "cross":
            module = CrossAttentionBlock(8, 2, pre_norm)
            nn.init.zeros_(module.multihead_attn.out_proj.weight)
            return module(x, positions, pixels, pixels, None)
        module = FeedForwardBlock(8, 16, pre_norm)
        nn.init.zeros_(module.linear2.weight)
        nn.init.zeros_(module.linear2.bias)
        return module(x)

    torch.testing.assert_close(run(pre_norm=True), x)
    torch.testing.assert_close(run(pre_norm=False), nn.functional.layer_norm(x, (8,)))


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"10 channels .* 4 heads"):
        MultiheadAttention(10, 4)
