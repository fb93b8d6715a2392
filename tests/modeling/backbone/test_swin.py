"""Swin against transformers' Swin, the official outputs, and the formula of its parts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from m2f.config.defaults import get_cfg
from m2f.modeling.backbone.swin import (
    DropPath,
    SwinBlockOptions,
    SwinTransformer,
    WindowAttention,
    from_windows,
    shift_mask,
    to_windows,
)
from m2f.modeling.build import BACKBONE_REGISTRY

_TO_TRANSFORMERS = (
    (r"^patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "swin.embeddings.norm"),
    (r"^layers\.", "swin.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"^norm(\d)", lambda match: f"hidden_states_norms.stage{int(match[1]) + 1}"),
)


def _transformers_state(backbone: SwinTransformer) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in backbone.state_dict().items():
        for pattern, replacement in _TO_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace(".attn.qkv.", f".attention.{letter}_proj.")] = third
        elif name == "absolute_pos_embed":
            state["swin.embeddings.position_embeddings"] = tensor.flatten(2).mT
        else:
            state[name] = tensor
    return state


def _randomised(backbone: SwinTransformer) -> SwinTransformer:
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


@pytest.mark.parametrize(
    ("window_size", "size", "grid"),
    [(7, (97, 130), None), (7, (61, 35), None), (12, (130, 97), None), (12, (48, 48), 12), (5, (76, 76), 19)],
)
def test_equals_transformers(window_size: int, size: tuple[int, int], grid: int | None) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = _randomised(
        SwinTransformer(
            embed_dim=16,
            depths=[2, 2, 2, 2],
            num_heads=[1, 2, 4, 8],
            block=SwinBlockOptions(window_size=window_size),
            position_grid=grid,
        )
    )
    config = transformers.SwinConfig(
        image_size=4 * grid if grid else 224,
        embed_dim=16,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=window_size,
        use_absolute_embeddings=grid is not None,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    reference = transformers.SwinBackbone(config).eval()
    missing, unexpected = reference.load_state_dict(_transformers_state(backbone), strict=False)
    assert not unexpected
    assert all("relative_position_index" in name or name.startswith("swin.layernorm") for name in missing)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        ours, theirs = backbone(x), reference(x).feature_maps
    for feature, expected in zip(ours.values(), theirs, strict=True):
        assert (feature - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.realdata
def test_equals_the_official_swin(oracles: Path) -> None:
    for path in sorted(oracles.glob("*.npz")):
        stored = np.load(path)
        config = json.loads(str(stored["config"]))
        if config["kind"] != "mask2former" or config["backbone"] != "swin":
            continue
        swin = config["swin"]
        backbone = SwinTransformer(
            embed_dim=swin["EMBED_DIM"],
            depths=swin["DEPTHS"],
            num_heads=swin["NUM_HEADS"],
            block=SwinBlockOptions(window_size=swin["WINDOW_SIZE"]),
            patch_norm=swin["PATCH_NORM"],
            position_grid=swin["PRETRAIN_IMG_SIZE"] // 4 if swin["APE"] else None,
        ).eval()
        prefix = "weights/backbone."
        weights = {key.removeprefix(prefix): torch.from_numpy(stored[key]) for key in stored if key.startswith(prefix)}
        backbone.load_state_dict({k: v for k, v in weights.items() if not k.endswith("relative_position_index")})
        with torch.no_grad():
            features = backbone(torch.from_numpy(stored["padded"]))
        for name, feature in features.items():
            expected = torch.from_numpy(stored[f"backbone/{name}"])
            assert (feature - expected).abs().max() < 1e-5 * expected.abs().max(), (path.name, name)


def test_position_table_is_resized_to_the_image() -> None:
    backbone = _randomised(
        SwinTransformer(embed_dim=4, depths=[1] * 4, num_heads=[1] * 4, position_grid=6, out_features=["res2"])
    )
    seen = []
    backbone.pos_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    x = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        backbone(x)
        patches = backbone.patch_embed(x)
        table = F.interpolate(backbone.absolute_pos_embed, size=(10, 13), mode="bicubic", align_corners=False)
    assert torch.equal(seen[0], patches + table.permute(0, 2, 3, 1))


@pytest.mark.parametrize("with_mask", [False, True])
def test_window_attention_is_the_formula_forward_and_backward(with_mask: bool) -> None:
    attention = WindowAttention(8, 2, SwinBlockOptions(window_size=3, qk_scale=0.4)).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    windows = torch.randn(2, 4, 9, 8, dtype=torch.double)
    apart = shift_mask(6, 6, 3, torch.device("cpu")).double() if with_mask else None

    def formula() -> torch.Tensor:
        q, k, v = attention.qkv(windows).view(2, 4, 9, 3, 2, 4).permute(3, 0, 1, 4, 2, 5)
        logits = 0.4 * q @ k.mT + attention.relative_position_bias_table[attention.relative_position_index].permute(
            2, 0, 1
        )
        if apart is not None:
            logits = logits + apart[None, :, None]
        return attention.proj((logits.softmax(-1) @ v).transpose(2, 3).flatten(-2))

    results = []
    for out in (attention(windows, apart), formula()):
        gradients = torch.autograd.grad(out.square().sum(), list(attention.parameters()))
        results.append((out, *gradients))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(5, 9), (4, 4), (12, 8)])
def test_shift_mask_joins_exactly_the_neighbours(size: tuple[int, int]) -> None:
    window, shift = 4, 2
    padded = [side + -side % window for side in size]
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in padded), indexing="ij")
    places = torch.stack([rows, columns], dim=-1)[None]
    tokens = to_windows(torch.roll(places, (-shift, -shift), (1, 2)), window)[0]  # (n, T, 2): where each came from
    seats = to_windows(places[:, :window, :window].contiguous(), window)[0]  # (1, T, 2): where it is in its window
    near = (tokens[:, :, None] - tokens[:, None] == seats[:, :, None] - seats[:, None]).all(-1)
    assert torch.equal(shift_mask(*size, window, torch.device("cpu")) == 0, near)


def test_a_mask_made_in_evaluation_serves_training() -> None:
    backbone = SwinTransformer(embed_dim=4, depths=[2] * 4, num_heads=[1] * 4)
    x = torch.randn(1, 3, 41, 43)
    with torch.inference_mode():
        backbone.eval()(x)
    backbone.train()(x)["res5"].sum().backward()


def test_windows_there_and_back() -> None:
    x = torch.randn(2, 6, 9, 5)
    windows = to_windows(x, 3)
    assert torch.equal(windows[0, 4], x[0, 3:6, 3:6].reshape(9, 5))
    assert torch.equal(from_windows(windows, 3, 6, 9), x)


def test_drop_path_keeps_the_mean_and_whole_samples() -> None:
    drop = DropPath(0.25).train()
    out = drop(torch.ones(20000, 1, 2))
    assert torch.equal(out[:, 0, 0], out[:, 0, 1])
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs(out.mean() - 1) < 0.02
    assert torch.equal(drop.eval()(torch.ones(3)), torch.ones(3))


def test_drop_path_grows_linearly() -> None:
    backbone = SwinTransformer(embed_dim=4, depths=[1, 2, 1, 1], num_heads=[1] * 4, drop_path_rate=0.4)
    rates = [module.rate for module in backbone.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 27.5), ("small", 48.8), ("base", 86.7), ("large", 195.0), ("huge", 654.9)]
)
def test_published_sizes(name: str, millions: float) -> None:
    cfg = get_cfg()
    cfg.model.backbone.swin.type = name
    with torch.device("meta"):
        backbone = BACKBONE_REGISTRY.build("swin", cfg)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.2)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        SwinTransformer(embed_dim=10, num_heads=[3, 6, 12, 24])
    with pytest.raises(ValueError, match="depths"):
        SwinTransformer(depths=[2, 2, 6])
