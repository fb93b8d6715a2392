"""Both decoders against the stored stage outputs of the official implementation."""

import json

import numpy as np
import pytest
import torch

from m2f.modeling.backbone.backbone import FeatureShape
from m2f.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder
from m2f.modeling.transformer_decoder.masked_attention import MultiScaleMaskedTransformerDecoder

pytestmark = pytest.mark.realdata
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


@pytest.fixture(params=["swin_small", "resnet_small"])
def stored(request, oracles):
    with np.load(oracles / f"{request.param}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def weights(stored, prefix):
    prefix = f"weights/sem_seg_head.{prefix}."
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in stored.items() if k.startswith(prefix)}


def relative_error(answer, expected):
    expected = torch.from_numpy(expected)
    return ((answer - expected).abs().max() / expected.abs().max()).item()


def pixel_decoder(stored, config):
    decoder = MSDeformAttnPixelDecoder(
        shapes={n: FeatureShape(stored[f"backbone/{n}"].shape[1], s) for n, s in STRIDES.items()},
        encoder_features=["res3", "res4", "res5"],
        dim=config["dim"],
        mask_dim=config["mask_dim"],
        num_layers=config["enc_layers"],
        num_heads=config["heads"],
        num_points=config["encoder_points"],
        feedforward=config["encoder_ffn"],
    )
    decoder.load_state_dict(weights(stored, "pixel_decoder"))
    return decoder.eval()


def transformer_decoder(stored, config):
    decoder = MultiScaleMaskedTransformerDecoder(
        in_channels=config["dim"],
        num_classes=config["num_classes"],
        hidden_dim=config["dim"],
        num_queries=config["queries"],
        num_heads=config["heads"],
        feedforward=config["ffn"],
        num_layers=config["dec_layers"],
        mask_dim=config["mask_dim"],
    )
    decoder.load_state_dict(weights(stored, "predictor"))
    return decoder.eval()


@torch.no_grad()
def test_pixel_decoder_gives_the_official_features(stored):
    decoder = pixel_decoder(stored, json.loads(str(stored["config"])))
    out = decoder({name: torch.from_numpy(stored[f"backbone/{name}"]) for name in STRIDES})
    assert relative_error(out.mask_features, stored["pixel_decoder/mask_features"]) < 1e-5
    assert len(out.multi_scale) == 3
    for level, features in enumerate(out.multi_scale):
        assert relative_error(features, stored[f"pixel_decoder/multi_scale/{level}"]) < 1e-5


@torch.no_grad()
def test_transformer_decoder_gives_the_official_predictions(stored):
    config = json.loads(str(stored["config"]))
    multi_scale = [torch.from_numpy(stored[f"pixel_decoder/multi_scale/{level}"]) for level in range(3)]
    decoder = transformer_decoder(stored, config)
    predictions = decoder(multi_scale, torch.from_numpy(stored["pixel_decoder/mask_features"]))
    assert len(predictions) == config["dec_layers"] + 1
    for layer, prediction in enumerate(predictions):
        assert relative_error(prediction.class_logits, stored[f"decoder/{layer}/pred_logits"]) < 1e-5
        assert relative_error(prediction.all_mask_logits(), stored[f"decoder/{layer}/pred_masks"]) < 1e-5
