from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m2f.config import SpecError, dump_spec, load_spec
from m2f.modeling.build import BACKBONE_REGISTRY

SPEC = Path(__file__).resolve().parent.parent / "configs" / "shapes_panoptic.yaml"


def test_the_spec_brings_project_and_keys(tmp_path):
    cfg = load_spec(SPEC, ["model.backbone.plain_conv.depth=2"])
    assert cfg.model.backbone.type == "plain_conv" and cfg.model.backbone.plain_conv.depth == 2
    assert cfg.projects() == [str(SPEC.parent.parent)]
    saved = tmp_path / "spec.yaml"
    saved.write_text(dump_spec(cfg))
    assert load_spec(saved) == cfg
    with pytest.raises(SpecError, match=r"did you mean 'model.backbone.plain_conv.depth'"):
        load_spec(SPEC, ["model.backbone.plain_conv.dept=2"])
    with pytest.raises(SpecError, match=r"must be int, got float 1.5"):
        load_spec(SPEC, ["model.backbone.plain_conv.depth=1.5"])


@pytest.mark.parametrize("size", [(64, 96), (33, 71)])
def test_the_contract_of_a_backbone(size):
    backbone = BACKBONE_REGISTRY.build("plain_conv", load_spec(SPEC))
    features = backbone(torch.rand(2, 3, *size))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for name, shape in backbone.feature_shapes().items():
        height, width = (-(-side // shape.stride) for side in size)
        assert features[name].shape == (2, shape.channels, height, width)


def test_every_parameter_learns_with_and_without_checkpointing():
    grads = []
    for words in ([], ["train.activation_checkpoint=True"], ["train.activation_checkpoint=False"]):
        torch.manual_seed(0)
        backbone = BACKBONE_REGISTRY.build("plain_conv", load_spec(SPEC, words)).train()
        sum(f.square().mean() for f in backbone(torch.rand(1, 3, 64, 64)).values()).backward()
        grads.append([p.grad for p in backbone.parameters()])
    assert all(g is not None and g.abs().sum() > 0 for g in grads[0])
    for a, b in zip(grads[1], grads[2], strict=True):
        torch.testing.assert_close(a, b)


def test_unusable_widths_are_refused():
    cfg = load_spec(SPEC, ["model.backbone.plain_conv.widths=[16,32,64]"])
    with pytest.raises(ValueError, match=r"model.backbone.plain_conv.widths"):
        BACKBONE_REGISTRY.build("plain_conv", cfg)
