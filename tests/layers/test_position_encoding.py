import math

import pytest
import torch

from m2f.layers.position_encoding import sine_position_encoding

CPU = torch.device("cpu")


def test_each_channel_by_the_formula():
    height, width, num_feats = 3, 5, 6
    out = sine_position_encoding(height, width, num_feats, CPU)
    assert out.shape == (1, 12, height, width)
    for channel in range(2 * num_feats):
        of_row, c = channel < num_feats, channel % num_feats
        wave = math.sin if c % 2 == 0 else math.cos
        for i in range(height):
            for j in range(width):
                place = (i + 1) / height if of_row else (j + 1) / width
                expected = wave(2 * math.pi * place / 10000 ** (2 * (c // 2) / num_feats))
                assert out[0, channel, i, j].item() == pytest.approx(expected, abs=1e-5)


def test_type_and_odd_width():
    assert sine_position_encoding(2, 2, 4, CPU, torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="num_feats is 3"):
        sine_position_encoding(2, 2, 3, CPU)
