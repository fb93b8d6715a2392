import pytest
import torch

from m2f.modeling.backbone.backbone import FeatureShape
from m2f.modeling.pixel_decoder.fpn import FPNPixelDecoder

SHAPES = {f"res{i}": FeatureShape(4 * i, 2**i) for i in (2, 3, 4, 5)}


def features(height, width):
    return {n: torch.randn(2, s.channels, -(-height // s.stride), -(-width // s.stride)) for n, s in SHAPES.items()}


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 50)])
def test_levels_and_gradients(height, width):
    decoder = FPNPixelDecoder(shapes=SHAPES, dim=16, mask_dim=12)
    x = features(height, width)
    out = decoder(x)
    assert out.mask_features.shape == (2, 12, *x["res2"].shape[2:])
    assert [level.shape[2:] for level in out.multi_scale] == [x[n].shape[2:] for n in ("res5", "res4", "res3")]
    assert {level.shape[1] for level in out.multi_scale} == {decoder.multi_scale_channels}
    out.mask_features.sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


def test_coarse_features_reach_the_mask_features():
    decoder = FPNPixelDecoder(shapes=SHAPES, dim=16, mask_dim=12)
    x = features(64, 64)
    before = decoder(x).mask_features
    x["res5"] = x["res5"] + torch.randn_like(x["res5"])
    assert not torch.allclose(decoder(x).mask_features, before)


def test_common_stride_and_too_few_features():
    out = FPNPixelDecoder(shapes=SHAPES, dim=16, mask_dim=12, common_stride=8)(features(64, 64))
    assert out.mask_features.shape[2:] == (8, 8)
    with pytest.raises(ValueError, match="needs 3 features"):
        FPNPixelDecoder(shapes={"res4": SHAPES["res4"], "res5": SHAPES["res5"]}, dim=16, mask_dim=12, common_stride=16)
    with pytest.raises(ValueError, match="common_stride is 5"):
        FPNPixelDecoder(shapes=SHAPES, dim=16, mask_dim=12, common_stride=5)
