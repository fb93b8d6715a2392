"""Pairs of names as rules there and back; joined and split projections."""

from __future__ import annotations

import pytest
import torch

from m2f.checkpoint.schemes.scheme import rename
from m2f.checkpoint.schemes.two_way import Pairs, back, joined, split, there

PAIRS: Pairs = (
    ("decoder.adapter_*.1", "adapter_*.norm"),
    ("decoder.adapter_*.0", "adapter_*"),
    ("encoder.*.blocks.*", "layers.*.blocks.*"),
)
PARTS = (".q.", ".k.", ".v.")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("decoder.adapter_1.0.weight", "adapter_1.weight"),
        ("decoder.adapter_12.1.bias", "adapter_12.norm.bias"),
        ("encoder.3.blocks.17.fc.weight", "layers.3.blocks.17.fc.weight"),
        ("encoder.3.blocks.17", "layers.3.blocks.17"),
        ("decoder.adapterX1.0.weight", "decoder.adapterX1.0.weight"),
        ("encoder.3.blocks", "encoder.3.blocks"),
        ("my.encoder.3.blocks.1.x", "my.encoder.3.blocks.1.x"),
    ],
)
def test_names_there_and_back(theirs: str, ours: str) -> None:
    assert rename(theirs, there(PAIRS)) == ours
    assert rename(ours, back(PAIRS)) == theirs


def test_projections_are_stacked_in_the_order_of_the_parts() -> None:
    q, k, v = torch.randn(3, 4, 5)
    state = {"a.v.weight": v, "other": q, "a.k.weight": k, "a.q.weight": q}
    whole = joined(state, PARTS, ".qkv.")
    assert list(whole) == ["a.qkv.weight", "other"]
    assert whole["a.qkv.weight"].equal(torch.cat([q, k, v]))
    again = split(whole, ".qkv.", PARTS)
    assert again.keys() == state.keys()
    assert all(again[name].equal(tensor) for name, tensor in state.items())


def test_split_parts_share_no_memory() -> None:
    parts = split({"a.qkv.bias": torch.zeros(6)}, ".qkv.", PARTS)
    assert len({tensor.untyped_storage().data_ptr() for tensor in parts.values()}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.k.weight": None}, r"a\.k\.weight is missing, though a\.q\.weight"),
        ({"a.q.weight": None}, r"a\.q\.weight is missing, though a\.k\.weight"),
        ({"a.v.weight": torch.zeros(2, 5)}, r"a\.v\.weight \(2, 5\)"),
        ({"a.v.weight": torch.zeros(4, 5, dtype=torch.float64)}, "differ in shape or type"),
        ({f"a.{part}.weight": torch.tensor(0.0) for part in "qkv"}, "differ in shape or type"),
        ({"a.qkv.weight": torch.zeros(12, 5)}, r"a part of a\.qkv\.weight"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, torch.Tensor | None], message: str) -> None:
    state = {f"a.{part}.weight": torch.zeros(4, 5) for part in "qkv"} | change
    with pytest.raises(ValueError, match=message):
        joined({name: tensor for name, tensor in state.items() if tensor is not None}, PARTS, ".qkv.")
