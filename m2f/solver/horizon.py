"""How long a run is: everything that the spec counts in epochs, turned into iterations once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Horizon:
    """Durations in iterations; an iteration is one step of the optimiser.

    Attributes:
        iters_per_epoch: at least 1.
        max_iters: iterations of the whole run.
        checkpoint_period: iterations between two checkpoints.
        validation_period: iterations between two evaluations.
    """

    iters_per_epoch: int
    max_iters: int
    checkpoint_period: int
    validation_period: int

    @classmethod
    def from_config(cls, cfg: Any, dataset_length: int, world_size: int = 1) -> Horizon:
        """Read the durations of a cfg for a training set.

        Args:
            cfg: the whole configuration.
            dataset_length: images of the training set.
            world_size: processes that share it.
        """
        train = cfg.train
        images_per_step = cfg.dataset.train.batch_size * world_size * train.accumulate_steps
        per_epoch = train.iters_per_epoch or max(1, dataset_length // images_per_step)
        max_iters = 1 if train.is_dry_run else train.max_iters or train.num_epochs * per_epoch
        unit = 1 if train.checkpoint_interval_unit == "step" else per_epoch
        return cls(per_epoch, max_iters, train.checkpoint_interval * unit, train.validation_interval * per_epoch)

    def iterations(self, epochs: float) -> int:
        """A number of epochs in iterations."""
        return round(epochs * self.iters_per_epoch)
