"""Which record comes when: pure functions of (seed, position), so that a saved position is all that resuming needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2f.data.build import SAMPLER_REGISTRY
from m2f.structures.sample import Record


@dataclass(frozen=True)
class Draw:
    """One sample to make."""

    position: int  # how many samples all ranks together drew before it; seeds its augmentation
    index: int  # of its record


@SAMPLER_REGISTRY.register()
class TrainingSampler:
    """Endless passes over the records, each in its own random order.

    Args:
        num_records: at least 1.
        seed: not negative; the same on every rank.
    """

    def __init__(self, num_records: int, seed: int) -> None:
        if num_records < 1:
            raise ValueError("the training set holds no image to sample from")
        if seed < 0:
            raise ValueError(f"a sampler's seed must not be negative, not {seed}")
        self.num_records = num_records
        self.seed = seed

    @classmethod
    def from_config(cls, cfg: Any, records: Sequence[Record], seed: int) -> dict[str, Any]:
        """Needs no key."""
        del cfg
        return {"num_records": len(records), "seed": seed}

    def pass_indices(self, number: int) -> NDArray[np.int64]:
        """Record indices of pass `number` (from 0), in order; never empty."""
        return np.random.default_rng([self.seed, number]).permutation(self.num_records)

    def locate(self, position: int) -> tuple[int, int]:
        """(pass, place in it) of a position."""
        return divmod(position, self.num_records)

    def draws(self, start: int = 0, stride: int = 1) -> Iterator[Draw]:
        """Positions `start`, `start + stride`, ... without end: rank r of W reads from start + r in strides of W."""
        number, place = self.locate(start)
        indices, position = self.pass_indices(number), start
        while True:
            while place >= len(indices):
                place -= len(indices)
                number += 1
                indices = self.pass_indices(number)
            yield Draw(position, int(indices[place]))
            place += stride
            position += stride


@SAMPLER_REGISTRY.register()
class RepeatFactorSampler(TrainingSampler):
    """Passes in which images of rare classes come more than once.

    A class in a share f of the images asks for max(1, sqrt(threshold / f)) views a pass; an image gets the largest
    wish of its classes, its fraction rounded at random anew in each pass.

    Args:
        factors: (N,) views of each record in a pass, at least 1.
        seed: not negative; the same on every rank.

    Source: LVIS, arXiv:1908.03195, appendix B.2.
    """

    def __init__(self, factors: NDArray[np.float64], seed: int) -> None:
        super().__init__(len(factors), seed)
        self.factors = factors

    @classmethod
    def from_config(cls, cfg: Any, records: Sequence[Record], seed: int) -> dict[str, Any]:
        """Counts the classes of `records`."""
        return {"factors": repeat_factors(records, cfg.dataset.train.repeat_threshold), "seed": seed}

    def pass_indices(self, number: int) -> NDArray[np.int64]:
        """As the base class; passes differ in length by the rounding."""
        rng = np.random.default_rng([self.seed, number])
        whole = np.floor(self.factors)
        views = whole + (rng.random(len(whole)) < self.factors - whole)
        return rng.permutation(np.repeat(np.arange(len(views)), views.astype(np.int64)))

    def locate(self, position: int) -> tuple[int, int]:
        """As the base class, by going through the passes before."""
        number = 0
        while position >= (length := len(self.pass_indices(number))):
            position -= length
            number += 1
        return number, position


def repeat_factors(records: Sequence[Record], threshold: float) -> NDArray[np.float64]:
    """(N,) repeat factor of each record; 1 where a record has no object.

    Raises:
        ValueError: records are semantic masks, whose classes only their pixels tell.
    """
    categories = [_categories(record) for record in records]
    images_of = Counter(category for present in categories for category in present)
    wish = {c: max(1.0, (threshold * len(records) / count) ** 0.5) for c, count in images_of.items()}
    return np.array([max((wish[c] for c in present), default=1.0) for present in categories])


def _categories(record: Record) -> set[int]:
    if "sem_seg_file_name" in record:
        raise ValueError(
            f"dataset.train.sampler = RepeatFactorSampler needs annotations that list their classes, but "
            f"{record['file_name']} has a semantic mask; use TrainingSampler"
        )
    rows: Sequence[Mapping[str, Any]] = record.get("annotations") or record.get("segments_info") or ()
    return {row["category_id"] for row in rows if not row.get("iscrowd", 0)}


class InferenceShard:
    """This rank's share of a data set: contiguous, each record on exactly one rank, sizes differing by at most one.

    Args:
        num_records: of the whole set; 0 is fine, and so is a share without a record.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, num_records: int, rank: int, world_size: int) -> None:
        small, rest = divmod(num_records, world_size)
        begin = rank * small + min(rank, rest)
        self.indices = range(begin, begin + small + (rank < rest))

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(index, index) for index in self.indices)
