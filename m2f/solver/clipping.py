"""Gradient clipping, once per step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

KINDS = ("full", "norm", "value")
Clipper = Callable[[Iterable[nn.Parameter]], Tensor]


def build_clipper(cfg: Any) -> Clipper:
    """A function that clips gradients in place as `train.clip_grad_*` say, and returns their norm from before.

    Raises:
        ValueError: an unknown `train.clip_grad_type`.
    """
    train = cfg.train
    return make_clipper(train.clip_grad_type, train.clip_grad_norm, train.clip_grad_norm_type)


def make_clipper(kind: str, limit: float, norm_type: float = 2.0) -> Clipper:
    """The function behind `build_clipper`.

    Args:
        kind: full: all gradients are scaled so that their common norm is at most `limit`; norm: each parameter's
            gradient by itself; value: each element is cut to +-limit.
        limit: 0 clips nothing.
        norm_type: the p of the norms.

    Raises:
        ValueError: an unknown `kind`.
    """
    if kind not in KINDS:
        raise ValueError(f"train.clip_grad_type is {kind!r}; it must be one of {', '.join(KINDS)}")

    def clip(parameters: Iterable[nn.Parameter]) -> Tensor:
        learning = [parameter for parameter in parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None], norm_type)
        if limit > 0 and kind == "full":
            nn.utils.clip_grads_with_norm_(learning, limit, norm)
        elif limit > 0 and kind == "norm":
            for parameter in learning:
                nn.utils.clip_grad_norm_(parameter, limit, norm_type)
        elif limit > 0:
            nn.utils.clip_grad_value_(learning, limit)
        return norm

    return clip
