"""From any home to any other and back, bit for bit, and what is said and refused on the way."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor

from m2f.checkpoint.loading import read_state
from m2f.checkpoint.writing import HOMES
from m2f.config import CfgNode, dump_spec, load_spec
from m2f.engine.convert import convert
from m2f.engine.run import main
from m2f.modeling.build import build_model
from m2f.structures.metadata import Category, Metadata, contiguous_metadata

CLASSES = contiguous_metadata("toys", [Category(7, "ball"), Category(9, "rug", is_thing=False), Category(11, "car")])
SWIN = {
    "type": "swin",
    "swin": {"type": "custom", "embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 3},
}
RESNET = {
    "type": "resnet",
    "resnet": {"type": "custom", "depth": 18, "stem_channels": 8, "res2_channels": 8, "width": 8},
}
EFFICIENTVIT = {
    "type": "efficientvit",
    "efficientvit": {
        "name": "custom",
        "family": "b",
        "widths": [8, 8, 16, 16, 16],
        "depths": [1, 1, 1, 1, 1],
        "dim": 8,
        "bn_eps": 1e-5,
    },
}
BACKBONES = {"swin": SWIN, "resnet": RESNET, "efficientvit": EFFICIENTVIT}
OUTPUTS = {
    "m2f": "out.pth",
    "official": "out.pkl",
    "huggingface": "folder",
    "tao": "tao.pth",
    "safetensors": "out.safetensors",
}


def tree(backbone: str) -> dict[str, Any]:
    return {
        "model": {
            "backbone": BACKBONES[backbone],
            "sem_seg_head": {
                "num_classes": 3,
                "convs_dim": 32,
                "mask_dim": 16,
                "transformer_enc_layers": 1,
                "encoder_dim_feedforward": 32,
            },
            "mask_former": {
                "hidden_dim": 32,
                "nheads": 4,
                "dim_feedforward": 32,
                "dec_layers": 2,
                "num_object_queries": 5,
                "no_object_weight": 0.25,
            },
        },
    }


def write_spec(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.dump(content))
    return path


def state_of(cfg: CfgNode, metadata: Metadata = CLASSES) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {
        name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in build_model(cfg, metadata).state_dict().items()
    }


class Trained(NamedTuple):
    """A training checkpoint as the trainer writes it, as far as weights go."""

    path: Path
    state: dict[str, Tensor]
    spec: Path


@functools.cache
def content_of(backbone: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_spec(write_spec(Path(folder), tree(backbone)))
    return {
        "model": state_of(cfg),
        "optimizer": {"state": {}},
        "iteration": 10,
        "spec": dump_spec(cfg),
        "metadata": CLASSES.to_dict(),
        "m2f_version": "0.1.0",
    }


def train(folder: Path, backbone: str = "resnet", **more: Any) -> Trained:
    content = {**content_of(backbone), **more}
    path = folder / "model_epoch_004.pth"
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return Trained(path, content["model"], write_spec(folder, tree(backbone)))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Batches that a batch norm has counted aside: frozen ones do not count, and Hugging Face's all do."""
    ours, theirs = ({n: t for n, t in s.items() if not n.endswith("num_batches_tracked")} for s in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """One model in each home."""
    pytest.importorskip("safetensors")

    @functools.cache
    def write(backbone: str, home: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{backbone}-{home}")
        convert(train(folder, backbone).path, home, folder / OUTPUTS[home])
        return folder / OUTPUTS[home]

    return write


WHOLE = [(backbone, a, b) for backbone in ("swin", "resnet") for a in HOMES for b in HOMES]
NAMES = [("efficientvit", a, b) for a in ("official", "tao") for b in HOMES if b != "huggingface"]


@pytest.mark.parametrize(("backbone", "first", "second"), WHOLE + NAMES)
def test_there_and_on_and_back_is_the_same_bit_for_bit(
    at_home: Callable[[str, str], Path], tmp_path: Path, backbone: str, first: str, second: str
) -> None:
    needs_spec = second == "huggingface" and first in ("official", "tao", "safetensors")
    spec = write_spec(tmp_path, tree(backbone)) if needs_spec else None
    convert(at_home(backbone, first), second, tmp_path / OUTPUTS[second], spec=spec)
    state, info = read_state(tmp_path / OUTPUTS[second])
    assert equal(state, content_of(backbone)["model"])
    if not {"official", "tao"} & {first, second}:
        assert info.class_names == ("ball", "rug", "car")


@pytest.mark.parametrize("home", HOMES)
def test_back_in_an_m2f_checkpoint(at_home: Callable[[str, str], Path], tmp_path: Path, home: str) -> None:
    done = convert(at_home("swin", home), "m2f", tmp_path / "back.pth", spec=write_spec(tmp_path, tree("swin")))
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], content_of("swin")["model"])
    assert done.adapted == ()


def test_weights_alone_are_renamed_without_a_spec(tmp_path: Path) -> None:
    path, state, _ = train(tmp_path, spec=None, metadata=None, optimizer=None)
    done = convert(path, "tao", tmp_path / "tao.pth")
    assert done.lines() == [
        f"read {len(state)} tensors from {path} (m2f names)",
        f"wrote {tmp_path / 'tao.pth'}: {len(state) + 1} tensors for tao, 3 classes",
        "dropped: iteration",
    ]
    assert equal(read_state(tmp_path / "tao.pth")[0], state)


def test_three_lines_say_what_a_training_checkpoint_loses(tmp_path: Path) -> None:
    path, state, _ = train(tmp_path)
    assert convert(path, "m2f", tmp_path / "m2f.pth").lines()[1:] == [
        f"wrote {tmp_path / 'm2f.pth'}: {len(state)} tensors for m2f, 3 classes (ball, rug, car)",
        "dropped: optimizer, iteration",
    ]
    assert convert(path, "official", tmp_path / "out.pkl").lines()[1:] == [
        f"wrote {tmp_path / 'out.pkl'}: {len(state) + 1} tensors for official, 3 classes",
        "dropped: optimizer, iteration, spec, metadata",
    ]


def test_a_slim_checkpoint_still_brings_its_spec_and_classes(tmp_path: Path) -> None:
    path, state, _ = train(tmp_path, "swin")
    convert(path, "m2f", tmp_path / "slim.pth")
    assert (tmp_path / "slim.pth").stat().st_size < path.stat().st_size + 2000
    rest = read_state(tmp_path / "slim.pth")[1].rest
    assert rest.keys() == {"m2f_version", "metadata", "spec"}
    assert Metadata.from_dict(rest["metadata"]) == CLASSES
    convert(tmp_path / "slim.pth", "huggingface", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "ball", "1": "rug", "2": "car"}
    assert config["num_queries"] == 5
    assert equal(read_state(tmp_path / "hf")[0], state)


def test_a_hugging_face_folder_brings_its_architecture(tmp_path: Path) -> None:
    path, state, _ = train(tmp_path, "swin")
    convert(path, "huggingface", tmp_path / "hf")
    done = convert(tmp_path / "hf", "m2f", tmp_path / "back.pth")
    assert done.dropped == ()
    assert "3 classes (ball, rug, car; their ids, and which are things, are not known)" in done.written
    assert equal(read_state(tmp_path / "back.pth")[0], state)
    convert(tmp_path / "back.pth", "huggingface", tmp_path / "hf2")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hf", "hf2"))
    assert ours == theirs


def test_hugging_face_needs_to_know_the_architecture(tmp_path: Path) -> None:
    path, _, _ = train(tmp_path, spec=None)
    with pytest.raises(ValueError, match=r"architecture must be known: give the model's spec as --config-file"):
        convert(path, "huggingface", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    convert(path, "huggingface", tmp_path / "hf", spec=tmp_path / "spec.yaml")
    assert (tmp_path / "hf" / "config.json").is_file()


def test_overrides_change_the_spec_that_the_file_brings(tmp_path: Path) -> None:
    path, _, _ = train(tmp_path, "swin")
    done = convert(path, "safetensors", tmp_path / "a.safetensors", overrides=["model.backbone.swin.window_size=5"])
    tables = {
        tuple(t.shape) for name, t in read_state(tmp_path / "a.safetensors")[0].items() if name.endswith("bias_table")
    }
    assert {rows for rows, _ in tables} == {81}
    assert len(done.adapted) == 1
    assert "window" in done.lines()[3]
    with pytest.raises(ValueError, match=r"brings no spec for model.mode=semantic to change; give one as --config"):
        convert(tmp_path / "a.safetensors", "m2f", tmp_path / "b.pth", overrides=["model.mode=semantic"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.mask_former.num_object_queries=9", "5 queries.* 9|9.* 5"),
        ("model.sem_seg_head.num_classes=4", "the file has 3 classes and the model 4"),
        ("model.mask_former.dec_layers=3", "ends at 0 in the file and at 1 in the model"),
        ("model.sem_seg_head.mask_dim=24", r"\(24,|24, "),
        ("model.backbone.type=nothing", "nothing"),
    ],
)
def test_what_does_not_fit_the_spec_is_not_written(tmp_path: Path, override: str, message: str) -> None:
    path, _, _ = train(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(path, "official", tmp_path / "out.pkl", spec=tmp_path / "spec.yaml", overrides=[override])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model_epoch_004.pth", "spec.yaml"]


def test_code_that_a_weight_file_names_is_not_run(tmp_path: Path) -> None:
    project = tmp_path / "project.py"
    project.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    path, _, _ = train(tmp_path, spec=f"_PROJECTS_: [{project}]\n" + yaml.dump(tree("resnet")))
    with pytest.raises(ValueError, match=r"the spec inside .*model_epoch_004.pth has _PROJECTS_, and .* is not run"):
        convert(path, "m2f", tmp_path / "out.pth")
    assert not (tmp_path / "ran").exists()


def test_a_mistake_in_a_stored_spec_names_the_file(tmp_path: Path) -> None:
    path, _, _ = train(tmp_path, spec="model: {backbon: {}}\n")
    with pytest.raises(ValueError, match=r"^the spec inside .*model_epoch_004.pth: unknown key 'model.backbon'"):
        convert(path, "m2f", tmp_path / "out.pth")


def test_a_backbone_stays_a_backbone(tmp_path: Path) -> None:
    _, state, _ = train(tmp_path, "swin")
    backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    bare = {name.removeprefix("backbone."): tensor for name, tensor in backbone.items()}
    torch.save({"model": {**bare, "head.weight": torch.zeros(2, 2)}}, tmp_path / "swin.pth")
    done = convert(tmp_path / "swin.pth", "m2f", tmp_path / "a.pth", spec=tmp_path / "spec.yaml")
    assert done.lines()[1:] == [
        f"wrote {tmp_path / 'a.pth'}: {len(backbone)} tensors for m2f, no class head",
        "dropped: 1 tensor (backbone.head.weight)",
    ]
    assert equal(read_state(tmp_path / "a.pth")[0], backbone)
    for home in ("official", "huggingface", "tao"):
        with pytest.raises(ValueError, match=rf"{home} files hold whole models, .* lack pixel_decoder and transf"):
            convert(tmp_path / "swin.pth", home, tmp_path / OUTPUTS[home], spec=tmp_path / "spec.yaml")
        assert not (tmp_path / OUTPUTS[home]).exists()


def test_a_timm_backbone_is_recognised_by_its_spec(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", features_only=True)
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    content = tree("resnet")
    content["model"]["backbone"] = {"type": "timm", "timm": {"name": "resnet10t"}}
    done = convert(tmp_path / "timm.pth", "m2f", tmp_path / "a.pth", spec=write_spec(tmp_path, content))
    assert "no class head" in done.written
    back = read_state(tmp_path / "a.pth")[0]
    assert all(torch.equal(back[f"backbone.network.{name}"], t) for name, t in network.state_dict().items())


def with_names(names: list[str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name, "isthing": 0} for number, name in enumerate(names, start=1)]


def test_the_data_of_the_spec_names_classes_without_its_images(tmp_path: Path) -> None:
    path, _, _ = train(tmp_path, metadata=None)
    (tmp_path / "labels.json").write_text(json.dumps(with_names(["sky", "road", "tree"])))
    content = tree("resnet")
    content["dataset"] = {
        "label_map": str(tmp_path / "labels.json"),
        "val": {"type": "ade", "img_dir": str(tmp_path / "absent"), "mask_dir": str(tmp_path / "absent")},
    }
    spec = write_spec(tmp_path, content)
    done = convert(path, "m2f", tmp_path / "named.pth", spec=spec)
    assert "3 classes (sky, road, tree)" in done.written
    metadata = read_state(tmp_path / "named.pth")[1].rest["metadata"]
    assert [category.is_thing for category in Metadata.from_dict(metadata).categories] == [False] * 3


def test_nameless_classes_are_said_to_be_so(tmp_path: Path) -> None:
    path, state, _ = train(tmp_path, metadata=None)
    done = convert(path, "huggingface", tmp_path / "hf")
    assert "3 classes, which config.json calls LABEL_0 and so on: neither the file nor the data" in done.written
    done = convert(path, "m2f", tmp_path / "a.pth")
    assert "3 classes: neither the file nor the data of a spec names them" in done.written
    assert read_state(tmp_path / "hf")[1].class_names is None
    assert equal(read_state(tmp_path / "hf")[0], state)


def test_names_of_other_data_do_not_win_over_those_of_the_file(tmp_path: Path) -> None:
    path, _, _ = train(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(with_names(["sky", "road", "tree"])))
    content = tree("resnet")
    content["dataset"] = {"label_map": str(tmp_path / "labels.json"), "val": {"type": "ade", "img_dir": "x"}}
    convert(path, "huggingface", tmp_path / "hf", spec=write_spec(tmp_path, content))
    assert read_state(tmp_path / "hf")[1].class_names == ("ball", "rug", "car")


def test_the_loss_weight_of_no_object_comes_from_the_spec(tmp_path: Path) -> None:
    path, _, _ = train(tmp_path)
    convert(path, "tao", tmp_path / "tao.pth")
    saved = torch.load(tmp_path / "tao.pth", weights_only=True)["state_dict"]["criterion.empty_weight"]
    assert saved.tolist() == [0.25, 1, 1, 1]


def test_an_output_that_is_there_is_refused_before_the_input_is_read(tmp_path: Path) -> None:
    (tmp_path / "out.pth").write_text("precious")
    with pytest.raises(FileExistsError, match=r"out\.pth is there already"):
        convert(tmp_path / "absent.pth", "m2f", tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_text() == "precious"


SMALL_SWIN = [
    "model.backbone.type=swin",
    *(f"model.backbone.swin.{key}={value}" for key, value in SWIN["swin"].items()),
]


def test_a_run_evaluates_as_before_in_every_home(spec_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    command = ["-e", str(spec_file), *SMALL_SWIN, "evaluate.tasks=[semantic]"]
    assert main([*command, "train.max_iters=1", "dataset.val.name="]) == 0
    latest = tmp_path / "results" / "train" / "mask2former_model_latest.pth"
    found = []
    for source in (latest, *(tmp_path / home / OUTPUTS[home] for home in HOMES)):
        if source is not latest:
            convert(latest, source.parent.name, source)
        assert main([*command, "--eval-only", "dataset.train.name=", f"evaluate.checkpoint={source}"]) == 0
        found.append((tmp_path / "results" / "evaluate" / "results.json").read_text())
    assert len(set(found)) == 1
    assert any(value > 1 for value in json.loads(found[0])["shapes_panoptic_val"].values())  # per cent
