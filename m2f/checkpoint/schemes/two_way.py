"""Conversions that are needed in both directions: pairs of names, and projections that one side joins."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from m2f.checkpoint.schemes.scheme import Rules, State

Pairs = tuple[tuple[str, str], ...]


def there(pairs: Pairs) -> Rules:
    """Rules from the first names of `pairs` to the second.

    A name stands for itself and for all names below it; a `*` is a number, the same on both sides.
    """
    return tuple(_rule(source, target) for source, target in pairs)


def back(pairs: Pairs) -> Rules:
    """Rules from the second names of `pairs` to the first."""
    return tuple(_rule(source, target) for target, source in pairs)


def _rule(source: str, target: str) -> tuple[str, str]:
    pattern = re.escape(source).replace(r"\*", r"(\d+)")
    groups = itertools.count(1)
    return rf"^{pattern}(?=\.|$)", re.sub(r"\*", lambda _: rf"\g<{next(groups)}>", target)


def joined(state: State, parts: Sequence[str], whole: str) -> State:
    """Stack tensors whose names differ in `parts` alone, such as query, key and value, along their first axis.

    Args:
        state: left alone.
        parts: what the names contain, in the order of the stack.
        whole: what takes its place.

    Raises:
        ValueError: one of the parts is missing, they differ in shape, or the file has the whole as well.
    """
    result: State = {}
    for name, tensor in state.items():
        part = next((part for part in parts if part in name), None)
        if part is None:
            result[name] = tensor
            continue
        target = name.replace(part, whole)
        if target in state:
            raise ValueError(f"{name} is a part of {target}; a file has one of them")
        if target not in result:
            result[target] = _stacked(state, [name.replace(part, other) for other in parts])
    return result


def _stacked(state: State, names: Sequence[str]) -> Tensor:
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{missing[0]} is missing, though {next(name for name in names if name in state)} is there")
    tensors = [state[name] for name in names]
    if len({(tensor.shape, tensor.dtype) for tensor in tensors}) > 1 or tensors[0].ndim == 0:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True))
        raise ValueError(f"tensors that belong together differ in shape or type: {shapes}")
    return torch.cat(tensors)


def split(state: State, whole: str, parts: Sequence[str]) -> State:
    """The inverse of `joined`; every part has memory of its own, as a safetensors file wants it."""
    result: State = {}
    for name, tensor in state.items():
        if whole in name:
            pieces: Iterable[Tensor] = tensor.chunk(len(parts))
            result.update((name.replace(whole, part), piece.clone()) for part, piece in zip(parts, pieces, strict=True))
        else:
            result[name] = tensor
    return result
