"""The modeling room's registries, and how a cfg becomes a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

from torch import nn

from m2f.registry import Registry
from m2f.structures.metadata import Metadata

META_ARCH_REGISTRY = Registry(
    "meta-architecture",
    "`build(name, cfg, metadata)`; `forward(list[ModelInput])` gives a dict of losses in train mode and "
    "`list[ModelOutput]` in eval mode.",
)
BACKBONE_REGISTRY = Registry(
    "backbone",
    "`build(name, cfg)` gives a `Backbone`: (B, 3, H, W) to {res2 .. res5: (B, C, h, w)}, `feature_shapes()`, "
    "`size_divisibility`.",
)
PIXEL_DECODER_REGISTRY = Registry(
    "pixel decoder",
    "`build(name, cfg, shapes: dict[str, FeatureShape])`; `forward(features)` gives `PixelFeatures`.",
)
TRANSFORMER_DECODER_REGISTRY = Registry(
    "transformer decoder",
    "`build(name, cfg, in_channels, num_classes)`; `forward(multi_scale, mask_features)` gives one `MaskPrediction` "
    "of the bare queries and one per layer, the last one final.",
)
CRITERION_REGISTRY = Registry(
    "criterion",
    "`build(name, cfg, num_classes)`; `forward(predictions, targets, num_masks)` gives weighted losses by name.",
)

# m2f's top-level modules as the official code and TAO call them.
_OFFICIAL_PREFIXES = (
    ("pixel_decoder", "sem_seg_head.pixel_decoder"),
    ("transformer_decoder", "sem_seg_head.predictor"),
)


def build_model(cfg: Any, metadata: Metadata) -> nn.Module:
    """Build the model of a cfg for a dataset, on the CPU, with `train.freeze` applied.

    Raises:
        ValueError: the head and the dataset disagree about the number of classes, or a name to freeze is unknown.
    """
    num_classes = cfg.model.sem_seg_head.num_classes
    if num_classes != metadata.num_classes:
        raise ValueError(
            f"model.sem_seg_head.num_classes is {num_classes}, but the dataset has {metadata.num_classes} classes; "
            f"set model.sem_seg_head.num_classes to {metadata.num_classes}"
        )
    model: nn.Module = META_ARCH_REGISTRY.build(cfg.model.meta_architecture, cfg, metadata)
    freeze(model, cfg.train["freeze"])  # by index: the attribute is the method of every CfgNode
    return model


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Stop the named parts from learning, and keep them in eval mode whatever `model.train()` says.

    Args:
        model: changed in place.
        names: dotted names of modules or parameters as m2f, the official code or TAO write them; each matches wherever
            its segments follow one another in a full name, so `input_proj` matches every module of that name.

    Raises:
        ValueError: a name matches nothing; the message has the nearest name that would.
    """
    for name in names:
        wanted = _requested(name)
        modules = [module for path, module in model.named_modules() if path and _has_run(path, wanted)]
        parameters = [parameter for path, parameter in model.named_parameters() if _has_run(path, wanted)]
        if not modules and not parameters:
            raise ValueError(f"train.freeze: {name!r} matches no part of the model{_nearest(model, wanted)}")
        for parameter in parameters:
            parameter.requires_grad_(False)
        for module in modules:
            module.eval()
            module.__dict__["train"] = MethodType(_stay_in_eval, module)


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - nn.Module.train's signature
    """Takes the place of `train` in a frozen module: drop-path stays off and batch statistics stay as they are."""
    return module


def _requested(name: str) -> str:
    """A user's name without the wrappers that Lightning (`model.`), DDP (`module.`) and TAO's EfficientViT add."""
    bare = re.sub(r"^(?:(?:module|model)\.)+", "", name)
    return re.sub(r"^backbone\.model(?=\.|$)", "backbone", bare)


def _has_run(path: str, wanted: str) -> bool:
    """Whether the segments of `wanted` follow one another in one of the spellings of `path`."""
    return any(f".{wanted}." in f".{spelling}." for spelling in _spellings(path))


def _spellings(path: str) -> Iterator[str]:
    yield path
    for ours, official in _OFFICIAL_PREFIXES:
        if path == ours or path.startswith(ours + "."):
            yield official + path[len(ours) :]
    if path.startswith("backbone.layer"):  # torchvision's layer1 is Detectron2's res2
        yield re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", path, count=1)
    if path.startswith(("backbone.conv1", "backbone.bn1")):
        yield path.replace("backbone.", "backbone.stem.", 1)


def _nearest(model: nn.Module, wanted: str) -> str:
    """What the user may have meant: a whole dotted name or one of its endings, else the parts there are."""
    known = {
        ".".join(segments[start:])
        for path, _ in model.named_modules()
        for spelling in _spellings(path)
        for segments in [spelling.split(".")]
        for start in range(len(segments))
    }
    near = difflib.get_close_matches(wanted, sorted(known - {""}), n=1)
    parts = ", ".join(name for name, _ in model.named_children())
    return f"; did you mean {near[0]!r}?" if near else f"; its parts are {parts}"
