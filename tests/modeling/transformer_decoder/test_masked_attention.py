import pytest
import torch
import torch.nn.functional as F
from torch import nn

from m2f.modeling.transformer_decoder.masked_attention import MultiScaleMaskedTransformerDecoder


def build(**changes):
    settings = {"hidden_dim": 16, "num_queries": 6, "num_heads": 4, "feedforward": 32, "num_layers": 4, "mask_dim": 12}
    decoder = MultiScaleMaskedTransformerDecoder(in_channels=16, num_classes=5, **{**settings, **changes})
    for (
        parameter
    ) in decoder.parameters():  # masks must hold something: the default initialisation gives near-empty ones
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.5)
    return decoder


def inputs(channels=16, batch=2):
    sizes = [(2, 3), (4, 6), (8, 12)]
    return [torch.randn(batch, channels, *size) for size in sizes], torch.randn(batch, 12, 16, 24)


def test_one_prediction_more_than_layers():
    decoder = build()
    predictions = decoder(*inputs())
    assert len(predictions) == 5
    assert predictions[-1].class_logits.shape == (2, 6, 6)
    assert predictions[-1].mask_embed.shape == (2, 6, 12)
    assert len({id(prediction.mask_features) for prediction in predictions}) == 1


def test_bare_queries_do_not_see_the_image():
    decoder = build(num_layers=0)
    (first,), (second,) = decoder(*inputs()), decoder(*inputs())
    assert torch.equal(first.class_logits, second.class_logits)
    assert torch.equal(first.mask_embed[0], first.mask_embed[1])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equals_the_reference_form_with_dense_masks(pre_norm):
    """Dense masks of all queries at every layer, resized and thresholded, and PyTorch's own attention module."""
    decoder = build(pre_norm=pre_norm).eval()
    multi_scale, mask_features = inputs()
    expected = dense_reference(decoder, multi_scale, mask_features, pre_norm)
    for prediction, (logits, masks) in zip(decoder(multi_scale, mask_features), expected, strict=True):
        torch.testing.assert_close(prediction.class_logits, logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prediction.all_mask_logits(), masks, rtol=1e-4, atol=1e-4)


def dense_reference(decoder, multi_scale, mask_features, pre_norm):
    keys, values = decoder._pixels(multi_scale)
    x = decoder.query_feat.weight.expand(2, -1, -1)
    answers = [dense_prediction(decoder, x, mask_features)]
    for i in range(len(decoder.transformer_ffn_layers)):
        blocked = dense_attention_mask(answers[-1][1], multi_scale[i % 3].shape[2:])
        x = reference_layer(decoder, i, x, keys[i % 3], values[i % 3], blocked, pre_norm)
        answers.append(dense_prediction(decoder, x, mask_features))
    return answers


def dense_prediction(decoder, x, mask_features):
    normed = decoder.decoder_norm(x)
    masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(normed), mask_features)
    return decoder.class_embed(normed), masks


def dense_attention_mask(masks, size):
    resized = F.interpolate(masks, size=size, mode="bilinear", align_corners=False).flatten(2)
    blocked = resized.sigmoid() < 0.5
    assert 0.1 < blocked.float().mean() < 0.9  # else nothing is tested
    blocked[blocked.all(-1)] = False
    return blocked.repeat_interleave(4, dim=0)


def reference_layer(decoder, i, x, key, value, blocked, pre_norm):
    positions = decoder.query_embed.weight
    cross, own = decoder.transformer_cross_attention_layers[i], decoder.transformer_self_attention_layers[i]
    ffn = decoder.transformer_ffn_layers[i]
    look, talk = torch_attention(cross.multihead_attn), torch_attention(own.self_attn)

    def residual(x, norm, function):
        return x + function(norm(x)) if pre_norm else norm(x + function(x))

    x = residual(x, cross.norm, lambda q: look(q + positions, key, value, attn_mask=blocked)[0])
    x = residual(x, own.norm, lambda q: talk(q + positions, q + positions, q)[0])
    return residual(x, ffn.norm, lambda q: ffn.linear2(ffn.linear1(q).relu()))


def torch_attention(parameters):
    module = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    module.load_state_dict(parameters.state_dict())
    return module


def test_permuted_queries_give_permuted_answers():
    decoder, order, x = build(), torch.randperm(6), inputs()
    expected = decoder(*x)[-1].class_logits[:, order]
    with torch.no_grad():
        for table in (decoder.query_feat, decoder.query_embed):
            table.weight.copy_(table.weight[order].clone())
    torch.testing.assert_close(decoder(*x)[-1].class_logits, expected, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns_and_mask_features_get_a_gradient():
    decoder = build()
    multi_scale, mask_features = inputs()
    mask_features.requires_grad_()
    predictions = decoder(multi_scale, mask_features)
    sum(p.class_logits.square().sum() + p.all_mask_logits().square().sum() for p in predictions).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []
    assert mask_features.grad.abs().sum() > 0


def test_other_input_width_is_projected():
    decoder = build()
    assert not any(name.startswith("input_proj") for name in decoder.state_dict())
    wider = MultiScaleMaskedTransformerDecoder(in_channels=20, num_classes=5, hidden_dim=16, num_heads=4, mask_dim=12)
    assert wider.state_dict()["input_proj.2.weight"].shape == (16, 20, 1, 1)
    assert len(wider(*inputs(channels=20))) == 10


def test_masks_stay_float32_under_autocast():
    decoder = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = decoder(*inputs())
        assert predictions[-1].mask_logits(0).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"hidden_dim": 18}, "hidden_dim is 18"), ({"num_layers": -1}, "dec_layers is 0"), ({"num_heads": 3}, "3 heads")],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
