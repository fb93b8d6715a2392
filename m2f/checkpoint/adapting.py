"""Make weights fit a model of other sizes: one rule per kind of tensor, and each says in a line what it did."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from m2f.checkpoint.rows import ClassLists, carry_class_rows, fit_queries
from m2f.checkpoint.schemes.scheme import State

# The model's tensors of one kind and the file's, to the fitted ones and what is to be said of it.
Rule = Callable[[State, State], tuple[State, list[str]]]

_BIAS_TABLE = re.compile(r"(^|\.)relative_position_bias_table$")
_POSITION_GRID = re.compile(r"(^|\.)absolute_pos_embed$")
CLASS_HEAD = re.compile(r"(^|\.)class_embed\.(weight|bias)$")
_QUERIES = re.compile(r"(^|\.)(query_feat|query_embed)\.weight$")


def adapt(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], classes: ClassLists, *, complete: bool = False
) -> tuple[State, list[str]]:
    """Bring what a model and a file both have into the model's shapes and types.

    Args:
        own: the model's tensors, for their shapes and for the class rows that stay; left alone.
        state: the file's, under m2f's names.
        classes: what the rows of both class heads mean.
        complete: the model shall answer as the file's did: its classes and queries must all be there.

    Returns:
        The tensors that can be copied into the model, and a line for each rule that had to change something. A class
        head of which no row can be used is left out.

    Raises:
        ValueError: a tensor has a shape for which there is no rule, another kind of numbers, or a value that is not
            finite; or `complete` is asked for and the classes or queries are others.
    """
    shared = {name: _checked(name, tensor, state[name]) for name, tensor in own.items() if name in state}
    rules: tuple[tuple[re.Pattern[str], Rule], ...] = (
        (_BIAS_TABLE, resize_bias_tables),
        (_POSITION_GRID, resize_position_grids),
        (CLASS_HEAD, partial(carry_class_rows, classes=classes, complete=complete)),
        (_QUERIES, partial(fit_queries, complete=complete)),
    )
    fitting: State = {}
    lines: list[str] = []
    for pattern, rule in rules:
        theirs = {name: shared.pop(name) for name in list(shared) if pattern.search(name)}
        if theirs:
            adapted, said = rule({name: own[name] for name in theirs}, theirs)
            fitting.update(adapted)
            lines += said
    fitting.update(shared)
    _require_own_shapes(own, fitting)
    return {name: tensor.to(own[name].dtype) for name, tensor in fitting.items()}, lines


def resize_bias_tables(own: State, theirs: State) -> tuple[State, list[str]]:
    """Swin's ((2w-1)^2, heads) tables, each a square of relative positions, resized bicubically to the model's w.

    Tables that are no such square, or have another number of heads, are handed back as they are.

    Source: Microsoft's Swin code resizes so when it fine-tunes with another window; torch's half-pixel centres keep
    the middle, the bias of a token to itself, where it is.
    """
    fitted, windows = dict(theirs), Counter[tuple[int, int]]()
    for name, table in theirs.items():
        here, there = _window(own[name]), _window(table)
        if here and there and here != there and table.shape[1] == own[name].shape[1]:
            square = table.T.unflatten(1, (2 * there - 1, 2 * there - 1))
            fitted[name] = _resized(square, (2 * here - 1, 2 * here - 1)).flatten(1).T
            windows[there, here] += 1
    steps = [f"{number} from window {a} to {b}" for (a, b), number in sorted(windows.items())]
    return fitted, [f"relative position tables: {', '.join(steps)}, bicubic"] if steps else []


def resize_position_grids(own: State, theirs: State) -> tuple[State, list[str]]:
    """Absolute positions (1, C, h, w) to the model's (1, C, H, W).

    What is no such grid, or has other channels, is handed back as it is.
    """
    fitted, lines = dict(theirs), []
    for name, grid in theirs.items():
        wanted = own[name].shape
        if grid.ndim == len(wanted) == 4 and grid.numel() and grid.shape[:2] == wanted[:2] and grid.shape != wanted:
            fitted[name] = _resized(grid[0], (wanted[2], wanted[3]))[None]
            lines.append(f"absolute position table: from {_by(grid)} to {_by(own[name])}, bicubic")
    return fitted, lines


# Types and shapes.


def _checked(name: str, own: Tensor, tensor: Tensor) -> Tensor:
    """The values in the model's precision or better; counters may be floating, since whole files are cast to half."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise ValueError(f"{name} is sparse, quantised or without values; save it as a plain tensor")
    is_counter = name.endswith("num_batches_tracked")
    if _kind(own.dtype) != _kind(tensor.dtype) and not (is_counter and tensor.is_floating_point()):
        raise ValueError(
            f"{name} holds {_kind(tensor.dtype)} numbers ({tensor.dtype}), the model's {_kind(own.dtype)} ones "
            f"({own.dtype}); the file is damaged or quantised"
        )
    if tensor.is_floating_point():
        tensor = tensor.to(torch.promote_types(own.dtype, torch.float32))
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite; the file is damaged or its training diverged")
    return tensor.detach()


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "boolean"
    return "complex" if dtype.is_complex else "floating" if dtype.is_floating_point else "integer"


def _require_own_shapes(own: Mapping[str, Tensor], fitting: State) -> None:
    for name, tensor in fitting.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the model's has {tuple(own[name].shape)}; "
                "the weights belong to another architecture"
            )


# Positions.


def _window(table: Tensor) -> int | None:
    """The w of a ((2w-1)^2, heads) table; None: it is no such table."""
    if table.ndim != 2 or len(table) == 0:
        return None
    side = isqrt(len(table))
    return (side + 1) // 2 if side % 2 and side * side == len(table) else None


def _resized(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) to (C, *size)."""
    return F.interpolate(grid[None], size, mode="bicubic", align_corners=False)[0]


def _by(grid: Tensor) -> str:
    return f"{grid.shape[2]}x{grid.shape[3]}"
