import torch

from m2f.layers.mlp import MLP


def test_relu_between_the_layers_but_not_after_the_last():
    mlp = MLP(4, 6, 3)
    first, last = mlp.layers
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(mlp(x), last(first(x).clamp(min=0)))
    assert mlp(x).min() < 0
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(6, 4), (3, 6)]
