"""Swin Transformer under Microsoft's parameter names, for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2f.config.variants import SWIN
from m2f.layers.attention import attend
from m2f.layers.relative_position import relative_position_index
from m2f.modeling.backbone.backbone import STAGES, Backbone, published_sizes, requested_features
from m2f.modeling.build import BACKBONE_REGISTRY

_SECTION = "model.backbone.swin"
# Added to the logit of a pair that a cyclic shift brought together: the published weights were trained with it.
_APART = -100.0


@dataclass(frozen=True)
class SwinBlockOptions:
    """What all blocks of a Swin share.

    Attributes:
        window_size: tokens along a window's side.
        mlp_ratio: hidden width of the MLP / channels.
        qkv_bias: whether query, key and value have a bias.
        qk_scale: replaces 1 / sqrt(head width).
        drop_rate: dropout of projections and MLPs.
        attn_drop_rate: dropout of attention weights.
    """

    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0


@BACKBONE_REGISTRY.register("swin")
class SwinTransformer(Backbone):
    """Hierarchical transformer with attention inside (shifted) windows.

    Args:
        embed_dim: channels of res2, doubled at each stage.
        depths: blocks of each of the four stages.
        num_heads: attention heads of each stage.
        block: what all blocks share.
        patch_size: pixels along a patch's side, and the stride of res2.
        patch_norm: LayerNorm after the patch embedding.
        position_grid: patches along the side of the absolute position table; None: there is no table.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        out_features: names of the maps to return.
        activation_checkpoint: recompute blocks in the backward pass.

    Raises:
        ValueError: a stage is missing, or the heads do not divide the channels.

    Source: arXiv:2103.14030; one LayerNorm per returned map as in its detection models.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        block: SwinBlockOptions = SwinBlockOptions(),
        patch_size: int = 4,
        patch_norm: bool = True,
        position_grid: int | None = None,
        drop_path_rate: float = 0.0,
        out_features: Sequence[str] = STAGES,
        activation_checkpoint: bool = False,
    ) -> None:
        channels = [embed_dim * 2**i for i in range(4)]
        _check_sizes(channels, depths, num_heads, block.window_size)
        super().__init__(
            channels=channels,
            out_features=out_features,
            activation_checkpoint=activation_checkpoint,
            first_stride=patch_size,
        )
        self.window_size = block.window_size
        self.patch_embed = PatchEmbedding(embed_dim, patch_size, patch_norm)
        self.absolute_pos_embed: nn.Parameter | None = None
        if position_grid is not None:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, position_grid, position_grid))
        self.pos_drop = nn.Dropout(block.drop_rate)
        last_block = max(1, sum(depths) - 1)
        drop_paths = [drop_path_rate * i / last_block for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        for i in range(self.num_stages):
            rates = drop_paths[sum(depths[:i]) : sum(depths[: i + 1])]
            self.layers.append(SwinStage(channels[i], num_heads[i], rates, block, merge=i + 1 < self.num_stages))
        for i, name in enumerate(STAGES):
            if name in self.feature_shapes():
                self.add_module(f"norm{i}", nn.LayerNorm(channels[i]))
        self._init_weights()

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Constructor arguments from `model.backbone.swin`."""
        section = cfg.model.backbone.swin
        shared = ("window_size", "mlp_ratio", "qkv_bias", "qk_scale", "drop_rate", "attn_drop_rate")
        return {
            **published_sizes(section, SWIN),
            "block": SwinBlockOptions(**{key: section[key] for key in shared}),
            "patch_size": section.patch_size,
            "patch_norm": section.patch_norm,
            "position_grid": section.pretrain_img_size // section.patch_size if section.ape else None,
            "drop_path_rate": section.drop_path_rate,
            "out_features": requested_features(section.out_indices, section.out_features, _SECTION),
            "activation_checkpoint": cfg.train.activation_checkpoint or section.use_checkpoint,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {name: (B, C, H/stride, W/stride)}, sizes rounded up."""
        x = self.pos_drop(self._add_position(self.patch_embed(x)))
        # What is kept from call to call would be a constant of a traced graph.
        make_mask = shift_mask.__wrapped__ if torch.jit.is_tracing() else shift_mask
        features = {}
        for i, (name, stage) in enumerate(zip(STAGES, self.layers, strict=False)):  # up to the last requested map
            apart = make_mask(x.shape[1], x.shape[2], self.window_size, x.device)
            for block in stage.get_submodule("blocks").children():
                x = self.run_block(block, x, apart)
            if name in self.feature_shapes():
                features[name] = self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2).contiguous()
            if stage.downsample is not None:
                x = self.run_block(stage.get_submodule("downsample"), x)
        return features

    def _add_position(self, x: Tensor) -> Tensor:
        """Add the absolute position table, resized to the grid of (B, H, W, C) patches."""
        if self.absolute_pos_embed is None:
            return x
        table = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic", align_corners=False)
        return x + table.permute(0, 2, 3, 1)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)


class PatchEmbedding(nn.Module):
    """(B, 3, H, W) to (B, ceil(H/p), ceil(W/p), C): one linear map per patch, zeros beyond the right and lower edge."""

    def __init__(self, channels: int, patch_size: int, has_norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels) if has_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size))
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out


class SwinStage(nn.Module):
    """The blocks of one resolution, every second one shifted, and the way down to the next."""

    def __init__(
        self, channels: int, heads: int, drop_paths: Sequence[float], options: SwinBlockOptions, *, merge: bool
    ) -> None:
        super().__init__()
        shifts = (0, options.window_size // 2)
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, shifts[i % 2], rate, options) for i, rate in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels) if merge else None


class SwinBlock(nn.Module):
    """Window attention, then an MLP, each normalised before and added to what came in.

    Args:
        channels: C.
        heads: attention heads.
        shift: tokens by which the windows are moved down and right; 0 leaves them on the grid.
        drop_path: probability of leaving out a branch for a sample.
        options: what all blocks share.
    """

    def __init__(self, channels: int, heads: int, shift: int, drop_path: float, options: SwinBlockOptions) -> None:
        super().__init__()
        self.window_size, self.shift = options.window_size, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, options)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * options.mlp_ratio), options.drop_rate)

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape; `apart` is `shift_mask`'s, used by shifted blocks."""
        x = x + self.drop_path(self._attend(self.norm1(x), apart))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attend(self, x: Tensor, apart: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window_size, 0, -height % self.window_size))
        padded = x.shape[1:3]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(to_windows(x, self.window_size), apart if self.shift else None)
        x = from_windows(windows, self.window_size, padded[0], padded[1])
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of a window, with a learned bias per relative position and head."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, options: SwinBlockOptions) -> None:
        super().__init__()
        self.heads = heads
        self.scale = options.qk_scale or (channels // heads) ** -0.5
        self.attn_drop_rate = options.attn_drop_rate
        table_rows = (2 * options.window_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows, heads))
        self.register_buffer("relative_position_index", relative_position_index(options.window_size), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels, bias=options.qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(options.drop_rate)

    def forward(self, windows: Tensor, apart: Tensor | None) -> Tensor:
        """Attend inside each window.

        Args:
            windows: (B, n, T, C), n windows of T tokens.
            apart: (n, T, T) added to the logits of every head; None adds nothing.

        Returns:
            (B, n, T, C).
        """
        batch, num, tokens, channels = windows.shape
        qkv = self.qkv(windows).view(batch, num, tokens, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (M, T, T)
        if apart is None:  # windows as batch: (B n, M, T, d)
            q, k, v = qkv.flatten(1, 2)
        else:  # windows as heads, so that the mask of a window is stored once for the whole batch: (B, n M, T, d)
            q, k, v = qkv.flatten(2, 3)
            bias = (bias + apart[:, None]).flatten(0, 1)
        dropout = self.attn_drop_rate if self.training else 0.0
        out = attend(q, k, v, bias[None].to(q.dtype), dropout, self.scale)
        out = out.view(batch, num, self.heads, tokens, -1).transpose(2, 3).reshape(batch, num, tokens, channels)
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, over the last axis."""

    def __init__(self, channels: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same shape."""
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return out


class PatchMerging(nn.Module):
    """(B, H, W, C) to (B, ceil(H/2), ceil(W/2), 2C): neighbours stacked column by column, then one linear map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return out


class DropPath(nn.Module):
    """Leaves out a residual branch for random samples in training, and scales the others up to keep the mean.

    Source: stochastic depth, arXiv:1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.rate or not self.training:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C), H and W multiples of `size`, to (B, windows, size*size, C), row by row."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels).transpose(2, 3)
    return x.reshape(batch, -1, size * size, channels)


def from_windows(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`."""
    batch, channels = windows.shape[0], windows.shape[-1]
    x = windows.view(batch, height // size, width // size, size, size, channels).transpose(2, 3)
    return x.reshape(batch, height, width, channels)


@lru_cache(maxsize=16)
def shift_mask(height: int, width: int, window_size: int, device: torch.device) -> Tensor:
    """What shifted windows add to the logits: `_APART` between tokens that are no neighbours in the image.

    Args:
        height: of the map in tokens, before padding.
        width: same.
        window_size: w; the shift is w // 2.
        device: where the mask shall be; kept for the sizes met last.

    Returns:
        (n, w*w, w*w) float32 for the n windows of the padded map.
    """
    shift = window_size // 2
    with torch.inference_mode(False):  # a mask made during evaluation must serve training too

        def region(length: int) -> Tensor:
            last = length + -length % window_size
            position = torch.arange(last, device=device)
            return (position >= last - window_size).int() + (position >= last - shift).int()

        regions = region(height)[:, None] * 3 + region(width)[None, :]
        tokens = to_windows(regions[None, :, :, None], window_size)[0, :, :, 0]
        return (tokens[:, :, None] != tokens[:, None, :]).float() * _APART


def _check_sizes(channels: Sequence[int], depths: Sequence[int], heads: Sequence[int], window_size: int) -> None:
    if len(depths) != 4 or len(heads) != 4 or min(depths) < 1:
        raise ValueError(f"{_SECTION}: depths {list(depths)} and num_heads {list(heads)} need four stages of 1 or more")
    if window_size < 1:
        raise ValueError(f"{_SECTION}.window_size is {window_size}; it is at least 1")
    if any(c % m for c, m in zip(channels, heads, strict=True)):
        raise ValueError(
            f"{_SECTION}.num_heads {list(heads)} must divide the stages' channels {list(channels)} "
            "(embed_dim, doubled at each stage)"
        )
