"""What the containers of each home hold, what their own readers find in them, and that no half of one is ever left."""

from __future__ import annotations

import json
import pickle
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.loading import read_state
from m2f.checkpoint.writing import HOMES, HUGGINGFACE_FILES, Weights, check_target, write_weights
from m2f.config import CfgNode, load_spec
from m2f.modeling.build import build_model
from m2f.structures.metadata import Category, Metadata, contiguous_metadata

CLASSES = contiguous_metadata("toys", [Category(1, "ball"), Category(2, "rug", is_thing=False)])
OUTPUTS = {"m2f": "a.pth", "official": "a.pkl", "huggingface": "a", "tao": "a.pth", "safetensors": "a.safetensors"}
SIZES = [
    "model.backbone.type=swin",
    "model.backbone.swin.type=custom",
    "model.backbone.swin.embed_dim=8",
    "model.backbone.swin.depths=[1,1,1,1]",
    "model.backbone.swin.num_heads=[1,2,2,4]",
    "model.backbone.swin.window_size=3",
    "model.sem_seg_head.num_classes=2",
    "model.sem_seg_head.convs_dim=32",
    "model.sem_seg_head.mask_dim=16",
    "model.sem_seg_head.transformer_enc_layers=1",
    "model.sem_seg_head.encoder_dim_feedforward=32",
    "model.mask_former.hidden_dim=32",
    "model.mask_former.nheads=4",
    "model.mask_former.dim_feedforward=32",
    "model.mask_former.dec_layers=2",
    "model.mask_former.num_object_queries=5",
]


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    return load_spec(None, SIZES)


@pytest.fixture
def weights(cfg: CfgNode) -> Weights:
    pytest.importorskip("safetensors")
    state = {name: torch.randn_like(tensor) for name, tensor in build_model(cfg, CLASSES).state_dict().items()}
    return Weights(state, tuple(CLASSES.names), CLASSES, cfg)


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextmanager
def full_disk(free: int = 20_000) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("home", HOMES)
def test_what_is_written_is_read_as_it_was(weights: Weights, tmp_path: Path, home: str) -> None:
    target = tmp_path / "new" / "folders" / OUTPUTS[home]
    count = write_weights(weights, home, target)
    state, info = read_state(target)
    assert equal(state, weights.state)
    assert count >= len(state)
    assert info.scheme == ("m2f" if home == "safetensors" else home)
    assert info.class_names == (None if home in ("official", "tao") else ("ball", "rug"))


@pytest.mark.parametrize("home", ["m2f", "safetensors"])
def test_all_that_is_known_of_the_classes_comes_back(weights: Weights, tmp_path: Path, home: str) -> None:
    from m2f.checkpoint.class_names import m2f_metadata

    write_weights(weights, home, tmp_path / OUTPUTS[home])
    assert m2f_metadata(read_state(tmp_path / OUTPUTS[home])[1].rest) == CLASSES
    names_alone = Weights(weights.state, ("x", "y"))
    write_weights(names_alone, home, tmp_path / OUTPUTS[home], overwrite=True)
    info = read_state(tmp_path / OUTPUTS[home])[1]
    assert info.class_names == ("x", "y")
    assert m2f_metadata(info.rest) is None


def test_an_m2f_file_is_a_checkpoint_without_training_state(weights: Weights, tmp_path: Path) -> None:
    write_weights(weights, "m2f", tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content.keys() == {"model", "m2f_version", "metadata", "spec"}
    assert Metadata.from_dict(content["metadata"]) == CLASSES


def test_a_zoo_file_is_numpy_arrays_that_detectron2_knows_as_its_own(weights: Weights, tmp_path: Path) -> None:
    write_weights(weights, "official", tmp_path / "a.pkl")
    with (tmp_path / "a.pkl").open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy 2 on the old name of its core
        content = pickle.load(file, encoding="latin1")
    assert content.keys() == {"model", "__author__"}
    assert all(isinstance(array, np.ndarray) and array.flags.writeable for array in content["model"].values())
    ours = weights.state["transformer_decoder.query_feat.weight"]
    assert np.array_equal(content["model"]["sem_seg_head.predictor.query_feat.weight"], ours.numpy())
    raw = (tmp_path / "a.pkl").read_bytes()
    assert b"numpy.core.multiarray" in raw  # which numpy 1 and 2 know
    assert b"numpy._core" not in raw


class _Head(nn.Module):
    """A head that renames what says to be older, as the official one does."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.pixel_decoder = nn.ModuleDict({"mask_features": nn.Conv2d(32, 16, 1)})
        self.seen: list[Any] = []

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any) -> None:
        self.seen.append(local_metadata.get("version"))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_the_official_head_is_told_that_its_names_are_the_new_ones(weights: Weights, tmp_path: Path, name: str) -> None:
    write_weights(weights, "official", tmp_path / name)
    with (tmp_path / name).open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        content = pickle.load(file, encoding="latin1") if name == "a.pkl" else torch.load(file, weights_only=True)
    state = content["model"]
    for key in list(state):
        state[key] = torch.as_tensor(state[key])
    model = nn.ModuleDict({"sem_seg_head": _Head()})
    model.load_state_dict(state, strict=False)
    assert model["sem_seg_head"].seen == [2]
    ours = weights.state["pixel_decoder.mask_features.weight"]
    assert torch.equal(model["sem_seg_head"].pixel_decoder["mask_features"].weight, ours)


def test_half_precision_that_numpy_lacks_becomes_float32(weights: Weights, tmp_path: Path) -> None:
    brief = Weights({name: tensor.bfloat16() for name, tensor in weights.state.items()}, cfg=weights.cfg)
    write_weights(brief, "official", tmp_path / "a.pkl")
    state, _ = read_state(tmp_path / "a.pkl")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert equal(state, {name: tensor.float() for name, tensor in brief.state.items()})


def test_a_tao_file_is_what_lightning_opens(weights: Weights, tmp_path: Path) -> None:
    write_weights(weights, "tao", tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content.keys() == {"state_dict", "epoch", "global_step", "pytorch-lightning_version"}
    state, ours = content["state_dict"], weights.state["transformer_decoder.class_embed.bias"]
    assert {name for name in state if not name.startswith("model.")} == {"criterion.empty_weight"}
    assert torch.equal(state["model.sem_seg_head.predictor.class_embed.bias"], ours[[2, 0, 1]])
    assert torch.equal(state["criterion.empty_weight"], torch.tensor([0.1, 1, 1]))


def test_the_header_of_a_safetensors_file_says_what_it_is(weights: Weights, tmp_path: Path) -> None:
    from safetensors import safe_open

    write_weights(weights, "safetensors", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["scheme"] == "m2f"
    assert json.loads(header["class_names"]) == ["ball", "rug"]


def test_others_may_read_what_the_umask_lets_them(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    for home in HOMES:
        target = tmp_path / home / OUTPUTS[home]
        write_weights(weights, home, target)
        for path in target.iterdir() if target.is_dir() else [target]:
            assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_hugging_face_folder_has_its_three_files(weights: Weights, tmp_path: Path) -> None:
    write_weights(weights, "huggingface", tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {*HUGGINGFACE_FILES}
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["id2label"] == {"0": "ball", "1": "rug"}
    assert config["architectures"] == ["Mask2FormerForUniversalSegmentation"]


def test_a_view_does_not_bring_along_what_it_is_a_view_of(weights: Weights, tmp_path: Path) -> None:
    large: dict[str, Tensor] = {
        name: torch.zeros(2, 100_000)[0, : t.numel()].view(t.shape) for name, t in weights.state.items()
    }
    for home in ("m2f", "safetensors"):
        write_weights(Weights(large), home, tmp_path / OUTPUTS[home])
        assert (tmp_path / OUTPUTS[home]).stat().st_size < 1_000_000


@pytest.mark.parametrize("home", HOMES)
def test_a_disk_that_is_full_leaves_nothing_behind(weights: Weights, tmp_path: Path, home: str) -> None:
    target = tmp_path / OUTPUTS[home]
    with full_disk(), pytest.raises(OSError, match=r"cannot be written, and is as it was"):
        write_weights(weights, home, target)
    assert list(tmp_path.iterdir()) == []
    write_weights(weights, home, target)
    before = read_state(target)[0]
    with full_disk(), pytest.raises(OSError, match=r"cannot be written, and is as it was"):
        write_weights(weights, home, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert equal(read_state(target)[0], before)


def test_a_folder_is_not_begun_for_a_model_that_has_no_place_in_it(weights: Weights, tmp_path: Path) -> None:
    other = load_spec(None, [*SIZES, "model.sem_seg_head.norm=BN"])
    with pytest.raises(ValueError, match=r"sem_seg_head\.norm is 'BN', which Hugging Face's Mask2Former does not have"):
        write_weights(Weights(weights.state, cfg=other), "huggingface", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_written_where_parts_are_kept(weights: Weights, tmp_path: Path) -> None:
    backbone = Weights({name: t for name, t in weights.state.items() if name.startswith("backbone.")})
    assert backbone.missing_parts() == ["pixel_decoder", "transformer_decoder"]
    for home in ("m2f", "safetensors"):
        write_weights(backbone, home, tmp_path / OUTPUTS[home])
        assert equal(read_state(tmp_path / OUTPUTS[home])[0], backbone.state)
    for home in ("official", "tao", "huggingface"):
        message = rf"{home} files hold whole models, and these weights lack pixel_decoder and transformer_decoder"
        with pytest.raises(ValueError, match=message):
            write_weights(backbone, home, tmp_path / "no" / OUTPUTS[home])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("home", "name", "message"),
    [
        ("m2f", "a.safetensors", r"a file for m2f ends in .pth or .pt"),
        ("official", "a", r"a file for official ends in .pkl or .pth"),
        ("tao", "a.pkl", r"a file for tao ends in .pth"),
        ("safetensors", "a.pth", r"a file for safetensors ends in .safetensors"),
        ("huggingface", "model.safetensors", r"for huggingface a folder is written"),
        (
            "detectron",
            "a.pkl",
            r"weights are written as m2f, official, huggingface, tao, safetensors, not as 'detectron",
        ),
    ],
)
def test_the_name_of_the_output_must_suit_its_home(tmp_path: Path, home: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_target(home, tmp_path / name)


def test_what_is_there_is_replaced_on_demand_alone(weights: Weights, tmp_path: Path) -> None:
    for home in HOMES:
        target = tmp_path / home / OUTPUTS[home]
        write_weights(weights, home, target)
        with pytest.raises(FileExistsError, match=r"is there already; remove it, name another output, or add --over"):
            write_weights(weights, home, target)
        write_weights(Weights(weights.state, ("new", "names"), cfg=weights.cfg), home, target, overwrite=True)
        assert read_state(target)[1].class_names in (None, ("new", "names"))


def test_a_folder_of_other_things_is_never_replaced(weights: Weights, tmp_path: Path) -> None:
    write_weights(weights, "huggingface", tmp_path / "a")
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"a holds thesis.tex as well: only a folder of config.json"):
        write_weights(weights, "huggingface", tmp_path / "a", overwrite=True)
    (tmp_path / "b.pth").mkdir()
    with pytest.raises(FileExistsError, match=r"b.pth is a folder; name a file"):
        write_weights(weights, "tao", tmp_path / "b.pth", overwrite=True)
    (tmp_path / "c").write_text("a file")
    with pytest.raises(FileExistsError, match=r"c is a file: only a folder"):
        write_weights(weights, "huggingface", tmp_path / "c", overwrite=True)
    assert (tmp_path / "a" / "thesis.tex").is_file()
