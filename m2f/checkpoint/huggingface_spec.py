"""A spec for the model that a Hugging Face directory holds, from its `config.json` and `preprocessor_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2f.checkpoint.huggingface_files import (
    FIXED,
    FIXED_RESNET,
    FIXED_SWIN,
    MODEL_KEYS,
    RESNETS,
    STAGES,
    SWIN_KEYS,
)
from m2f.config.variants import CUSTOM

Config = Mapping[str, Any]


def spec_from_config(config: Config, preprocessor: Config | None = None) -> dict[str, Any]:
    """The overrides that make a spec build the same model, as a nested dict for `CfgNode.merge` or a YAML file.

    Args:
        config: of `config.json`; keys that it leaves out have Hugging Face's defaults.
        preprocessor: of `preprocessor_config.json`; adds mean, deviation and size of the images.

    Raises:
        ValueError: m2f has no such model, and the message names the key, its value and what would be right; or a file
            is not as transformers writes it.
    """
    try:
        model = _model_spec(config)
        return {"model": model, **({"dataset": _dataset_spec(preprocessor)} if preprocessor else {})}
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"the Hugging Face configuration has values of wrong types: {error}") from error


def _model_spec(config: Config) -> dict[str, Any]:
    if config.get("model_type") != "mask2former":
        raise ValueError(f"config.json: model_type is {config.get('model_type')!r}; it must be 'mask2former'")
    _require(config, FIXED, "config.json")
    backbone, stages = _backbone_spec(config)
    model: dict[str, Any] = {"backbone": backbone, "sem_seg_head": {}, "mask_former": {}}
    for theirs, (ours, default) in MODEL_KEYS.items():
        section, _, key = ours.partition(".")
        model[section][key] = config.get(theirs, default)
    model["sem_seg_head"]["num_classes"] = len(config.get("id2label", {"0": "", "1": ""}))
    model["sem_seg_head"]["deformable_transformer_encoder_in_features"] = stages[-3:]
    _check_structure(config, model, stages)
    return model


def _require(section: Config, fixed: Mapping[str, Any], where: str) -> None:
    for key, expected in fixed.items():
        if section.get(key, expected) != expected:
            raise ValueError(f"{where}: {key} is {section[key]!r}; m2f's models have {expected!r}")


def _backbone_spec(config: Config) -> tuple[dict[str, Any], list[str]]:
    theirs = config.get("backbone_config")
    if not isinstance(theirs, Mapping):
        raise ValueError(
            "config.json: there is no backbone_config, so the sizes of the backbone are unknown; save the model again "
            "with a transformers that writes it"
        )
    name = theirs.get("model_type")
    if name not in ("swin", "resnet"):
        raise ValueError(f"config.json: backbone_config.model_type is {name!r}; m2f reads swin and resnet")
    wanted = theirs.get("out_features") or ["stage1", "stage2", "stage3", "stage4"]
    stages = [stage for number, stage in enumerate(STAGES, start=1) if f"stage{number}" in wanted]
    if stages[-1:] != ["res5"]:
        raise ValueError(f"config.json: backbone_config.out_features is {list(wanted)}; it must end with stage4")
    section = _swin_spec(theirs) if name == "swin" else _resnet_spec(theirs)
    return {"type": name, name: {"type": CUSTOM, **section, "out_features": stages}}, stages


def _swin_spec(theirs: Config) -> dict[str, Any]:
    _require(theirs, FIXED_SWIN, "config.json: backbone_config")
    section = {ours: theirs.get(key, default) for key, (ours, default) in SWIN_KEYS.items()}
    for key in ("pretrain_img_size", "patch_size"):
        sides = {section[key]} if isinstance(section[key], int) else set(section[key])
        if len(sides) > 1:
            raise ValueError(f"config.json: backbone_config has {key} {section[key]}; m2f's Swin has squares")
        section[key] = sides.pop()
    return section


def _resnet_spec(theirs: Config) -> dict[str, Any]:
    _require(theirs, FIXED_RESNET, "config.json: backbone_config")
    blocks = (theirs.get("layer_type", "bottleneck"), list(theirs.get("depths", [3, 4, 6, 3])))
    depth = next((depth for depth, known in RESNETS.items() if known == blocks), None)
    sizes = theirs.get("hidden_sizes", [256, 512, 1024, 2048])
    if depth is None:
        raise ValueError(
            f"config.json: backbone_config has {blocks[0]} blocks {blocks[1]}; m2f has the ResNets of "
            f"{', '.join(map(str, RESNETS))} layers"
        )
    if list(sizes) != [sizes[0] * 2**stage for stage in range(4)]:
        raise ValueError(f"config.json: backbone_config.hidden_sizes is {sizes}; in m2f each is twice the one before")
    width = sizes[0] if blocks[0] == "basic" else sizes[0] // 4
    stem = theirs.get("embedding_size", 64)
    return {"depth": depth, "stem_channels": stem, "res2_channels": sizes[0], "width": width, "norm": "BN"}


def _check_structure(config: Config, model: dict[str, Any], stages: list[str]) -> None:
    """What both sides could be told, and only one way of it is the same network."""
    first = model["backbone"].get("swin", {}).get("patch_size", 4)
    strides = [first * 2 ** STAGES.index(stage) for stage in stages]
    told = list(config.get("feature_strides", [4, 8, 16, 32]))
    if told[-3:] != strides[-3:]:
        raise ValueError(f"config.json: feature_strides is {told}; those of the backbone are {strides}")
    if config.get("enforce_input_projection") and config.get("feature_size", 256) == config.get("hidden_dim", 256):
        raise ValueError(
            "config.json: enforce_input_projection is True; m2f projects only where feature_size and hidden_dim differ"
        )


def _dataset_spec(preprocessor: Config) -> dict[str, Any]:
    dataset: dict[str, Any] = {}
    for theirs, ours in (("image_mean", "pixel_mean"), ("image_std", "pixel_std"), ("ignore_index", "ignore_label")):
        if preprocessor.get(theirs) is not None:
            dataset[ours] = preprocessor[theirs]
    size = preprocessor.get("size") or {}
    if {"shortest_edge", "longest_edge"} <= set(size):
        dataset["augmentation"] = {"test_min_size": size["shortest_edge"], "test_max_size": size["longest_edge"]}
    elif {"height", "width"} <= set(size):
        target = [size["width"], size["height"]]
        dataset["augmentation"] = {"test_min_size": min(target), "test_max_size": max(target)}
        dataset.update({split: {"target_size": target} for split in ("val", "test")})
    return dataset
