"""Pixel decoders: backbone features to mask features and a coarse-to-fine pyramid."""

from m2f.modeling.pixel_decoder.features import PixelFeatures
from m2f.modeling.pixel_decoder.fpn import FPNPixelDecoder
from m2f.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

__all__ = ["FPNPixelDecoder", "MSDeformAttnPixelDecoder", "PixelFeatures"]
