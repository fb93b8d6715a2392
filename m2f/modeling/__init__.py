"""Model input to losses or outputs. Importing this package fills the registries of `build.py`."""

from m2f.modeling import criterion, maskformer
from m2f.modeling.backbone import efficientvit, resnet, swin, timm_backbone
from m2f.modeling.pixel_decoder import fpn, msdeformattn
from m2f.modeling.transformer_decoder import masked_attention

__all__ = [
    "criterion",
    "efficientvit",
    "fpn",
    "masked_attention",
    "maskformer",
    "msdeformattn",
    "resnet",
    "swin",
    "timm_backbone",
]
