"""Batches: lists of `ModelInput`, never stacked here, the same for any number of worker processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from m2f.data.build import DATASET_MAPPER_REGISTRY, SAMPLER_REGISTRY
from m2f.data.catalog import LoadedDataset
from m2f.data.mappers import EvalMapper
from m2f.data.packed import PackedRecords
from m2f.data.samplers import Draw, InferenceShard, TrainingSampler
from m2f.distributed import rank, shared_seed, world_size
from m2f.structures.metadata import Metadata
from m2f.structures.sample import ModelInput, Record, Task

Mapper = Callable[[Record, np.random.Generator], ModelInput | None]
_REPLACEMENT_TRIES = 100
_EVAL_SEED = 0


class TrainLoader:
    """Endless batches of this rank. With each, all ranks together consume batch size x ranks samples.

    Args:
        batches: the loader behind it.
    """

    def __init__(self, batches: DataLoader[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[ModelInput]]:
        return (_checked(batch) for batch in self._batches)


@dataclass(frozen=True)
class Failure:
    """A sample that cannot be made, as its worker reports it: words, no traceback to hold on to it.

    Attributes:
        file_name: the image's.
        kind: what is raised where nobody takes failures.
        message: what is wrong, in a line that names the image.
    """

    file_name: str
    kind: type[Exception]
    message: str


class EvalLoader:
    """This rank's exact share in order; the last batch may be smaller. `len` is the number of batches.

    Args:
        batches: the loader behind it.
        on_failure: takes the samples that cannot be made, whose batches are smaller or left out; None: the first one
            raises.
    """

    def __init__(self, batches: DataLoader[Any], on_failure: Callable[[Failure], None] | None = None) -> None:
        self._batches = batches
        self._on_failure = on_failure

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[ModelInput]]:
        return (samples for batch in self._batches if (samples := _checked(batch, self._on_failure)))


def build_train_loader(cfg: Any, dataset: LoadedDataset, start: int = 0, seed: int | None = None) -> TrainLoader:
    """The training batches from sample `start` on.

    Args:
        cfg: the whole configuration.
        dataset: what `load_dataset` gave for the training split.
        start: samples that all ranks together have consumed; multiples of batch size x ranks.
        seed: of order and augmentation; None: `train.seed`, which a negative value makes a fresh one.

    Raises:
        KeyError: mapper or sampler are not registered.
        ValueError: a key has an impossible value.
    """
    node = cfg.dataset.train
    seed = cfg.train.seed if seed is None else seed
    seed = shared_seed() if seed < 0 else seed
    mapper = DATASET_MAPPER_REGISTRY.build(node.mapper, cfg, dataset.metadata, "train")
    sampler = SAMPLER_REGISTRY.build(node.sampler, cfg, dataset.records, seed)
    batches = _data_loader(
        cfg,
        _MappedDraws(PackedRecords.of(dataset.records), mapper, seed),
        _DrawStream(sampler, start + rank(), world_size()),
        batch_size=node.batch_size,
        num_workers=node.num_workers,
    )
    return TrainLoader(batches)


def build_eval_loader(
    cfg: Any,
    dataset: LoadedDataset,
    split: str,
    tasks: Sequence[Task] | None = None,
    *,
    with_targets: bool = False,
    on_failure: Callable[[Failure], None] | None = None,
) -> EvalLoader:
    """The batches of evaluation (`split` "val") or inference ("test").

    Args:
        cfg: the whole configuration.
        dataset: what `load_dataset` gave.
        split: whose keys count.
        tasks: truths to attach; None: `evaluate.tasks`, or else `model.mode`. A mapper of one's own that is no
            `EvalMapper` decides by itself what it attaches.
        with_targets: attach the targets of a loss as well.
        on_failure: see `EvalLoader`.

    Raises:
        KeyError: the mapper is not registered.
        ValueError: a key has an impossible value.
    """
    node = cfg.dataset[split]
    mapper = build_eval_mapper(cfg, dataset.metadata, split, tasks, with_targets=with_targets)
    shard = InferenceShard(len(dataset.records), rank(), world_size())
    batches = _data_loader(
        cfg,
        _MappedDraws(PackedRecords.of(dataset.records), mapper, _EVAL_SEED, may_replace=False),
        shard,
        batch_size=eval_batch_size(cfg, split),
        num_workers=min(node.num_workers, len(shard)),
    )
    return EvalLoader(batches, on_failure)


def build_eval_mapper(
    cfg: Any,
    metadata: Metadata,
    split: str,
    tasks: Sequence[Task] | None = None,
    *,
    with_targets: bool = False,
) -> Mapper:
    """What makes the samples of `build_eval_loader`, whose arguments these are."""
    mapper: Mapper = DATASET_MAPPER_REGISTRY.build(cfg.dataset[split].mapper, cfg, metadata, split)
    if not isinstance(mapper, EvalMapper):
        return mapper
    chosen = mapper.tasks if tasks is None else tuple(tasks)
    return replace(mapper, tasks=chosen, with_targets=with_targets)


def eval_batch_size(cfg: Any, split: str) -> int:
    """Images per batch of evaluation ("val") or inference ("test"): the task's `batch_size`, else the split's."""
    asked: int = (cfg.inference if split == "test" else cfg.evaluate).batch_size
    return asked if asked > 0 else cfg.dataset[split].batch_size


@dataclass(frozen=True)
class _DrawStream:
    """A sampler from a position on, as something to iterate over again and again."""

    sampler: TrainingSampler
    start: int
    stride: int

    def __iter__(self) -> Iterator[Draw]:
        return self.sampler.draws(self.start, self.stride)


class _MappedDraws(Dataset[Any]):
    """Draw -> ModelInput. The randomness of a sample comes from its position, so any worker makes the same one."""

    def __init__(self, records: PackedRecords, mapper: Mapper, seed: int, *, may_replace: bool = True) -> None:
        self.records, self.mapper, self.seed, self.may_replace = records, mapper, seed, may_replace

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> ModelInput | Failure:
        try:
            return self._sample(draw)
        except (ValueError, OSError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            return Failure(self.records[draw.index]["file_name"], kind, str(error))

    def _sample(self, draw: Draw) -> ModelInput:
        sample = self._mapped(self.records[draw.index], np.random.default_rng([self.seed, draw.position]))
        tries = _REPLACEMENT_TRIES if self.may_replace else 0
        for attempt in range(1, tries + 1):
            if sample is not None:
                break
            rng = np.random.default_rng([self.seed, draw.position, attempt])
            sample = self._mapped(self.records[int(rng.integers(len(self.records)))], rng)
        if sample is None:
            name = self.records[draw.index]["file_name"]
            raise ValueError(
                f"the dataset mapper dropped {name}" + (f" and {tries} others drawn in its place" if tries else "")
            )
        return sample

    def _mapped(self, record: Record, rng: np.random.Generator) -> ModelInput | None:
        """Call the mapper; whatever goes wrong in it names the image."""
        name = record["file_name"]
        try:
            return self.mapper(record, rng)
        except Exception as error:
            if isinstance(error, ValueError | OSError) and name in str(error):
                raise
            kind = ValueError if isinstance(error, ValueError | OSError) else RuntimeError
            raise kind(f"{name}: {type(error).__name__}: {error}") from error


def _checked(
    batch: list[ModelInput | Failure], on_failure: Callable[[Failure], None] | None = None
) -> list[ModelInput]:
    samples: list[ModelInput] = []
    for sample in batch:
        if not isinstance(sample, Failure):
            samples.append(sample)
        elif on_failure is None:
            raise sample.kind(sample.message)
        else:
            on_failure(sample)
    return samples


def _data_loader(cfg: Any, draws: _MappedDraws, order: Any, *, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """A torch loader; its own randomness comes from a private generator, so the global one is never touched.

    Forked workers share the packed records; torch gives each of them one thread.
    """
    forks = num_workers > 0 and sys.platform == "linux"
    return DataLoader(
        draws,
        batch_size=batch_size,
        sampler=order,
        num_workers=num_workers,
        collate_fn=_as_list,
        pin_memory=cfg.dataset.pin_memory and cfg.device != "cpu" and torch.cuda.is_available(),
        multiprocessing_context="fork" if forks else None,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(0),
    )


def _as_list(samples: list[Any]) -> list[Any]:
    return samples
