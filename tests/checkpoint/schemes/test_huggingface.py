"""Hugging Face's names, against lists of transformers 4; its models' answers are in tests/oracles/test_huggingface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m2f.checkpoint.schemes import detect, from_m2f, to_m2f
from m2f.config import get_cfg
from m2f.modeling.backbone.resnet import ResNet
from m2f.modeling.backbone.swin import SwinTransformer
from m2f.modeling.build import build_model
from m2f.structures.metadata import Category, Metadata

NAMES = Path(__file__).parents[1] / "names"
UNUSED_NORM = "model.pixel_level_module.encoder.swin.layernorm"
ENCODER, DECODER = "model.pixel_level_module.encoder", "model.transformer_module.decoder"
PROJECTION = f"{DECODER}.layers.0.self_attn"
SWIN = {"type": "swin", "swin": {"type": "tiny"}}
RESNET50 = {"type": "resnet", "resnet": {"type": "resnet50", "norm": "BN"}}
SMALL = {
    "type": "swin",
    "swin": {"type": "custom", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 3},
}


def published(file: str) -> dict[str, Tensor]:
    names = json.loads((NAMES / f"huggingface_{file}.json").read_text())["names"]
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def model_state(
    backbone: dict[str, Any], device: str, head: dict[str, Any] | None = None, **former: Any
) -> dict[str, Tensor]:
    """The tensors of a model with this backbone."""
    cfg = get_cfg()
    head = {"num_classes": 133, **(head or {})}
    cfg.merge({"model": {"backbone": backbone, "sem_seg_head": head, "mask_former": former}}, "test")
    metadata = Metadata("test", tuple(Category(label, str(label)) for label in range(head["num_classes"])))
    with torch.device(device):
        return dict(build_model(cfg, metadata).state_dict())


def small_state(backbone: dict[str, Any] | None = None, **head: Any) -> dict[str, Tensor]:
    sizes = {"num_classes": 3, "convs_dim": 32, "mask_dim": 16, "transformer_enc_layers": 1}
    former = {"hidden_dim": 32, "dim_feedforward": 8, "nheads": 4, "num_object_queries": 5, "dec_layers": 2}
    return model_state(backbone or SMALL, "cpu", {**sizes, "encoder_dim_feedforward": 8, **head}, **former)


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


@pytest.mark.parametrize("unwrapped", [False, True], ids=["", "Mask2FormerModel"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("file", "backbone"), [("mask2former_swin_tiny", SWIN), ("mask2former_resnet50", RESNET50)], ids=["swin", "resnet"]
)
def test_published_names_and_shapes(file: str, backbone: dict[str, Any], prefix: str, unwrapped: bool) -> None:
    """No tensor fresh and none ignored."""
    theirs = published(file)
    if unwrapped:
        theirs = {name.removeprefix("model."): tensor for name, tensor in theirs.items() if name.startswith("model.")}
    ours, scheme = to_m2f({prefix + name: tensor for name, tensor in theirs.items()})
    expected = shapes(model_state(backbone, "meta"))
    if unwrapped:
        expected = {name: shape for name, shape in expected.items() if ".class_embed." not in name}
    assert scheme == "huggingface"
    assert shapes(ours) == expected


@pytest.mark.parametrize(
    ("file", "backbone"), [("mask2former_swin_tiny", SWIN), ("mask2former_resnet50", RESNET50)], ids=["swin", "resnet"]
)
def test_published_names_are_written_back(file: str, backbone: dict[str, Any]) -> None:
    """Without index tables, which transformers 5 no longer has, and with the norm that it has and never asks."""
    theirs = published(file)
    written = from_m2f(to_m2f(theirs)[0], "huggingface")
    kept = {name: shape for name, shape in shapes(theirs).items() if not name.endswith("relative_position_index")}
    norm = {f"{UNUSED_NORM}.{kind}": (768,) for kind in ("weight", "bias")} if backbone == SWIN else {}
    assert shapes(written) == {**kept, **norm}


@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
def test_a_published_swin(prefix: str) -> None:
    ours, scheme = to_m2f({prefix + name: tensor for name, tensor in published("swin_tiny").items()})
    with torch.device("meta"):
        own = {f"backbone.{name}": tensor.shape for name, tensor in SwinTransformer().state_dict().items()}
    assert scheme == "huggingface_swin"
    heads = {f"backbone.{name}.{kind}" for name in ("layernorm", "classifier") for kind in ("weight", "bias")}
    assert ours.keys() - own.keys() == heads
    assert own.keys() - ours.keys() == {f"backbone.norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert all(ours[name].shape == own[name] for name in ours.keys() & own.keys())


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_published_resnet(prefix: str) -> None:
    ours, scheme = to_m2f({prefix + name: tensor for name, tensor in published("resnet50").items()})
    with torch.device("meta"):
        own = {f"backbone.{name}": tensor.shape for name, tensor in ResNet(norm="BN").state_dict().items()}
    assert scheme == "huggingface_resnet"
    assert ours.keys() - own.keys() == {"backbone.classifier.1.weight", "backbone.classifier.1.bias"}
    assert own == {name: ours[name].shape for name in own}


def test_maskformers_spelling_of_a_swin() -> None:
    """Its wrapper and its norms, counted from 0."""
    state = {f"model.{name.removeprefix('swin.')}": tensor for name, tensor in published("swin_tiny").items()}
    state["hidden_states_norms.0.weight"] = torch.zeros(96)
    ours, scheme = to_m2f(state)
    assert scheme == "huggingface_swin"
    assert ours["backbone.norm0.weight"].shape == (96,)
    assert "backbone.layers.3.blocks.1.attn.qkv.bias" in ours


def test_there_and_back_is_the_same() -> None:
    state = small_state({**SMALL, "swin": {**SMALL["swin"], "ape": True, "pretrain_img_size": 32}})
    again, _ = to_m2f(from_m2f(state, "huggingface"))
    assert again.keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in again.items())


def test_frozen_norms_get_the_counters_that_batch_norms_have() -> None:
    resnet = {"type": "resnet", "resnet": {"type": "custom", "depth": 18, "res2_channels": 8, "width": 8}}
    frozen = from_m2f(small_state(resnet), "huggingface")
    live = from_m2f(small_state({**resnet, "resnet": {**resnet["resnet"], "norm": "BN"}}), "huggingface")
    assert shapes(frozen) == shapes(live)
    assert {name: tensor.dtype for name, tensor in frozen.items()} == {n: t.dtype for n, t in live.items()}


def test_the_weight_of_no_object() -> None:
    state = small_state()
    assert from_m2f(state, "huggingface")["criterion.empty_weight"].tolist() == pytest.approx([1, 1, 1, 0.1])
    given = {**state, "criterion.empty_weight": torch.tensor([1, 1, 1, 0.4])}
    written = from_m2f(given, "huggingface")
    assert written["criterion.empty_weight"].tolist() == pytest.approx([1, 1, 1, 0.4])
    assert "criterion.empty_weight" not in to_m2f(written)[0]


def test_every_tensor_can_be_written_to_a_file_of_safetensors(tmp_path: Path) -> None:
    safetensors_torch = pytest.importorskip("safetensors.torch")
    written = from_m2f(small_state(), "huggingface")
    safetensors_torch.save_file(written, tmp_path / "model.safetensors")
    assert safetensors_torch.load_file(tmp_path / "model.safetensors").keys() == written.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pixel_level_module.decoder.fpn.stem.0.weight", "a MaskFormer"),
        ("model.task_encoder.task_mlp.layers.0.0.weight", "a OneFormer"),
        (f"{ENCODER}.encoder.layers.0.blocks.0.attention.self.logit_scale", "Swin V2"),
    ],
)
def test_relatives_are_named(name: str, message: str) -> None:
    state = from_m2f(small_state(), "huggingface")
    with pytest.raises(ValueError, match=message):
        to_m2f({**state, name: torch.zeros(1)})


def test_a_swin_v2_alone_is_named() -> None:
    state = {**published("swin_tiny"), "swin.encoder.layers.0.blocks.0.attention.self.logit_scale": torch.zeros(1)}
    with pytest.raises(ValueError, match="swinv2"):
        to_m2f(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{PROJECTION}.k_proj.weight": None}, r"self_attn\.k_proj\.weight is missing"),
        ({f"{PROJECTION}.q_proj.bias": torch.zeros(8)}, r"self_attn\.q_proj\.bias \(8,\)"),
        ({"model.transformer_module.input_projections.0.weight": torch.zeros(32, 32, 1, 1)}, "enforce_input_projec"),
        ({f"{ENCODER}.embeddings.position_embeddings": torch.zeros(1, 12, 8)}, "12 positions; a square"),
        ({f"{ENCODER}.encoder.layers.0.blocks.0.attention.q_proj.weight": torch.zeros(8, 8)}, "a file has one of"),
    ],
)
def test_broken_weights_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    state = from_m2f(small_state(), "huggingface") | change
    with pytest.raises(ValueError, match=message):
        to_m2f({name: tensor for name, tensor in state.items() if tensor is not None})


def test_a_projection_without_axes_is_left_to_the_loader() -> None:
    state = {
        **from_m2f(small_state(), "huggingface"),
        "model.transformer_module.input_projections.0.weight": torch.ones(()),
    }
    assert to_m2f(state)[0]["transformer_decoder.input_proj.0.weight"].shape == ()


def test_what_nobody_knows_is_kept_for_the_report() -> None:
    state = from_m2f(small_state(), "huggingface")
    strange = {f"{ENCODER}.extra.weight": torch.zeros(1), "model.transformer_module.new": torch.zeros(1)}
    assert to_m2f({**state, **strange})[0].keys() - to_m2f(state)[0].keys() == {
        "backbone.extra.weight",
        "transformer_module.new",
    }


VIT = {"name": "custom", "family": "b", "widths": [8, 8, 16, 16, 16], "depths": [1, 1, 1, 1, 1], "dim": 8}
RESNET = {"type": "custom", "depth": 50, "stem_channels": 32, "res2_channels": 32, "width": 16}


@pytest.mark.parametrize(
    ("backbone", "head", "message"),
    [
        ({"type": "efficientvit", "efficientvit": VIT}, {}, "another backbone than Swin or ResNet"),
        ({"type": "swin", "swin": {**SMALL["swin"], "patch_norm": False}}, {}, "patch_norm"),
        ({"type": "resnet", "resnet": RESNET}, {}, "not a quarter as wide"),
        ({"type": "resnet", "resnet": {**RESNET, "width": 32, "norm": "GN"}}, {}, "group norm"),
        (SMALL, {"pixel_decoder": "FPNPixelDecoder"}, "MSDeformAttnPixelDecoder"),
        (SMALL, {"deformable_transformer_encoder_in_features": ["res2", "res3", "res4", "res5"]}, "of 4 levels"),
        (SMALL, {"norm": "BN"}, "GN"),
        (SMALL, {"norm": ""}, "GN"),
    ],
)
def test_what_their_model_cannot_hold_is_refused(backbone: dict[str, Any], head: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot hold this model: .*{message}"):
        from_m2f(small_state(backbone, **head), "huggingface")


@pytest.mark.parametrize("name", ["backbone.gate", "pixel_decoder.gate", "transformer_decoder.gate", "head.gate"])
def test_a_projects_own_parameter_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no place for .*gate"):
        from_m2f({**small_state(), name: torch.zeros(1)}, "huggingface")


def test_another_transformer_decoder_is_refused() -> None:
    state = {name: tensor for name, tensor in small_state().items() if ".class_embed." not in name}
    with pytest.raises(ValueError, match="MultiScaleMaskedTransformerDecoder"):
        from_m2f(state, "huggingface")


def test_each_home_is_recognised_alone() -> None:
    assert detect(published("mask2former_swin_tiny")) == "huggingface"
    assert detect(["transformer_module.level_embed.weight"]) == "huggingface"
    assert detect(published("swin_tiny")) == "huggingface_swin"
    assert detect(published("resnet50")) == "huggingface_resnet"


@pytest.mark.parametrize("scheme", ["huggingface_swin", "huggingface_resnet"])
def test_backbones_alone_are_only_read(scheme: str) -> None:
    with pytest.raises(ValueError, match="read, not written"):
        from_m2f(small_state(), scheme)
