"""The paper's transformer decoder: each query looks only inside the mask that it predicted one layer before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from m2f.layers.attention import CrossAttentionBlock, FeedForwardBlock, SelfAttentionBlock
from m2f.layers.conv import ConvNorm
from m2f.layers.mask_prediction import MaskPrediction, resize_features
from m2f.layers.mlp import MLP
from m2f.layers.position_encoding import sine_position_encoding
from m2f.modeling.build import TRANSFORMER_DECODER_REGISTRY

NUM_LEVELS = 3


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Layers of masked cross-attention, self-attention and feed-forward, one level of the pyramid after the other.

    Args:
        in_channels: of the three levels.
        num_classes: K, without no-object.
        hidden_dim: C, a multiple of 4 and of `num_heads`.
        num_queries: Q.
        num_heads: M.
        feedforward: hidden channels of the feed-forward blocks.
        num_layers: true layers; there is one prediction more.
        mask_dim: channels of the mask features.
        pre_norm: normalise before each block instead of after its sum.

    Raises:
        ValueError: the widths do not fit, or there are fewer than zero layers.

    Source: Mask2Former, arXiv:2112.01527, section 3.2 and figure 2.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 256,
        num_queries: int = 100,
        num_heads: int = 8,
        feedforward: int = 2048,
        num_layers: int = 9,
        mask_dim: int = 256,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % 4:
            raise ValueError(f"model.mask_former.hidden_dim is {hidden_dim}; positions need a multiple of 4")
        if num_layers < 0:
            raise ValueError(f"model.mask_former.dec_layers is {num_layers + 1}; it counts predictions, at least 1")
        layers = range(num_layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionBlock(hidden_dim, num_heads, pre_norm) for _ in layers
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionBlock(hidden_dim, num_heads, pre_norm) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardBlock(hidden_dim, feedforward, pre_norm) for _ in layers)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList(
            nn.Identity() if in_channels == hidden_dim else ConvNorm(in_channels, hidden_dim, 1)
            for _ in range(NUM_LEVELS)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, hidden_dim, mask_dim)

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, num_classes: int) -> dict[str, Any]:
        """The constructor's arguments from the spec, whose `dec_layers` counts predictions."""
        former = cfg.model.mask_former
        return {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "hidden_dim": former.hidden_dim,
            "num_queries": former.num_object_queries,
            "num_heads": former.nheads,
            "feedforward": former.dim_feedforward,
            "num_layers": former.dec_layers - 1,
            "mask_dim": cfg.model.sem_seg_head.mask_dim,
            "pre_norm": former.pre_norm,
        }

    def forward(self, multi_scale: Sequence[Tensor], mask_features: Tensor) -> list[MaskPrediction]:
        """Answer with one prediction of the bare queries and one per layer, the last one final.

        Args:
            multi_scale: three of (B, in_channels, h, w), coarse to fine.
            mask_features: (B, mask_dim, H, W).
        """
        keys, values = self._pixels(multi_scale)
        sizes = [(level.shape[2], level.shape[3]) for level in multi_scale]
        level_features = resize_features(mask_features, sizes)
        positions = self.query_embed.weight
        queries = self.query_feat.weight.expand(mask_features.shape[0], *self.query_feat.weight.shape)
        predictions = [self._predict(queries, mask_features)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for number, (look_at_pixels, look_at_queries, think) in enumerate(layers):
            level = number % NUM_LEVELS
            blocked = predictions[-1].blocked(level_features[level])
            queries = look_at_pixels(queries, positions, keys[level], values[level], blocked)
            queries = look_at_queries(queries, positions)
            queries = think(queries)
            predictions.append(self._predict(queries, mask_features))
        return predictions

    def _pixels(self, multi_scale: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values (B, h * w, C) of each level; keys know where they are."""
        keys, values = [], []
        for level, (features, project) in enumerate(zip(multi_scale, self.input_proj, strict=True)):
            x = project(features)
            height, width = x.shape[2:]
            positions = sine_position_encoding(height, width, x.shape[1] // 2, x.device, x.dtype)
            value = x.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
            values.append(value)
            keys.append(value + positions.flatten(2).transpose(1, 2))
        return keys, values

    def _predict(self, queries: Tensor, mask_features: Tensor) -> MaskPrediction:
        normed = self.decoder_norm(queries)
        return MaskPrediction(self.class_embed(normed), self.mask_embed(normed), mask_features)
