"""The one door: what is read, what the report and the refusals say, and that a refusal changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.loading import LoadReport, load_state, load_weights, read_state
from m2f.checkpoint.schemes import from_m2f
from m2f.modeling.backbone.swin import SwinBlockOptions, SwinTransformer
from m2f.structures.metadata import Category, Metadata


class Model(nn.Module):
    """The part names of a MaskFormer around small layers."""

    def __init__(self, classes: str = "abcd", queries: int = 5, width: int = 6) -> None:
        super().__init__()
        self.metadata = Metadata("toy", tuple(Category(i, name) for i, name in enumerate(classes)))
        self.backbone = nn.ModuleDict({"patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, width, 4)})})
        self.backbone["norm0"] = nn.BatchNorm2d(width)
        self.pixel_decoder = nn.ModuleDict({"mask_features": nn.Conv2d(6, 6, 1), "layer_1": nn.Conv2d(6, 6, 1)})
        decoder = {"query_feat": nn.Embedding(queries, 6), "query_embed": nn.Embedding(queries, 6)}
        self.transformer_decoder = nn.ModuleDict({**decoder, "class_embed": nn.Linear(6, len(classes) + 1)})
        self.transformer_decoder["norm"] = nn.LayerNorm(6)


CLASS_HEAD = {"transformer_decoder.class_embed.weight", "transformer_decoder.class_embed.bias"}


def _equal(model: nn.Module, other: nn.Module, names: set[str] | None = None) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in (ours if names is None else names))


def _files(model: nn.Module) -> dict[str, dict]:
    own = model.state_dict()
    official = from_m2f(own, "official")
    return {
        "m2f": {"model": own, "iteration": 7, "m2f_version": "0"},
        "official": {"model": official, "trainer": {"iteration": 3}},
        "tao": {"state_dict": from_m2f(own, "tao"), "epoch": 2},
        "bare": own,
        "ddp": {f"module.{name}": tensor for name, tensor in own.items()},
    }


# Reading.


@pytest.mark.parametrize("kind", ["m2f", "official", "tao", "bare", "ddp"])
def test_every_kind_of_file_gives_the_same_model(tmp_path: Path, kind: str) -> None:
    source, model = Model(), Model()
    torch.save(_files(source)[kind], tmp_path / "weights.pth")
    report = load_weights(model, tmp_path / "weights.pth", complete=True)
    assert _equal(model, source)
    assert report.scheme == (kind if kind in ("official", "tao") else "m2f")
    assert len(report.loaded) == len(model.state_dict())
    assert (report.fresh, report.ignored, report.adapted) == ((), (), ())


def test_the_rest_of_a_checkpoint_is_handed_out(tmp_path: Path) -> None:
    metadata = Model("xy").metadata.to_dict()
    torch.save({**_files(Model())["m2f"], "metadata": metadata}, tmp_path / "a.pth")
    state, info = read_state(tmp_path / "a.pth")
    assert state.keys() == Model().state_dict().keys()
    assert info.rest == {"iteration": 7, "m2f_version": "0", "metadata": metadata}
    assert (info.source, info.scheme, info.class_names) == (str(tmp_path / "a.pth"), "m2f", ("x", "y"))


def test_other_spellings_of_a_name_are_found(tmp_path: Path) -> None:
    source, model = Model(), Model()
    torch.save(_files(source)["m2f"], tmp_path / "model_epoch_049.pth")
    load_weights(model, str(tmp_path / "model_epoch=049.pth"))
    assert _equal(model, source)


def _swin(window_size: int) -> nn.Module:
    block = SwinBlockOptions(window_size=window_size)
    backbone = SwinTransformer(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), block=block)
    return nn.ModuleDict({"backbone": backbone})


def test_imagenet_weights_of_a_backbone(tmp_path: Path) -> None:
    """As Microsoft's classifiers have them: with a head and index tables, and without a norm for each map."""
    source, model = _swin(2), _swin(3)
    weights = {name: t for name, t in source["backbone"].state_dict().items() if not name.startswith("norm")}
    more = {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64), "head.weight": torch.ones(10, 64)}
    index = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.int64)}
    torch.save({"model": {**weights, **more, **index}}, tmp_path / "swin.pth")
    report = load_weights(model, tmp_path / "swin.pth", part="backbone")
    assert report.scheme == "swin"
    assert set(report.fresh) == {f"backbone.norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert report.ignored == ("backbone.norm.weight", "backbone.norm.bias", "backbone.head.weight")
    assert report.lines()[3:] == ["relative position tables: 4 from window 2 to 3, bicubic"]
    loaded = {name for name in report.loaded if not name.endswith("_table")}
    assert len(loaded) == len(weights) - 4
    assert _equal(model, source, loaded)


@pytest.mark.parametrize("has_version", [True, False])
def test_a_projects_own_part_names_are_taken(tmp_path: Path, has_version: bool) -> None:
    source, model = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    content = {"model": source.state_dict(), **({"m2f_version": "0"} if has_version else {})}
    torch.save(content, tmp_path / "a.pth")
    assert not load_weights(model, tmp_path / "a.pth").fresh
    assert _equal(model, source)


def test_a_projects_safetensors_are_taken(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    source, model = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    save_file({**source.state_dict(), "2.weight": torch.ones(1)}, tmp_path / "a", {"m2f_version": "0"})
    report = load_weights(model, tmp_path / "a")
    assert (report.scheme, report.loaded, report.ignored) == ("m2f", ("0.weight", "0.bias"), ("2.weight",))
    save_file({**source.state_dict(), "2.weight": torch.ones(1)}, tmp_path / "b")
    with pytest.raises(ValueError, match="b: unknown weight names"):
        load_weights(model, tmp_path / "b")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent.pth"):
        load_weights(Model(), tmp_path / "absent.pth")


@pytest.mark.parametrize("length", [0, 10, 2000])
def test_truncated_files_are_named(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.pth"
    torch.save(Model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cut.pth"):
        read_state(path)


def test_unknown_names_are_named(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth: unknown weight names \(encoder.weight"):
        read_state(tmp_path / "a.pth")


@pytest.mark.parametrize("weights", [3, None, [("a", torch.zeros(1))], {}, {"a": 1}, {"model": {"a": torch.zeros(1)}}])
def test_what_is_no_weights_at_all_is_a_type_error(weights: Any) -> None:
    with pytest.raises(TypeError, match=r"give a path or a state dict|a state dict maps names to tensors"):
        read_state(weights)


# The report.


def test_three_lines_tell_what_happened() -> None:
    state = {**Model().state_dict(), "backbone.head.weight": torch.zeros(1)}
    del state["pixel_decoder.layer_1.bias"]
    lines = load_weights(Model(), state).lines()
    assert len(lines) == 3
    assert lines[0].startswith("loaded 16 tensors (backbone.patch_embed.proj.weight, ")
    assert lines[0].endswith("from a state dict (m2f names); class rows by their place, as not both sides name them")
    assert lines[1] == "left at their initial values: 1 tensor (pixel_decoder.layer_1.bias)"
    assert lines[2] == "in the file, not used: 1 tensor (backbone.head.weight)"


def test_a_line_more_for_each_rule() -> None:
    source, model = Model(queries=8), Model()
    state, info = read_state(source.state_dict())
    report = load_state(model, state, info)
    assert report.lines()[3:] == ["queries: the first 5 of 8"]
    assert not report.fresh
    assert not report.ignored
    ours, theirs = model.transformer_decoder, source.transformer_decoder
    assert torch.equal(ours["query_feat"].weight, theirs["query_feat"].weight[:5])


def test_class_names_come_from_the_file(tmp_path: Path) -> None:
    source, model = Model("dxa"), Model("abcd")
    torch.save({**_files(source)["m2f"], "metadata": source.metadata.to_dict()}, tmp_path / "a.pth")
    report = load_weights(model, tmp_path / "a.pth")
    assert report.adapted == ("class head: 2 of 4 rows by category name, fresh: b, c; not used of the file's: x",)
    assert report.lines()[0].endswith("a.pth (m2f names)")
    assert torch.equal(
        model.transformer_decoder["class_embed"].weight[[3, 0, 4]],
        source.transformer_decoder["class_embed"].weight[[0, 2, 3]],
    )


def test_a_folder_says_its_classes_in_its_config(tmp_path: Path) -> None:
    source, model = Model("abcd"), Model("dcba")
    torch.save(from_m2f(source.state_dict(), "official"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate("ABCD"))}))
    report = load_weights(model, tmp_path, complete=True)
    assert report.adapted == ("class head: 4 rows by category name, as the order of the classes is another",)
    ours, theirs = (m.transformer_decoder["class_embed"].bias for m in (model, source))
    assert torch.equal(ours, theirs[[3, 2, 1, 0, 4]])


def test_a_class_head_without_names_stays_fresh_and_is_reported() -> None:
    source, model = Model("abcdefg"), Model()
    before = {name: model.state_dict()[name].clone() for name in CLASS_HEAD}
    report = load_weights(model, source.state_dict())
    assert set(report.fresh) == set(report.ignored) == CLASS_HEAD
    assert report.adapted[0].startswith("class head: left at its initial values")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert _equal(model, source, set(model.state_dict()) - CLASS_HEAD)


def test_missing_parts_are_fresh() -> None:
    state = {name: t for name, t in Model().state_dict().items() if name.startswith("backbone.")}
    report = load_weights(Model(), state)
    assert {name.split(".")[0] for name in report.fresh} == {"pixel_decoder", "transformer_decoder"}


def test_only_the_backbone() -> None:
    source, model = Model("xyz", queries=9), Model()
    report = load_weights(model, source.state_dict(), part="backbone")
    backbone = {name for name in model.state_dict() if name.startswith("backbone.")}
    assert set(report.loaded) == backbone
    assert (report.fresh, report.ignored, report.adapted) == ((), (), ())
    assert _equal(model, source, backbone)
    assert not _equal(model, source, {"pixel_decoder.layer_1.weight"})


def test_half_precision_weights_are_taken_in_the_models_precision() -> None:
    source, model = Model(), Model()
    load_weights(model, {name: tensor.half() for name, tensor in source.state_dict().items()}, complete=True)
    assert model.pixel_decoder["layer_1"].weight.dtype == torch.float32
    torch.testing.assert_close(model.state_dict(), source.state_dict(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("has_version", [True, False])
def test_two_names_of_one_tensor_are_refused(tmp_path: Path, has_version: bool) -> None:
    own = Model().state_dict()
    content = {
        "model": {**own, "module.backbone.norm0.bias": torch.ones(6)},
        **({"m2f_version": "0"} if has_version else {}),
    }
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"a.pth: backbone.norm0.bias and module.backbone.norm0.bias are both backbone"
    ):
        load_weights(Model(), tmp_path / "a.pth")


# Refusals: nothing of the model changes.

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _without(*parts: str) -> Change:
    return lambda state: {name: tensor for name, tensor in state.items() if not name.startswith(parts)}


def _renamed(old: str, new: str) -> Change:
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


def _with(name: str, value: Tensor) -> Change:
    return lambda state: {**state, name: value}


REFUSED: dict[str, tuple[Change, dict[str, Any], str]] = {
    "shape": (
        _with("pixel_decoder.layer_1.weight", torch.zeros(6, 9, 1, 1)),
        {},
        r"a state dict: pixel_decoder.layer_1.weight has shape \(6, 9, 1, 1\), the model's has \(6, 6, 1, 1\)",
    ),
    "type": (_with("pixel_decoder.layer_1.bias", torch.zeros(6, dtype=torch.int32)), {}, "layer_1.bias holds integer"),
    "not finite": (_with("backbone.norm0.bias", torch.full((6,), float("nan"))), {}, "norm0.bias has values that are"),
    "another backbone": (
        lambda state: _renamed("norm0", "another")(_renamed("patch_embed", "other")(state)),
        {},
        "holds a backbone, but only 0 of the model's 6 tensors",
    ),
    "renamed keys": (
        _renamed("layer_1", "layer_2"),
        {},
        "holds a pixel_decoder, but only 2 of the model's 4 tensors there; missing pixel_decoder.layer_1.weight",
    ),
    "most of a part gone": (
        _without("pixel_decoder.mask_features", "pixel_decoder.layer_1.weight"),
        {},
        "holds a pixel_decoder, but only 1 of the model's 4 tensors there",
    ),
    "nothing in common": (
        lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()},
        {},
        "no weight has a name of the model",
    ),
    "no such part": (_without("backbone."), {"part": "backbone"}, "a state dict: holds no weights of the backbone"),
    "no part of a model": (_without(), {"part": "head"}, "part is 'head'; it is one of backbone"),
    "incomplete": (
        _without("pixel_decoder."),
        {"complete": True},
        r"a state dict: lacks 4 tensors \(pixel_decoder.*without which the model cannot answer",
    ),
    "other queries": (
        lambda state: {n: t[:3] if "query" in n else t for n, t in state.items()},
        {"complete": True},
        "the file has 3 queries and the model 5",
    ),
    "other classes": (
        lambda state: {n: t[:3] if "class_embed" in n else t for n, t in state.items()},
        {"complete": True},
        "the file has 2 classes and the model 4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_changes_nothing(case: str) -> None:
    change, options, message = REFUSED[case]
    model, untouched = Model(), Model()
    untouched.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_weights(model, change(Model().state_dict()), **options)
    assert _equal(model, untouched)


def test_a_single_renamed_tensor_of_a_large_part_is_reported() -> None:
    """A project may have replaced a module; the report names both sides."""

    class Deep(Model):
        def __init__(self) -> None:
            super().__init__()
            self.pixel_decoder["layers"] = nn.ModuleList(nn.Linear(6, 6) for _ in range(10))

    report = load_weights(Deep(), _renamed("layers.3.bias", "layers.3.offset")(Deep().state_dict()))
    assert isinstance(report, LoadReport)
    assert report.fresh == ("pixel_decoder.layers.3.bias",)
    assert report.ignored == ("pixel_decoder.layers.3.offset",)


def test_a_file_is_named_in_a_refusal(tmp_path: Path) -> None:
    torch.save(Model(width=9).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"wide.pth: backbone.*has shape \(9, 3, 4, 4\), the model's has \(6, 3"):
        load_weights(Model(), tmp_path / "wide.pth")
