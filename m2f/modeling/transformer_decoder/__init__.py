"""Transformer decoders: learned queries to classes and masks."""

from m2f.modeling.transformer_decoder.masked_attention import MultiScaleMaskedTransformerDecoder

__all__ = ["MultiScaleMaskedTransformerDecoder"]
