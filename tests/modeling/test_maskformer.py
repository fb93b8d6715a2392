"""The meta-architecture on a tiny network built from a cfg."""

from __future__ import annotations

import pytest
import torch

from m2f.config import CfgNode, get_cfg
from m2f.layers.points import FixedPoints
from m2f.modeling.build import build_model
from m2f.modeling.maskformer import MaskFormer
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata
from m2f.structures.sample import ModelInput

METADATA = Metadata("tiny", tuple(Category(i + 1, str(i), i < 2) for i in range(3)))


def tiny_cfg(**former: object) -> CfgNode:
    cfg = get_cfg()
    vit = {"name": "custom", "family": "b", "widths": [8, 8, 16, 16, 16], "depths": [1, 1, 1, 1, 1], "dim": 8}
    head = {"num_classes": 3, "convs_dim": 32, "mask_dim": 32, "transformer_enc_layers": 1}
    sizes = {"hidden_dim": 32, "dim_feedforward": 32, "nheads": 4, "num_object_queries": 6, "dec_layers": 3}
    model = {
        "backbone": {"type": "efficientvit", "efficientvit": vit},
        "sem_seg_head": {**head, "encoder_dim_feedforward": 32},
        "mask_former": {**sizes, "train_num_points": 64, **former},
    }
    cfg.merge({"model": model}, "test")
    return cfg


def tiny_model(**former: object) -> MaskFormer:
    model = build_model(tiny_cfg(**former), METADATA)
    assert isinstance(model, MaskFormer)
    model.criterion.points = FixedPoints(torch.rand(64, 2))
    return model


def make_input(height: int, width: int, targets: int = 2) -> ModelInput:
    truth = Instances(torch.randint(3, (targets,)), torch.rand(targets, height, width) > 0.5)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    return ModelInput(image=image, height=2 * height, width=width + 5, instances=truth, file_name="image.jpg")


def test_images_are_normalised_before_they_are_padded() -> None:
    model = tiny_model()
    batch = model.preprocess([make_input(40, 70), make_input(64, 33)])
    assert batch.tensor.shape == (2, 3, 64, 96)
    assert not batch.tensor[0, :, 40:].any()
    assert not batch.tensor[1, :, :, 33:].any()
    grey = ModelInput(image=torch.full((3, 32, 32), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(model.preprocess([grey]).tensor[0, :, 5, 5], expected)


def test_answers_have_the_size_and_the_tasks_asked_for() -> None:
    model = tiny_model().eval()
    assert model.tasks == ("panoptic",)
    assert [list(output) for output in model([make_input(40, 70)])] == [["panoptic"]]
    model.tasks = ("semantic", "panoptic", "instance")
    first, second = model([make_input(40, 70), make_input(64, 33)])
    assert first["semantic"].shape == (3, 80, 75)
    assert second["panoptic"].ids.shape == (128, 38)
    assert first["instance"].masks.shape[1:] == (80, 75)
    assert set(first["instance"].labels.tolist()) <= {0, 1}
    bare = ModelInput(image=make_input(40, 70)["image"])
    assert model([bare])[0]["semantic"].shape == (3, 40, 70)


@pytest.mark.parametrize("counts", [(2, 3), (0, 2), (0, 0)])
@pytest.mark.parametrize("ignore_void", [True, False])
def test_every_parameter_gets_a_gradient_even_without_targets(counts: tuple[int, int], ignore_void: bool) -> None:
    model = tiny_model(ignore_void=ignore_void).train()
    inputs = [make_input(40, 70, counts[0]), make_input(64, 33, counts[1])]
    inputs[0]["valid"] = torch.rand(40, 70) > 0.3
    losses = model(inputs)
    assert len(losses) == 9
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_mask_losses_are_divided_by_the_number_of_masks() -> None:
    model = tiny_model().eval()
    inputs = [make_input(40, 70, 3), make_input(64, 33, 1)]
    own, given, twice = model.losses(inputs), model.losses(inputs, 4.0), model.losses(inputs, 8.0)
    for name, value in own.items():
        torch.testing.assert_close(value, given[name])
        torch.testing.assert_close(twice[name], value if name.startswith("loss_ce") else value / 2)


def test_padding_is_background_with_and_without_void() -> None:
    model = tiny_model().eval()
    sample = make_input(40, 70)
    (plain,) = model.targets([sample], (64, 96))
    sample["valid"] = torch.zeros(40, 70, dtype=torch.bool)
    (void,) = model.targets([sample], (64, 96))
    assert plain.valid is None
    assert void.valid is not None
    assert int((~void.valid).sum()) == 40 * 70
    assert not void.masks[:, 40:].any()
    assert void.masks[:, :40, :70].equal(sample["instances"].masks)


def test_losses_without_truth_name_the_file() -> None:
    sample = make_input(40, 70)
    del sample["instances"]
    with pytest.raises(ValueError, match=r"image\.jpg"):
        tiny_model().losses([sample])


def test_answers_under_autocast_are_float32() -> None:
    model = tiny_model().eval()
    model.tasks = ("semantic",)
    with torch.autocast("cpu", torch.bfloat16):
        (output,) = model([make_input(40, 70)])
    assert output["semantic"].dtype == torch.float32
