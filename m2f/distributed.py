"""Ranks, gathering and reducing; correct on one process, where every call is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialized() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 for the first and for the only one."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks on the console."""
    return rank() == 0


def barrier() -> None:
    """Wait for the others."""
    if is_initialized():
        dist.barrier()


def all_gather(value: Any) -> list[Any]:
    """One picklable value from every rank, in rank order, on every rank."""
    if not is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather(value: Any) -> list[Any]:
    """One picklable value from every rank, in rank order, on rank 0; an empty list elsewhere."""
    if not is_initialized():
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, dst=0)
    return values or []


def all_reduce_mean(value: Tensor) -> Tensor:
    """Mean over ranks of a tensor of one shape; the input stays as it is."""
    if not is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def shared_seed() -> int:
    """A fresh seed in [0, 2**31), the same on every rank."""
    seed = int(torch.randint(0, 2**31, (1,), generator=torch.Generator().manual_seed(torch.seed() % 2**31)).item())
    return int(all_gather(seed)[0])
