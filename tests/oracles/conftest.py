"""Stored answers of the official implementations, one object per file: whatever it says of itself decides the model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.schemes import to_m2f
from m2f.config import CfgNode, get_cfg
from m2f.layers.mask_prediction import MaskPrediction
from m2f.layers.points import FixedPoints
from m2f.modeling.backbone.backbone import Backbone
from m2f.modeling.build import BACKBONE_REGISTRY, build_model
from m2f.modeling.maskformer import MaskFormer
from m2f.modeling.postprocess import DecisionRule, Frame
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata
from m2f.structures.sample import TASKS, ModelInput, ModelOutput

FOLDER = Path(os.environ.get("M2F_ORACLES", Path(__file__).resolve().parents[3] / "shared" / "oracles"))
KINDS = ("mask2former", "postprocess", "efficientvit")

# Keys of the official ResNet section and m2f's; a Swin section has the same words in lower case.
RESNET_KEYS = {
    "DEPTH": "depth",
    "NORM": "norm",
    "STEM_OUT_CHANNELS": "stem_channels",
    "RES2_OUT_CHANNELS": "res2_channels",
    "WIDTH_PER_GROUP": "width",
}


class Oracle:
    """One file, read when first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path) as arrays:
            self.config: dict[str, Any] = json.loads(str(arrays["config"]))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def json(self, name: str) -> Any:
        return json.loads(str(self.arrays[name]))

    def masks(self, name: str) -> Tensor:
        """Masks packed bit by bit, with their shape beside them: (N, H, W) bool."""
        stem, _, image = name.rpartition("/")
        shape = self.arrays[f"{stem}_shape/{image}"].tolist()
        flat = np.unpackbits(self.arrays[name], count=int(np.prod(shape)))
        return torch.from_numpy(flat.reshape(shape)).bool()

    def weights(self) -> dict[str, Tensor]:
        return {k.removeprefix("weights/"): self.tensor(k) for k in self.arrays if k.startswith("weights/")}

    def numbered(self, stem: str) -> list[int]:
        """The numbers i for which there is a `stem/i`."""
        return sorted(int(k.rpartition("/")[2]) for k in self.arrays if k.rpartition("/")[0] == stem)

    def rule(self) -> DecisionRule:
        return DecisionRule(self.config["object_mask_threshold"], self.config["overlap_threshold"], self.config["topk"])

    def metadata(self) -> Metadata:
        things = set(self.config.get("thing_ids", range(self.config.get("num_things", 0))))
        labels = range(self.config["num_classes"])
        return Metadata(self.path.stem, tuple(Category(label, str(label), label in things) for label in labels))

    def output(self, image: int) -> ModelOutput:
        """The three stored answers for one image; instances have no boxes."""
        scores, labels = self.tensor(f"instance_scores/{image}"), self.tensor(f"instance_classes/{image}")
        return ModelOutput(
            semantic=self.tensor(f"semantic/{image}"),
            instance=Instances(labels, self.masks(f"instance_masks/{image}"), scores),
        )


class Mask2FormerOracle(Oracle):
    """A small model: its spec, its inputs, and what m2f makes of them."""

    @cached_property
    def cfg(self) -> CfgNode:
        config, cfg = self.config, get_cfg()
        assert config["group_norm_groups"] == 32
        assert config["encoder_levels"] == 3
        assert config["betas"][1] == 0.999
        assert config["eps"] == 1e-8
        head = {
            "num_classes": config["num_classes"],
            "convs_dim": config["dim"],
            "mask_dim": config["mask_dim"],
            "transformer_enc_layers": config["enc_layers"],
            "encoder_dim_feedforward": config["encoder_ffn"],
            "encoder_num_points": config["encoder_points"],
        }
        former = {
            "hidden_dim": config["dim"],
            "nheads": config["heads"],
            "dim_feedforward": config["ffn"],
            "dec_layers": config["dec_layers"] + 1,  # predictions
            "num_object_queries": config["queries"],
            "train_num_points": config["points"],
            **{key: config[key] for key in ("class_weight", "mask_weight", "dice_weight", "no_object_weight")},
            "deep_supervision": config["deep_supervision"],
        }
        thresholds = {
            "object_mask_threshold": config["object_mask_threshold"],
            "overlap_threshold": config["overlap_threshold"],
            "test_topk_per_image": config["topk"],
        }
        optim = {
            "lr": config["lr"],
            "weight_decay": config["weight_decay"],
            "backbone_multiplier": config["backbone_multiplier"],
            "momentum": config["betas"][0],
        }
        train = {"clip_grad_type": "full", "clip_grad_norm": config["clip_norm"], "activation_checkpoint": False}
        model = {"backbone": self._backbone(), "sem_seg_head": head, "mask_former": former, **thresholds}
        cfg.merge({"model": model, "train": {**train, "optim": optim}}, str(self.path))
        return cfg

    def _backbone(self) -> dict[str, Any]:
        name = self.config["backbone"]
        section = self.config[name]
        if name == "resnet":
            assert section["NUM_GROUPS"] == 1
            assert not section["STRIDE_IN_1X1"]
            own = {ours: section[official] for official, ours in RESNET_KEYS.items()}
        else:
            own = {key.lower(): value for key, value in section.items()}
        return {"type": name, name: {"type": "custom", **own}}

    def fresh_model(self) -> MaskFormer:
        """The model of the file's spec with the file's weights, every one of them used, at its fixed points."""
        model = build_model(self.cfg, self.metadata())
        assert isinstance(model, MaskFormer)
        missing, unexpected = model.load_state_dict(to_m2f(self.weights())[0], strict=False)
        learned = {name for name, _ in model.named_parameters()}
        assert not learned & set(missing), missing
        assert not unexpected, unexpected
        model.criterion.points = FixedPoints(self.tensor("points/matcher"), self.tensor("points/loss"))
        model.tasks = TASKS
        return model.eval()

    @cached_property
    def inputs(self) -> list[ModelInput]:
        samples = []
        for i in self.numbered("image"):
            height, width = self.arrays[f"out_size/{i}"].tolist()
            truth = Instances(self.tensor(f"gt_classes/{i}").long(), self.masks(f"gt_masks/{i}"))
            samples.append(ModelInput(image=self.tensor(f"image/{i}"), height=height, width=width, instances=truth))
        return samples

    @cached_property
    def model(self) -> MaskFormer:
        """In eval mode; not to be changed."""
        return self.fresh_model()

    @cached_property
    def predictions(self) -> list[MaskPrediction]:
        with torch.no_grad():
            return self.model.layers(self.model.preprocess(self.inputs).tensor)

    @cached_property
    def outputs(self) -> list[ModelOutput]:
        return self.model(self.inputs)

    @cached_property
    def _our_names(self) -> dict[str, str]:
        """By official name: a number that stands for each tensor is followed to its new name."""
        names = list(self.weights())
        numbered, _ = to_m2f({name: torch.tensor(i) for i, name in enumerate(names)})
        return {names[int(number)]: ours for ours, number in numbered.items()}

    def our_name(self, official: str) -> str:
        return self._our_names[official]


class PostprocessOracle(Oracle):
    """Crafted decoder outputs."""

    @cached_property
    def prediction(self) -> MaskPrediction:
        """The stored masks as features that each query's embedding picks one of."""
        masks = self.tensor("pred_masks")
        embed = torch.eye(masks.shape[1]).expand(len(masks), -1, -1)
        return MaskPrediction(self.tensor("pred_logits"), embed, masks)

    def frame(self, image: int) -> Frame:
        padded, size, output = (
            self.config["padded"], self.config["sizes"][image], self.config["out_sizes"][image]
        )  # fmt: skip
        return Frame((padded[0], padded[1]), (size[0], size[1]), (output[0], output[1]))


class EfficientViTOracle(Oracle):
    """A thin backbone."""

    def backbone(self) -> Backbone:
        keys = ("family", "widths", "depths", "dim", "bn_eps")
        section = {"name": "custom", **{key: self.config[key] for key in keys}}
        cfg = get_cfg()
        cfg.merge({"model": {"backbone": {"type": "efficientvit", "efficientvit": section}}}, str(self.path))
        network: nn.Module = BACKBONE_REGISTRY.build("efficientvit", cfg)
        state = {name.removeprefix("backbone."): value for name, value in to_m2f(self.weights())[0].items()}
        network.load_state_dict(state)
        assert isinstance(network, Backbone)
        return network.eval()


_CLASSES = {"mask2former": Mask2FormerOracle, "postprocess": PostprocessOracle, "efficientvit": EfficientViTOracle}


def _files(kind: str) -> Iterator[Oracle]:
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path) as arrays:
            found = json.loads(str(arrays["config"]))["kind"]
        if found not in _CLASSES:
            raise ValueError(f"{path}: unknown kind {found!r}; this test knows {', '.join(KINDS)}")
        if found == kind:
            yield _CLASSES[kind](path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a kind runs once for each file of it; the file's object is shared by all tests."""
    for kind in KINDS:
        if kind not in metafunc.fixturenames:
            continue
        found = _SHARED.setdefault(kind, list(_files(kind)))
        why = f"no .npz of kind {kind!r} in {FOLDER} (M2F_ORACLES)"
        params = found or [pytest.param(None, marks=pytest.mark.skip(reason=why))]
        metafunc.parametrize(kind, params, ids=[o.path.stem for o in found] or ["absent"], scope="session")


_SHARED: dict[str, list[Oracle]] = {}
