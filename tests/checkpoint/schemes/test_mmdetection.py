"""OpenMMLab's names, layouts and answers."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.schemes import from_m2f, to_m2f
from m2f.checkpoint.schemes.mmdetection import MMDetection, microsoft_merging_order
from m2f.config.defaults import get_cfg
from m2f.modeling.build import build_model
from m2f.modeling.maskformer import MaskFormer
from m2f.structures.metadata import Category, contiguous_metadata

FOLDER = Path(__file__).resolve().parents[1]
LISTS = {
    "mmdetection_mask2former_r50_panoptic": ("resnet", 133),
    "mmdetection_mask2former_swin": ("swin", 133),
    "mmdetection2_mask2former_r50_panoptic": ("resnet", 133),
    "mmdetection2_mask2former_swin": ("swin", 133),
    "mmsegmentation_mask2former": ("resnet", 150),
}
ANSWERS = ("mmdetection_2", "mmdetection_3", "mmsegmentation_1")
HEAD = {"num_classes": 6, "convs_dim": 32, "mask_dim": 32, "transformer_enc_layers": 2, "encoder_dim_feedforward": 48}
FORMER = {"hidden_dim": 32, "nheads": 4, "dim_feedforward": 40, "dec_layers": 5, "num_object_queries": 5}
RESNET = {"type": "custom", "depth": 18, "stem_channels": 8, "res2_channels": 8, "width": 8}
SWIN = {"type": "custom", "embed_dim": 8, "depths": [2, 2, 2, 1], "num_heads": [2, 2, 4, 4], "window_size": 3}
SMALL = {"sem_seg_head": HEAD, "mask_former": FORMER, "backbone": {"resnet": RESNET, "swin": SWIN}}


def names_of(file: str) -> dict[str, Tensor]:
    names = json.loads((FOLDER / "names" / f"{file}.json").read_text())["names"]
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def model_of(backbone: str, num_classes: int, small: bool = False) -> MaskFormer:
    cfg = get_cfg()
    if small:
        cfg.merge({"model": SMALL}, "SMALL")
    cfg.model.backbone.type = backbone
    cfg.model.sem_seg_head.num_classes = num_classes
    categories = [Category(i + 1, str(i)) for i in range(num_classes)]
    model = build_model(cfg, contiguous_metadata("mmdetection", categories))
    assert isinstance(model, MaskFormer)
    return model.eval()


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of what a model learns or measures; the loss's class weights and the norms' counters are neither."""
    left_out = re.compile(r"^criterion\.|\.num_batches_tracked$")
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not left_out.search(name)}


def drawn(names: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that follow from their names, on every machine and for ever; no counters, no index tables."""
    return {
        name: torch.from_numpy(_drawn(name, tuple(shape))).float()
        for name, shape in names.items()
        if not name.endswith(("num_batches_tracked", "relative_position_index"))
    }


def drawn_image() -> Tensor:
    """(1, 3, H, W), of a size that no stride divides."""
    return torch.from_numpy(2 * _drawn("photo", (70 * 101 * 3,)).reshape(1, 3, 70, 101)).float()


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if name.endswith("running_var"):
        return 1 + values / 2
    if any(part in name for part in ("norm", ".bn", ".gn", "downsample.1")):
        return float(name.endswith("weight")) + values / 2
    if name.endswith("sampling_offsets.bias"):
        return 3 * values
    if len(shape) == 1 or "query_" in name or "level_" in name:
        return values
    return values * np.sqrt(3 / np.prod(shape[1:]))


@pytest.mark.parametrize("file", LISTS)
def test_every_name_has_a_place_and_every_place_a_name(file: str) -> None:
    state, scheme = to_m2f(names_of(file))
    with torch.device("meta"):
        model = model_of(*LISTS[file])
    assert scheme == "mmdetection"
    assert shapes(state) == shapes(model.state_dict())


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@pytest.mark.parametrize("file", ANSWERS)
@torch.no_grad()
def test_the_model_answers_as_it_did_at_home(file: str, backbone: str) -> None:
    with np.load(FOLDER / "data" / f"{file}.npz") as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    state, _ = to_m2f(drawn(json.loads(str(stored[f"{backbone}/names"]))))
    model = model_of(backbone, 6, small=True)
    assert shapes(state) == shapes(model.state_dict())
    model.load_state_dict(state, strict=False)
    predictions = model.layers(drawn_image())
    class_logits = torch.stack([prediction.class_logits for prediction in predictions])
    torch.testing.assert_close(class_logits, torch.from_numpy(stored[f"{backbone}/class_logits"]), atol=2e-5, rtol=0)
    mask_logits = predictions[-1].all_mask_logits()
    torch.testing.assert_close(mask_logits, torch.from_numpy(stored[f"{backbone}/mask_logits"]), atol=1e-4, rtol=0)


def test_merged_pixels_in_the_order_of_the_four_slices() -> None:
    pixels = torch.randn(2, 5, 6, 8)
    unfolded = nn.Unfold(kernel_size=2, stride=2)(pixels).mT  # (B, H / 2 * W / 2, 4C)
    slices = [pixels[:, :, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    concatenated = torch.cat(slices, dim=1).flatten(2).mT
    assert torch.equal(microsoft_merging_order(unfolded), concatenated)
    assert not torch.equal(unfolded, concatenated)
    reduction = torch.randn(10, 20)
    torch.testing.assert_close(concatenated @ microsoft_merging_order(reduction).mT, unfolded @ reduction.mT)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_a_swin_alone(prefix: str) -> None:
    whole = names_of("mmdetection_mask2former_swin")
    alone = {
        name.replace("backbone.", prefix, 1): tensor for name, tensor in whole.items() if name.startswith("backbone.")
    }
    state, scheme = to_m2f(alone)
    expected = {name: tensor for name, tensor in to_m2f(whole)[0].items() if name.startswith("backbone.")}
    assert scheme == "mmdetection"
    assert shapes(state) == shapes(expected)


def test_a_classifier_is_kept_for_the_report() -> None:
    swin = {"backbone.stages.0.blocks.0.attn.w_msa.qkv.bias": torch.zeros(1), "head.fc.weight": torch.zeros(1)}
    assert list(to_m2f(swin)[0]) == ["backbone.layers.0.blocks.0.attn.qkv.bias", "head.fc.weight"]


@pytest.mark.parametrize("shape", [(), (6,), (4, 2)])
def test_impossible_merging_is_refused(shape: tuple[int, ...]) -> None:
    name = "backbone.stages.0.downsample.norm.weight"
    state = {name: torch.zeros(shape), "backbone.stages.0.blocks.0.attn.w_msa.qkv.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=rf"{name} has shape .* multiple of 4"):
        to_m2f(state)


def test_positions_become_a_map() -> None:
    table = torch.randn(1, 9, 4)
    state, _ = to_m2f(
        {
            "backbone.absolute_pos_embed": table,
            "backbone.patch_embed.projection.weight": torch.zeros(4, 3, 4, 4),
            "backbone.stages.0.blocks.0.attn.w_msa.qkv.weight": torch.zeros(12, 4),
        }
    )
    assert torch.equal(state["backbone.absolute_pos_embed"][0, :, 1, 2], table[0, 5])


@pytest.mark.parametrize("head", ["panoptic_head", "decode_head"])
def test_less_common_names(head: str) -> None:
    theirs = (
        "pixel_decoder.lateral_convs.1.bn.running_mean",
        "pixel_decoder.output_convs.1.conv.weight",
        "transformer_decoder.layers.12.attentions.1.attn.out_proj.bias",
        "decoder_input_projs.2.weight",
        "new_thing.weight",
    )
    state, _ = to_m2f({f"{head}.{name}": torch.zeros(1) for name in theirs})
    assert list(state) == [
        "pixel_decoder.adapter_2.norm.running_mean",
        "pixel_decoder.layer_2.weight",
        "transformer_decoder.transformer_self_attention_layers.12.self_attn.out_proj.bias",
        "transformer_decoder.input_proj.2.weight",
        "transformer_decoder.new_thing.weight",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "backbone.layer1.0.conv1.weight",
        "backbone.patch_embed.proj.weight",
        "sem_seg_head.pixel_decoder.mask_features.weight",
        "pixel_decoder.mask_features.weight",
        "decode_head.conv_seg.weight",
    ],
)
def test_names_of_other_homes_are_not_these(name: str) -> None:
    assert not MMDetection.recognises([name])


def test_it_is_only_read() -> None:
    state = {"transformer_decoder.query_feat.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="read, not written"):
        from_m2f(state, "mmdetection")


def test_the_input_is_left_alone() -> None:
    state = drawn({"backbone.stages.0.downsample.norm.weight": (8,), "backbone.stages.0.blocks.0.attn.w_msa.a": (2,)})
    copy = {name: tensor.clone() for name, tensor in state.items()}
    to_m2f(state)
    assert list(state) == list(copy)
    assert all(torch.equal(state[name], copy[name]) for name in copy)
