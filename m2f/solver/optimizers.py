"""The optimisers that a spec can name."""

from __future__ import annotations

from typing import Any

from torch.optim import SGD, AdamW, Optimizer

from m2f.solver.build import OPTIMIZER_REGISTRY


@OPTIMIZER_REGISTRY.register("AdamW")
def build_adamw(cfg: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW (arXiv:1711.05101); `momentum` is its first beta."""
    return AdamW(groups, lr=cfg.train.optim.lr, betas=(cfg.train.optim.momentum, 0.999), eps=1e-8)


@OPTIMIZER_REGISTRY.register("SGD")
def build_sgd(cfg: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """SGD with momentum."""
    return SGD(groups, lr=cfg.train.optim.lr, momentum=cfg.train.optim.momentum)
