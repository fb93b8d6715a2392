import pytest
import torch
from torch import nn

from m2f.layers.conv import ConvNorm, build_norm


@pytest.mark.parametrize(
    ("name", "kind"), [("GN", nn.GroupNorm), ("LN", nn.LayerNorm), ("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm)]
)
def test_norms_by_name(name, kind):
    conv = ConvNorm(3, 8, 3, norm=name, activation=True)
    assert isinstance(conv.norm, kind)
    assert conv.bias is None
    out = conv(torch.randn(2, 3, 5, 4))
    assert out.shape == (2, 8, 5, 4)
    assert out.min() == 0


def test_without_a_norm_there_is_a_bias():
    conv = ConvNorm(3, 8, 1)
    assert conv.norm is None
    assert torch.equal(conv.bias, torch.zeros(8))
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_unknown_norm_names_key_value_and_choices():
    with pytest.raises(ValueError, match=r"sem_seg_head.norm is 'IN'; choose one of 'GN', 'LN', 'BN', 'SyncBN', ''"):
        build_norm("IN", 8)


def test_layer_norm_is_over_channels_of_each_pixel():
    x = torch.randn(2, 16, 3, 5) * 4 + 1
    out = build_norm("LN", 16)(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 3, 5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (48, 16), (20, 4), (7, 1)])
def test_groups_divide_any_width(channels, groups):
    assert build_norm("GN", channels).num_groups == groups
