"""Deterministic transforms, and the random policies that draw them."""

from m2f.data.transforms.color import ColorJitter, ColorShift
from m2f.data.transforms.geometry import Geometry
from m2f.data.transforms.policies import LargeScaleJitter, OwnSize, Policy, ResizeCrop, ShortestEdge, expand_min_sizes

__all__ = [
    "ColorJitter",
    "ColorShift",
    "Geometry",
    "LargeScaleJitter",
    "OwnSize",
    "Policy",
    "ResizeCrop",
    "ShortestEdge",
    "expand_min_sizes",
]
