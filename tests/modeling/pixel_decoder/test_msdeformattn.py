import pytest
import torch

from m2f.modeling.backbone.backbone import FeatureShape
from m2f.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

SHAPES = {f"res{i}": FeatureShape(4 * i, 2**i) for i in (2, 3, 4, 5)}


def features(height=64, width=96, batch=2):
    return {name: torch.randn(batch, s.channels, height // s.stride, width // s.stride) for name, s in SHAPES.items()}


def build(**changes):
    settings = {
        "shapes": SHAPES,
        "encoder_features": ["res3", "res4", "res5"],
        "dim": 16,
        "mask_dim": 12,
        "num_layers": 1,
        "num_heads": 4,
        "feedforward": 32,
    }
    return MSDeformAttnPixelDecoder(**{**settings, **changes})


def strides(out, height=64):
    return height // out.mask_features.shape[2], [height // level.shape[2] for level in out.multi_scale]


@pytest.mark.parametrize(
    ("encoder_features", "common_stride", "expected"),
    [
        (["res3", "res4", "res5"], 4, (4, [32, 16, 8])),
        (["res5", "res3", "res4"], 4, (4, [32, 16, 8])),
        (["res2", "res3", "res4", "res5"], 4, (4, [32, 16, 8])),
        (["res4", "res5"], 4, (4, [32, 16, 8])),
        (["res3", "res4", "res5"], 8, (8, [32, 16, 8])),
        (["res4", "res5"], 8, (8, [32, 16, 8])),
    ],
)
def test_levels_and_strides(encoder_features, common_stride, expected):
    decoder = build(encoder_features=encoder_features, common_stride=common_stride)
    out = decoder(features())
    assert strides(out) == expected
    assert out.mask_features.shape[1] == decoder.mask_dim == 12
    assert {level.shape[1] for level in out.multi_scale} == {decoder.multi_scale_channels} == {16}


@pytest.mark.parametrize("norm", ["GN", "LN", "BN", "SyncBN", ""])
def test_every_norm_trains(norm):
    decoder = build(norm=norm)
    out = decoder(features())
    (out.mask_features.square().mean() + sum(level.square().mean() for level in out.multi_scale)).backward()
    missing = [name for name, p in decoder.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_features": ["res3", "res6"]}, "res6"),
        ({"encoder_features": []}, "deformable_transformer_encoder_in_features"),
        ({"encoder_features": ["res2", "res5"], "common_stride": 8}, "finer than model.sem_seg_head.common_stride 8"),
        ({"common_stride": 6}, "common_stride is 6"),
        ({"encoder_features": ["res5"], "common_stride": 16}, "2 levels; the transformer decoder needs 3"),
        ({"norm": "IN"}, "sem_seg_head.norm is 'IN'"),
        ({"dim": 18, "num_heads": 2}, "convs_dim is 18"),
        ({"dim": 20, "num_heads": 8}, "8 heads"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_odd_sizes_and_missing_neighbours():
    out = build()({n: torch.randn(1, s.channels, -(-37 // s.stride), -(-50 // s.stride)) for n, s in SHAPES.items()})
    assert out.mask_features.shape == (1, 12, 10, 13)
    assert [tuple(level.shape[2:]) for level in out.multi_scale] == [(2, 2), (3, 4), (5, 7)]


def test_float32_under_autocast():
    decoder = build()
    x = features()
    expected = decoder(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = decoder(x)
        half = decoder({name: feature.bfloat16() for name, feature in x.items()})
    assert torch.equal(out.mask_features, expected.mask_features)
    assert half.mask_features.dtype == torch.float32


def test_checkpointed_gradients_are_the_same():
    decoder, x = build(num_layers=2), features()
    gradients = []
    for recompute in (False, True):
        decoder.transformer.activation_checkpoint = recompute
        decoder.zero_grad()
        decoder(x).mask_features.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in decoder.parameters() if parameter.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_acts_in_training_only():
    decoder, x = build(dropout=0.5), features()
    decoder.train()
    assert not torch.equal(decoder(x).mask_features, decoder(x).mask_features)
    decoder.eval()
    assert torch.equal(decoder(x).mask_features, decoder(x).mask_features)


def test_images_of_a_batch_do_not_meet():
    decoder, x = build().eval(), features()
    alone = decoder({name: feature[1:] for name, feature in x.items()})
    torch.testing.assert_close(decoder(x).mask_features[1:], alone.mask_features, rtol=1e-4, atol=1e-5)
