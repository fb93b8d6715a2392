"""The homes of weights: one module per scheme, which registers itself when this package is imported."""

from m2f.checkpoint.schemes import (
    efficientnet,
    efficientvit,
    huggingface,
    huggingface_backbones,
    m2f,
    mmdetection,
    official,
    resnet,
    swin,
    tao,
    timm,
)
from m2f.checkpoint.schemes.convert import detect, from_m2f, to_m2f
from m2f.checkpoint.schemes.scheme import SCHEME_REGISTRY, Scheme, State

__all__ = [
    "SCHEME_REGISTRY",
    "Scheme",
    "State",
    "detect",
    "efficientnet",
    "efficientvit",
    "from_m2f",
    "huggingface",
    "huggingface_backbones",
    "m2f",
    "mmdetection",
    "official",
    "resnet",
    "swin",
    "tao",
    "timm",
    "to_m2f",
]
