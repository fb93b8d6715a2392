"""Freezing: which names are understood, and that a frozen part really stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from m2f.modeling.backbone.resnet import ResNet
from m2f.modeling.build import freeze


class Model(nn.Module):
    """The part names of a MaskFormer around small layers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(depth=18, stem_channels=8, res2_channels=8, width=8, norm="BN", out_features=["res3"])
        self.pixel_decoder = nn.ModuleDict(
            {
                "input_proj": nn.Conv2d(16, 8, 1),
                "transformer": nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))}),
                "mask_features": nn.Conv2d(8, 8, 1),
            }
        )
        self.transformer_decoder = nn.ModuleDict({"query_feat": nn.Embedding(5, 8), "decoder_norm": nn.LayerNorm(8)})


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _under(model: nn.Module, prefix: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("backbone", "backbone."),
        ("backbone.model", "backbone."),
        ("model.backbone", "backbone."),
        ("backbone.layer1", "backbone.layer1."),
        ("backbone.res2", "backbone.layer1."),
        ("backbone.layer2.0", "backbone.layer2.0."),
        ("pixel_decoder", "pixel_decoder."),
        ("sem_seg_head.pixel_decoder", "pixel_decoder."),
        ("sem_seg_head.predictor", "transformer_decoder."),
        ("transformer_decoder", "transformer_decoder."),
        ("predictor.query_feat", "transformer_decoder.query_feat."),
        ("transformer.encoder", "pixel_decoder.transformer.encoder."),
        ("input_proj", "pixel_decoder.input_proj."),
        ("sem_seg_head.predictor.decoder_norm.weight", "transformer_decoder.decoder_norm.weight"),
    ],
)
def test_names_of_m2f_the_official_code_and_tao(name: str, prefix: str) -> None:
    model = Model()
    freeze(model, [name])
    assert _frozen(model) == _under(model, prefix)


def test_stem_and_whole_head() -> None:
    model = Model()
    freeze(model, ["backbone.stem", "sem_seg_head"])
    expected = _under(model, "backbone.conv1.") | _under(model, "backbone.bn1.")
    assert _frozen(model) == expected | _under(model, "pixel_decoder.") | _under(model, "transformer_decoder.")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("backbon", "did you mean 'backbone'"),
        ("sem_seg_head.pixel_decodr", "did you mean 'sem_seg_head.pixel_decoder'"),
        ("transformer.encoders", "did you mean 'transformer.encoder'"),
        ("ackbone", "did you mean 'backbone'"),
        ("#", "its parts are backbone, pixel_decoder, transformer_decoder"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"train.freeze: '{name}' matches no part of the model; {hint}"):
        freeze(Model(), [name])


def test_parts_of_words_do_not_match() -> None:
    with pytest.raises(ValueError, match="matches no part"):
        freeze(Model(), ["pixel"])


def test_frozen_parts_stay_in_eval_mode() -> None:
    model = Model()
    freeze(model, ["backbone", "transformer.encoder"])
    for used in (model, copy.deepcopy(model)):
        used.train()
        assert used.training
        assert used.transformer_decoder.training
        assert not any(module.training for module in used.backbone.modules())
        assert not any(module.training for module in used.pixel_decoder["transformer"]["encoder"].modules())


def test_frozen_statistics_and_weights_do_not_move() -> None:
    model = Model()
    freeze(model, ["backbone"])
    before = copy.deepcopy(model.backbone.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    model.train()
    for _ in range(2):
        feature = model.backbone(torch.randn(2, 3, 32, 32))["res3"]
        model.pixel_decoder["input_proj"](feature).sum().backward()
        optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.backbone.state_dict().items())


def test_nothing_to_freeze_changes_nothing() -> None:
    model = Model()
    freeze(model, [])
    assert not _frozen(model)
    assert all(module.training for module in model.train().modules())
