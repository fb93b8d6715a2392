"""TAO's prefixes, and its no-object row, which stands first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.schemes import SCHEME_REGISTRY, detect, from_m2f, to_m2f
from m2f.config import get_cfg
from m2f.modeling.build import build_model
from m2f.modeling.maskformer import MaskFormer
from m2f.structures.metadata import Category, Metadata
from m2f.structures.sample import ModelInput

NAMES = Path(__file__).parents[1] / "names"
CLASSES = 5
VIT = {"name": "custom", "family": "b", "widths": [8, 8, 16, 16, 16], "depths": [1, 1, 1, 1, 1], "dim": 8}
SWIN = {"type": "custom", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
BACKBONES = {"swin": SWIN, "efficientvit": VIT}
HEAD = {
    "num_classes": CLASSES,
    "convs_dim": 32,
    "mask_dim": 32,
    "transformer_enc_layers": 1,
    "encoder_dim_feedforward": 32,
}
FORMER = {"hidden_dim": 32, "dim_feedforward": 32, "nheads": 4, "num_object_queries": 6, "dec_layers": 3}


def small_model(backbone: str) -> MaskFormer:
    cfg = get_cfg()
    cfg.merge(
        {
            "model": {
                "backbone": {"type": backbone, backbone: BACKBONES[backbone]},
                "sem_seg_head": HEAD,
                "mask_former": FORMER,
            }
        },
        "test",
    )
    model = build_model(cfg, Metadata("five", tuple(Category(i + 1, str(i)) for i in range(CLASSES))))
    assert isinstance(model, MaskFormer)
    return model.eval()


def first(rows: Tensor) -> Tensor:
    """The last row, no-object's, in the first place."""
    return torch.cat([rows[-1:], rows[:-1]])


def tao_twin(official: dict[str, Tensor], lightning: bool) -> dict[str, Tensor]:
    """What TAO would have saved of an official model, written without the code under test."""
    by_class = ("class_embed.weight", "class_embed.bias", "empty_weight")
    twin = {}
    for name, tensor in official.items():
        new = name
        if name.startswith(("backbone.input_stem", "backbone.stages")):
            new = name.replace("backbone.", "backbone.model.")
        if lightning and not name.startswith("criterion."):
            new = f"model.{new}"
        twin[new] = first(tensor) if name.endswith(by_class) else tensor
    return twin


@torch.no_grad()
def probabilities(model: MaskFormer) -> tuple[Tensor, Tensor]:
    """(B, Q, K + 1) of the last layer, and the (B, Q, C) that its class head saw."""
    seen: list[Tensor] = []
    head = model.transformer_decoder.get_submodule("class_embed")
    hook = head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    image = torch.arange(3 * 64 * 96).remainder(251).reshape(3, 64, 96).to(torch.uint8)
    prediction = model.layers(model.preprocess([ModelInput(image=image)]).tensor)[-1]
    hook.remove()
    return prediction.class_logits.softmax(-1), seen[-1]


def loaded(backbone: str, state: dict[str, Tensor]) -> MaskFormer:
    model = small_model(backbone)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing
    assert not unexpected
    return model


@pytest.mark.parametrize("lightning", [True, False], ids=["with Lightning's prefix", "bare"])
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_a_tao_file_gives_the_probabilities_of_its_official_twin(backbone: str, lightning: bool) -> None:
    official = from_m2f(small_model(backbone).state_dict(), "official")
    tao = tao_twin(official, lightning)
    from_official, from_tao = to_m2f(official), to_m2f(tao)
    assert (from_official[1], from_tao[1]) == ("official", "tao")
    expected, _ = probabilities(loaded(backbone, from_official[0]))
    found, queries = probabilities(loaded(backbone, from_tao[0]))
    assert torch.equal(found, expected)
    assert expected.std(-1).min() > 1e-3  # rows in another order would show
    inner = "model." if lightning else ""
    head = [tao[f"{inner}sem_seg_head.predictor.class_embed.{kind}"] for kind in ("weight", "bias")]
    at_home = nn.functional.linear(queries, *head).softmax(-1)[..., 1:]  # TAO's own: all but the first
    torch.testing.assert_close(found[..., :-1], at_home)


def test_a_bare_swin_file_without_class_weights_passes_for_an_official_one() -> None:
    tao = tao_twin(from_m2f(small_model("swin").state_dict(), "official"), lightning=False)
    tao.pop("criterion.empty_weight")
    ours, scheme = to_m2f(tao)
    assert scheme == "official"
    bias = "class_embed.bias"
    assert torch.equal(ours[f"transformer_decoder.{bias}"], tao[f"sem_seg_head.predictor.{bias}"])


def test_a_bare_efficientvit_file_is_known_by_its_prefix() -> None:
    own = small_model("efficientvit").state_dict()
    tao = tao_twin(from_m2f(own, "official"), lightning=False)
    tao.pop("criterion.empty_weight")
    ours, scheme = to_m2f(tao)
    assert scheme == "tao"
    assert not SCHEME_REGISTRY.get("official").recognises(tao)
    assert all(torch.equal(ours[name], own[name]) for name in own)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_official_model_inside_lightning_keeps_its_rows(prefix: str) -> None:
    official = from_m2f(small_model("swin").state_dict(), "official")
    wrapped = {
        (prefix if name.startswith("criterion.") else "model.") + name: tensor for name, tensor in official.items()
    }
    ours, _ = to_m2f(wrapped)
    expected, _ = to_m2f(official)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_an_m2f_model_inside_lightning_keeps_its_rows() -> None:
    own = small_model("swin").state_dict()
    ours, _ = to_m2f({f"model.{name}": tensor for name, tensor in own.items()})
    assert ours.keys() == own.keys()
    assert all(torch.equal(ours[name], own[name]) for name in own)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_what_is_written_is_what_tao_saves(backbone: str) -> None:
    own = small_model(backbone).state_dict()
    written = from_m2f(own, "tao")
    twin = tao_twin(from_m2f(own, "official"), lightning=True)
    assert written.keys() == twin.keys()
    assert all(torch.equal(written[name], twin[name]) for name in twin)
    assert written["criterion.empty_weight"].tolist() == pytest.approx([0.1, 1, 1, 1, 1, 1])
    ours, scheme = to_m2f(written)
    assert scheme == "tao"
    assert all(torch.equal(ours[name], own[name]) for name in own)


@pytest.mark.parametrize(("backbone", "file"), [("swin", "tao_swin_tiny"), ("efficientvit", "tao_efficientvit_b0")])
def test_published_names_and_shapes(backbone: str, file: str) -> None:
    names = json.loads((NAMES / f"{file}.json").read_text())["names"]
    cfg = get_cfg()
    cfg.model.sem_seg_head.num_classes = 133
    cfg.model.backbone.type = backbone
    cfg.model.backbone.efficientvit.name = "b0"
    with torch.device("meta"):
        model = build_model(cfg, Metadata("coco", tuple(Category(i + 1, str(i)) for i in range(133))))
    ours, scheme = to_m2f({name: torch.zeros(()).expand(shape) for name, shape in names.items()})
    assert scheme == "tao"
    missing, unexpected = model.load_state_dict(ours, strict=False, assign=True)
    assert not missing
    classifier = {"backbone.head.weight", "backbone.head.bias"} if backbone == "efficientvit" else set()
    assert set(unexpected) == classifier
    written = {name: list(tensor.shape) for name, tensor in from_m2f(model.state_dict(), "tao").items()}
    assert written == {name: shape for name, shape in names.items() if ".head." not in name}


def test_one_class_is_enough_to_see_who_wrote_it() -> None:
    # The bare Swin-T of NVIDIA's catalogue has one class: two rows, either of which could be no-object's.
    bare = {"sem_seg_head.predictor.class_embed.bias": torch.tensor([1.0, 2.0])}
    for weights, scheme, bias in (([0.1, 1], "tao", [2, 1]), ([1, 0.1], "official", [1, 2])):
        ours, found = to_m2f({**bare, "criterion.empty_weight": torch.tensor(weights)})
        assert found == scheme
        assert ours["transformer_decoder.class_embed.bias"].tolist() == bias


def test_a_backbone_alone() -> None:
    state = {"model.backbone.model.stages.0.op_list.0.conv.weight": torch.zeros(1)}
    assert detect(state) == "tao"
    assert list(to_m2f(state)[0]) == ["backbone.stages.0.op_list.0.conv.weight"]
