"""Both decoders as a spec builds them: names and shapes of the official checkpoints, and keys that reach them."""

import json

import pytest
import torch

from m2f.config import get_cfg
from m2f.modeling.backbone.backbone import FeatureShape
from m2f.modeling.build import PIXEL_DECODER_REGISTRY, TRANSFORMER_DECODER_REGISTRY

PARTS = ("sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")


def build(cfg, channels=(8, 16, 32, 64)):
    shapes = {f"res{i + 2}": FeatureShape(c, 4 * 2**i) for i, c in enumerate(channels)}
    pixel = PIXEL_DECODER_REGISTRY.build(cfg.model.sem_seg_head.pixel_decoder, cfg, shapes)
    name, classes = cfg.model.mask_former.transformer_decoder, cfg.model.sem_seg_head.num_classes
    return pixel, TRANSFORMER_DECODER_REGISTRY.build(name, cfg, pixel.multi_scale_channels, classes)


@pytest.mark.realdata
@pytest.mark.parametrize("model", ["swin_tiny", "swin_large", "resnet50"])
def test_default_spec_has_the_official_parameters(oracles, model):
    official = json.loads((oracles / "official_state_dict_shapes.json").read_text())[model]
    official = {name: tuple(shape) for name, shape in official.items() if name.startswith(PARTS)}
    cfg = get_cfg()
    cfg.model.sem_seg_head.num_classes = official[PARTS[1] + "class_embed.weight"][0] - 1
    cfg.model.mask_former.num_object_queries = official[PARTS[1] + "query_feat.weight"][0]
    names = ["adapter_1.weight", *(f"input_proj.{level}.0.weight" for level in (2, 1, 0))]
    with torch.device("meta"):
        modules = build(cfg, [official[PARTS[0] + name][1] for name in names])
    ours = {p + n: tuple(t.shape) for p, m in zip(PARTS, modules, strict=True) for n, t in m.state_dict().items()}
    assert ours == official


def test_dec_layers_counts_predictions():
    cfg = get_cfg()
    cfg.model.mask_former.dec_layers = 4
    assert len(build(cfg)[1].transformer_ffn_layers) == 3


def test_keys_reach_the_parts():
    cfg = get_cfg()
    head, former = cfg.model.sem_seg_head, cfg.model.mask_former
    head.convs_dim, head.mask_dim, head.transformer_enc_layers, head.norm = 32, 24, 2, "LN"
    head.encoder_dim_feedforward, head.encoder_num_points = 40, 3
    former.nheads, former.hidden_dim, former.dim_feedforward, former.num_object_queries = 4, 16, 20, 7
    former.dropout, former.pre_norm, cfg.train.activation_checkpoint = 0.25, True, False
    pixel, decoder = build(cfg)
    layers = pixel.transformer.encoder.layers
    assert (len(layers), layers[0].dropout.p, layers[0].linear1.out_features) == (2, 0.25, 40)
    assert layers[0].self_attn.attention_weights.out_features == 4 * 3 * 3
    assert pixel.mask_features.out_channels == 24
    assert isinstance(pixel.adapter_1.norm, torch.nn.LayerNorm)
    assert not pixel.transformer.activation_checkpoint
    assert decoder.query_feat.weight.shape == (7, 16)
    assert decoder.mask_embed.layers[-1].out_features == 24
    block = decoder.transformer_ffn_layers[0]
    assert (block.linear1.out_features, block.pre_norm) == (20, True)


def test_the_light_pixel_decoder_is_one_key_away():
    cfg = get_cfg()
    cfg.model.sem_seg_head.pixel_decoder = "FPNPixelDecoder"
    cfg.model.sem_seg_head.convs_dim = 32
    pixel, decoder = build(cfg)
    assert pixel.multi_scale_channels == 32
    assert decoder.state_dict()["input_proj.0.weight"].shape == (256, 32, 1, 1)
