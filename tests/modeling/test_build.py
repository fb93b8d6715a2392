"""From a cfg to a model."""

from __future__ import annotations

import pytest
import torch

from m2f.config.defaults import get_cfg
from m2f.modeling.build import build_model
from m2f.structures.metadata import Category, Metadata, contiguous_metadata


def _metadata(num_classes: int) -> Metadata:
    return contiguous_metadata("toy", [Category(i + 1, f"class {i}") for i in range(num_classes)])


def test_head_and_dataset_must_agree() -> None:
    message = "model.sem_seg_head.num_classes is 200, but the dataset has 3 classes; set .* to 3"
    with pytest.raises(ValueError, match=message):
        build_model(get_cfg(), _metadata(3))


def test_freezing_comes_from_the_spec() -> None:
    cfg = get_cfg()
    cfg.model.sem_seg_head.num_classes = 3
    cfg.train.freeze = ["backbone", "transformer.encoder"]
    with torch.device("meta"):
        model = build_model(cfg, _metadata(3)).train()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("backbone.", "pixel_decoder.transformer.encoder."))
    }
    assert not model.get_submodule("backbone").training
    assert model.get_submodule("transformer_decoder").training
