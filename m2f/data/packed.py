"""Records off the Python heap, so that memory does not grow with the number of loader workers."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch

from m2f.structures.sample import Record


class PackedRecords(Sequence[Record]):
    """A read-only list of records, pickled end to end into one buffer.

    Forked workers share the pages: nothing in them counts references, so none is ever copied. Spawned workers share the
    tensors' storage. Only pickles made by this object are ever read.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        pickles = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        ends = np.cumsum([0, *map(len, pickles)], dtype=np.int64)
        self._ends = torch.from_numpy(ends)
        self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(pickles)), dtype=np.uint8))

    @classmethod
    def of(cls, records: Iterable[Record]) -> PackedRecords:
        """The records packed; as they are if they are already."""
        return records if isinstance(records, cls) else cls(records)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        begin, end = self._ends[place : place + 2].tolist()
        record: Record = pickle.loads(self._bytes[begin:end].numpy().data)
        return record
