"""The solver room's registries, and how a cfg becomes an optimiser and a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from m2f.registry import Registry
from m2f.solver.horizon import Horizon
from m2f.solver.param_groups import param_groups

if TYPE_CHECKING:  # schedules.py registers here
    from m2f.solver.schedules import Schedule

OPTIMIZER_REGISTRY = Registry(
    "optimiser", "`build(name, cfg, groups)` gives a torch Optimizer; each group has params, lr and weight_decay."
)
SCHEDULE_REGISTRY = Registry(
    "schedule",
    "`build(name, cfg, optimizer, horizon)` gives a `Schedule`; the rates in the optimiser are the base rates.",
)


def build_optimizer(cfg: Any, model: nn.Module) -> Optimizer:
    """The optimiser of `train.optim.type` over the parameters that learn.

    Raises:
        KeyError: no such optimiser.
        ValueError: nothing learns.
    """
    optim = cfg.train.optim
    groups = param_groups(model, optim.lr, optim.weight_decay, optim.backbone_multiplier)
    optimizer: Optimizer = OPTIMIZER_REGISTRY.build(optim.type, cfg, groups)
    return optimizer


def build_schedule(cfg: Any, optimizer: Optimizer, horizon: Horizon) -> Schedule:
    """The schedule of `train.optim.lr_scheduler`; it sets the rates of the first iteration at once.

    Raises:
        KeyError: no such schedule.
    """
    schedule: Schedule = SCHEDULE_REGISTRY.build(cfg.train.optim.lr_scheduler, cfg, optimizer, horizon)
    return schedule
