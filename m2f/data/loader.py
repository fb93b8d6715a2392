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


class EvalLoader:
    """This rank's exact share in order; the last batch may be smaller. `len` is the number of batches.

    Args:
        batches: the loader behind it.
    """

    def __init__(self, batches: DataLoader[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[ModelInput]]:
        return (_checked(batch) for batch in self._batches)


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
    cfg: Any, dataset: LoadedDataset, split: str, tasks: Sequence[Task] | None = None, *, with_targets: bool = False
) -> EvalLoader:
    """The batches of evaluation (`split` "val") or inference ("test").

    Args:
        cfg: the whole configuration.
        dataset: what `load_dataset` gave.
        split: whose keys count.
        tasks: truths to attach; None: `evaluate.tasks`, or else `model.mode`. A mapper of one's own that is no
            `EvalMapper` decides by itself what it attaches.
        with_targets: attach the targets of a loss as well.

    Raises:
        KeyError: the mapper is not registered.
        ValueError: a key has an impossible value.
    """
    node = cfg.dataset[split]
    mapper = DATASET_MAPPER_REGISTRY.build(node.mapper, cfg, dataset.metadata, split)
    if isinstance(mapper, EvalMapper):
        chosen = mapper.tasks if tasks is None else tuple(tasks)
        mapper = replace(mapper, tasks=chosen, with_targets=with_targets)
    shard = InferenceShard(len(dataset.records), rank(), world_size())
    asked = (cfg.inference if split == "test" else cfg.evaluate).batch_size
    batches = _data_loader(
        cfg,
        _MappedDraws(PackedRecords.of(dataset.records), mapper, _EVAL_SEED, may_replace=False),
        shard,
        batch_size=asked if asked > 0 else node.batch_size,
        num_workers=min(node.num_workers, len(shard)),
    )
    return EvalLoader(batches)


@dataclass(frozen=True)
class _DrawStream:
    """A sampler from a position on, as something to iterate over again and again."""

    sampler: TrainingSampler
    start: int
    stride: int

    def __iter__(self) -> Iterator[Draw]:
        return self.sampler.draws(self.start, self.stride)


@dataclass(frozen=True)
class _Failure:
    """A user's mistake met in a worker, on its way to the main process: words, no traceback to hold on to it."""

    kind: type[Exception]
    message: str


class _MappedDraws(Dataset[Any]):
    """Draw -> ModelInput. The randomness of a sample comes from its position, so any worker makes the same one."""

    def __init__(self, records: PackedRecords, mapper: Mapper, seed: int, *, may_replace: bool = True) -> None:
        self.records, self.mapper, self.seed, self.may_replace = records, mapper, seed, may_replace

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> ModelInput | _Failure:
        try:
            return self._sample(draw)
        except FileNotFoundError as error:
            return _Failure(FileNotFoundError, str(error))
        except (ValueError, OSError) as error:
            return _Failure(ValueError, str(error))

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


def _checked(batch: list[ModelInput | _Failure]) -> list[ModelInput]:
    samples: list[ModelInput] = []
    for sample in batch:
        if isinstance(sample, _Failure):
            raise sample.kind(sample.message)
        samples.append(sample)
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
