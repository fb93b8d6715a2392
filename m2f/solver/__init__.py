"""How parameters move over time: groups, optimisers, rates, durations, clipping."""

from m2f.solver import optimizers, schedules  # noqa: F401 - their decorators register
from m2f.solver.build import (
    OPTIMIZER_REGISTRY,
    SCHEDULE_REGISTRY,
    build_optimizer,
    build_schedule,
)
from m2f.solver.clipping import build_clipper
from m2f.solver.horizon import Horizon
from m2f.solver.schedules import AutoReduce, Schedule

__all__ = [
    "OPTIMIZER_REGISTRY",
    "SCHEDULE_REGISTRY",
    "AutoReduce",
    "Horizon",
    "Schedule",
    "build_clipper",
    "build_optimizer",
    "build_schedule",
]
