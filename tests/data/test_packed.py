from __future__ import annotations

import pickle

import pytest

from m2f.data.packed import PackedRecords
from m2f.structures.sample import Record

RECORDS: list[Record] = [
    {"file_name": f"/{i}.jpg", "image_id": i, "annotations": [{"category_id": i, "segmentation": [[0.5] * i]}]}
    for i in range(9)
]


def test_it_is_a_list_of_the_records() -> None:
    packed = PackedRecords(RECORDS)
    assert len(packed) == 9 and list(packed) == RECORDS
    assert packed[-1] == RECORDS[-1] and packed[2:7:2] == RECORDS[2:7:2]
    for index in (9, -10):
        with pytest.raises(IndexError, match="of 9"):
            packed[index]
    assert len(PackedRecords([])) == 0


def test_one_buffer_holds_everything() -> None:
    packed = PackedRecords(RECORDS)
    assert len(packed._bytes) == sum(len(pickle.dumps(r, protocol=pickle.HIGHEST_PROTOCOL)) for r in RECORDS)
    assert list(pickle.loads(pickle.dumps(packed))) == RECORDS


def test_a_record_taken_out_is_a_copy() -> None:
    packed = PackedRecords(RECORDS)
    packed[3]["annotations"].clear()
    assert packed[3] == RECORDS[3]
