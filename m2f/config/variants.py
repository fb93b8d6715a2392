"""Named sizes of the backbones: the name picks a row of keys, and `custom` frees them.

The rows are written into the tree, so that the saved spec says what was built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from m2f.config.node import CfgNode, SpecError

CUSTOM = "custom"


class Variants(NamedTuple):
    """The sizes of one backbone."""

    key: str  # the key that names the size
    fields: tuple[str, ...]  # the keys beside it that the name fills
    rows: dict[str, tuple[Any, ...]]


# Swin: arXiv:2103.14030, section 3.3. Huge has no published ImageNet weights in the paper; its numbers are SimMIM's
# (arXiv:2111.09886) and Swin V2's (arXiv:2111.09883).
SWIN = Variants(
    "model.backbone.swin.type",
    ("embed_dim", "depths", "num_heads"),
    {
        "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
        "small": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
        "base": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
        "large": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
        "huge": (352, [2, 2, 18, 2], [11, 22, 44, 88]),
    },
)

# EfficientViT: arXiv:2205.14756 and its published model zoo, which sets eps 1e-7 for the norms of the l-types.
EFFICIENTVIT = Variants(
    "model.backbone.efficientvit.name",
    ("family", "widths", "depths", "dim", "bn_eps"),
    {
        "b0": ("b", [8, 16, 32, 64, 128], [1, 2, 2, 2, 2], 16, 1e-5),
        "b1": ("b", [16, 32, 64, 128, 256], [1, 2, 3, 3, 4], 16, 1e-5),
        "b2": ("b", [24, 48, 96, 192, 384], [1, 3, 4, 4, 6], 32, 1e-5),
        "b3": ("b", [32, 64, 128, 256, 512], [1, 4, 6, 6, 9], 32, 1e-5),
        "l0": ("l", [32, 64, 128, 256, 512], [1, 1, 1, 4, 4], 32, 1e-7),
        "l1": ("l", [32, 64, 128, 256, 512], [1, 1, 1, 6, 6], 32, 1e-7),
        "l2": ("l", [32, 64, 128, 256, 512], [1, 2, 2, 8, 8], 32, 1e-7),
        "l3": ("l", [64, 128, 256, 512, 1024], [1, 2, 2, 8, 8], 32, 1e-7),
    },
)

# ResNet: arXiv:1512.03385, table 1.
RESNET = Variants(
    "model.backbone.resnet.type",
    ("depth", "stem_channels", "res2_channels", "width"),
    {
        "resnet18": (18, 64, 64, 64),
        "resnet34": (34, 64, 64, 64),
        "resnet50": (50, 64, 256, 64),
        "resnet101": (101, 64, 256, 64),
    },
)

ALL = (SWIN, EFFICIENTVIT, RESNET)


def apply_variants(cfg: CfgNode, layers: Sequence[str]) -> None:
    """Write each named size's row into the tree.

    A name overrules what earlier layers set beside it, so `type: large` is enough on top of a saved spec.

    Args:
        cfg: changed in place.
        layers: the sources that were merged, in their order.

    Raises:
        SpecError: an unknown name, or a key set beside its name or later to something else than the row says.
    """
    for variants in ALL:
        name = cfg.leaf(variants.key)
        if name == CUSTOM:
            continue
        if name not in variants.rows:
            choices = ", ".join((*variants.rows, CUSTOM))
            raise SpecError(f"{cfg.source(variants.key)}: {variants.key!r} is {name!r}; it must be one of {choices}")
        section = variants.key.rpartition(".")[0]
        for field, value in zip(variants.fields, variants.rows[name], strict=True):
            key = f"{section}.{field}"
            if (
                cfg.was_set(key)
                and cfg.leaf(key) != value
                and _age(cfg, key, layers) >= _age(cfg, variants.key, layers)
            ):
                _contradict(cfg, key, value, variants.key)
            cfg.set_leaf(key, list(value) if isinstance(value, list) else value)


def _age(cfg: CfgNode, key: str, layers: Sequence[str]) -> int:
    """The layer that set a key, counted from the first; -1 for a default, which never contradicts."""
    return max((i for i, layer in enumerate(layers) if layer == cfg.source(key)), default=-1)


def _contradict(cfg: CfgNode, key: str, value: Any, name_key: str) -> None:
    raise SpecError(
        f"{cfg.source(key)}: {key!r} is {cfg.leaf(key)}, but {name_key}: {cfg.leaf(name_key)} means {value}; "
        f"leave it out, or set {name_key}: {CUSTOM}"
    )
