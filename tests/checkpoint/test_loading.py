"""Reading weight files, and what the report and the refusals say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.convert import m2f_to_official
from m2f.checkpoint.loading import load_weights, read_state


class Model(nn.Module):
    """The part names of a MaskFormer around small layers."""

    def __init__(self, num_classes: int = 4, queries: int = 5, width: int = 6) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, width, 4)})})
        self.backbone["norm0"] = nn.BatchNorm2d(width)
        self.pixel_decoder = nn.ModuleDict({"mask_features": nn.Conv2d(6, 6, 1), "layer_1": nn.Conv2d(6, 6, 1)})
        decoder = {"query_feat": nn.Embedding(queries, 6), "query_embed": nn.Embedding(queries, 6)}
        self.transformer_decoder = nn.ModuleDict({**decoder, "class_embed": nn.Linear(6, num_classes + 1)})
        self.transformer_decoder["norm"] = nn.LayerNorm(6)


CLASS_HEAD = {"transformer_decoder.class_embed.weight", "transformer_decoder.class_embed.bias"}
QUERIES = {"transformer_decoder.query_feat.weight", "transformer_decoder.query_embed.weight"}


def _equal(model: nn.Module, other: nn.Module, names: set[str] | None = None) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in (ours if names is None else names))


def _files(model: nn.Module) -> dict[str, dict]:
    own = model.state_dict()
    official = m2f_to_official(own)
    tao = {f"model.{name}": t.roll(1, 0) if "class_embed" in name else t for name, t in official.items()}
    return {
        "m2f": {"model": own, "iteration": 7, "m2f_version": "0"},
        "official": {"model": official, "trainer": {"iteration": 3}},
        "tao": {"state_dict": tao, "epoch": 2},
        "bare": own,
        "ddp": {f"module.{name}": tensor for name, tensor in own.items()},
    }


@pytest.mark.parametrize("kind", ["m2f", "official", "tao", "bare", "ddp"])
def test_every_kind_of_file_gives_the_same_model(tmp_path: Path, kind: str) -> None:
    source, model = Model(), Model()
    torch.save(_files(source)[kind], tmp_path / "weights.pth")
    report = load_weights(model, tmp_path / "weights.pth")
    assert _equal(model, source)
    assert len(report.loaded) == len(model.state_dict())
    assert not report.fresh
    assert not report.ignored


def test_the_rest_of_a_checkpoint_is_handed_out(tmp_path: Path) -> None:
    torch.save(_files(Model())["m2f"], tmp_path / "a.pth")
    state, info = read_state(tmp_path / "a.pth")
    assert state.keys() == Model().state_dict().keys()
    assert info == {"iteration": 7, "m2f_version": "0", "scheme": "m2f"}


def test_three_lines_tell_what_happened() -> None:
    state = {**Model().state_dict(), "backbone.head.weight": torch.zeros(1)}
    del state["pixel_decoder.layer_1.bias"]
    lines = load_weights(Model(), state).lines()
    assert len(lines) == 3
    assert lines[0].startswith("loaded 16 tensors (backbone.patch_embed.proj.weight, ")
    assert "1 tensor (pixel_decoder.layer_1.bias)" in lines[1]
    assert "1 tensor (backbone.head.weight)" in lines[2]


@pytest.mark.parametrize(
    ("other", "fresh"),
    [
        ({"num_classes": 9}, CLASS_HEAD),
        ({"queries": 3}, QUERIES),
        ({"num_classes": 2, "queries": 8}, CLASS_HEAD | QUERIES),
    ],
)
def test_other_classes_or_queries_stay_fresh_and_are_reported(other: dict[str, int], fresh: set[str]) -> None:
    source, model = Model(**other), Model()
    before = {name: model.state_dict()[name].clone() for name in fresh}
    report = load_weights(model, source.state_dict())
    assert set(report.fresh) == set(report.ignored) == fresh
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert _equal(model, source, set(model.state_dict()) - fresh)


def test_another_shape_is_an_error_and_changes_nothing() -> None:
    model, untouched = Model(), Model()
    untouched.load_state_dict(model.state_dict())
    message = (
        r"patch_embed.proj.\w+ has shape \(9.*the model's has \(6|norm0.* has shape \(9,\), the model's has \(6,\)"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(model, Model(width=9).state_dict())
    assert _equal(model, untouched)


def test_a_part_that_would_stay_fresh_is_refused() -> None:
    state = {
        name.replace("patch_embed", "other").replace("norm0", "another"): t for name, t in Model().state_dict().items()
    }
    with pytest.raises(ValueError, match="holds a backbone, but only 0 of the model's 7 tensors"):
        load_weights(Model(), state)


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight has a name of the model"):
        load_weights(nn.Linear(2, 2), Model().state_dict())


def test_missing_parts_are_fresh() -> None:
    state = {name: t for name, t in Model().state_dict().items() if name.startswith("backbone.")}
    model = Model()
    report = load_weights(model, state)
    assert {name.split(".")[0] for name in report.fresh} == {"pixel_decoder", "transformer_decoder"}


def test_only_the_backbone() -> None:
    source, model = Model(), Model()
    report = load_weights(model, source.state_dict(), part="backbone")
    backbone = {name for name in model.state_dict() if name.startswith("backbone.")}
    assert set(report.loaded) == backbone
    assert not report.fresh
    assert not report.ignored
    assert _equal(model, source, backbone)
    assert not _equal(model, source)


def test_imagenet_weights_of_a_backbone(tmp_path: Path) -> None:
    source, model = Model(), Model()
    microsoft = {name: t for name, t in source.backbone.state_dict().items() if "num_batches" not in name}
    torch.save({"model": {**microsoft, "head.weight": torch.zeros(2, 2)}}, tmp_path / "swin.pth")
    report = load_weights(model, tmp_path / "swin.pth", part="backbone")
    assert report.scheme == "swin"
    assert not report.fresh
    assert report.ignored == ("backbone.head.weight",)
    assert torch.equal(model.backbone["patch_embed"]["proj"].weight, source.backbone["patch_embed"]["proj"].weight)


def test_a_file_without_the_wanted_part_is_refused() -> None:
    state = {name: t for name, t in Model().state_dict().items() if not name.startswith("backbone.")}
    with pytest.raises(ValueError, match="holds no weights of the backbone"):
        load_weights(Model(), state, part="backbone")
    with pytest.raises(ValueError, match="part is 'head'"):
        load_weights(Model(), state, part="head")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent.pth does not exist"):
        load_weights(Model(), tmp_path / "absent.pth")


@pytest.mark.parametrize("length", [0, 10, 2000])
def test_truncated_files_are_named(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.pth"
    torch.save(Model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cut.pth: not a readable checkpoint"):
        read_state(path)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save(Model(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"whole.pth: not a readable checkpoint.*save its state dict alone"):
        read_state(tmp_path / "whole.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dict"),
        ({"epoch": 3}, "holds no weights, only epoch"),
        ({"encoder.weight": torch.zeros(1)}, "unknown weight names"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth: {message}"):
        read_state(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_formats_of_other_libraries_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{suffix} files are not read"):
        read_state(path)


def test_half_precision_weights_are_taken_in_the_models_precision() -> None:
    model = Model()
    state: dict[str, Tensor] = {
        name: t.half() if t.is_floating_point() else t for name, t in Model().state_dict().items()
    }
    load_weights(model, state)
    assert model.pixel_decoder["layer_1"].weight.dtype == torch.float32


def test_a_projects_own_part_names_are_taken(tmp_path: Path) -> None:
    source, model = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    torch.save({"model": source.state_dict(), "m2f_version": "0"}, tmp_path / "a.pth")
    state, _ = read_state(tmp_path / "a.pth")
    assert not load_weights(model, state).fresh
    assert _equal(model, source)
