"""Class names wherever a home writes them, and no guess where it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from m2f.checkpoint.class_names import class_names, m2f_metadata
from m2f.structures.metadata import Category, Metadata

METADATA = Metadata("tiny", (Category(1, "cat"), Category(5, "sky", is_thing=False)))
NAMES = ("cat", "sky")


@pytest.mark.parametrize(
    "rest",
    [
        {"metadata": METADATA.to_dict()},
        {"header": {"format": "pt", "metadata": json.dumps(METADATA.to_dict())}},
        {"class_names": ["cat", "sky"], "m2f_version": "0"},
        {"header": {"class_names": '["cat", "sky"]'}},
        {"config": {"id2label": {"0": "cat", "1": "sky"}}},
        {"config": {"id2label": {1: "sky", 0: "cat"}}},
        {"meta": {"dataset_meta": {"classes": ("cat", "sky"), "palette": [[0, 0, 0]]}}},
        {"meta": {"dataset_meta": {"CLASSES": ["cat", "sky"]}}},
        {"meta": {"CLASSES": ("cat", "sky"), "config": "..."}},
    ],
)
def test_every_home_says_it_in_its_own_way(rest: dict[str, Any]) -> None:
    assert class_names({**rest, "iteration": 3}) == NAMES


def test_ten_labels_are_in_the_order_of_their_numbers() -> None:
    labels = {str(label): f"class {label}" for label in range(12)}
    assert class_names({"config": {"id2label": dict(sorted(labels.items()))}}) == tuple(labels.values())


@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"header": {"format": "pt"}},  # what every safetensors file says of itself
        {"header": {"class_names": "cat, sky", "metadata": "{"}},
        {"metadata": {"format": "pt"}},
        {"metadata": None},
        {"metadata": {"name": "x", "ignore_label": 255, "categories": [[1, "cat"]]}},
        {"metadata": {"name": "x", "ignore_label": 255, "categories": [[1, 7, True, [0, 0, 0], False]]}},
        {"metadata": {"name": "x", "ignore_label": 255, "categories": 3}},
        {"config": {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}},  # nobody has given names
        {"config": {"id2label": {"0": "cat", "2": "sky"}}},
        {"config": {"id2label": {"0": "cat", "1": 3}}},
        {"config": {"id2label": ["cat", "sky"]}},
        {"config": {"id2label": {}}},
        {"config": "tiny"},
        {"meta": {"dataset_meta": {"classes": "cat"}, "CLASSES": None}},
        {"meta": {"dataset_meta": {"classes": ("cat", 3)}}},
        {"meta": {"dataset_meta": {"classes": ()}}},
        {"meta": 3},
    ],
)
def test_what_is_not_understood_is_not_guessed(rest: dict[str, Any]) -> None:
    assert class_names(rest) is None


def test_m2f_says_more_than_names() -> None:
    assert m2f_metadata({"metadata": METADATA.to_dict()}) == METADATA
    assert m2f_metadata({"config": {"id2label": {"0": "cat"}}}) is None
