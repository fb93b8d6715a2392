"""Whether weights are those of the model's own network, by names and shapes; asked before anything is adapted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from m2f.checkpoint.schemes.scheme import State

PARTS = ("backbone", "pixel_decoder", "transformer_decoder")

_NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")
_STATISTICS = re.compile(r"running_(mean|var)$")

# Of a list of modules: number -> what stands below it, with shapes.
Blocks = dict[int, dict[str, torch.Size]]


def require_same_network(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse weights of another network, of which many fit by their names and would mean something else.

    Allowed are single names that one side lacks: a classifier's last norm, a module that a project has replaced, and
    whole stages after the last one that is wanted.

    Args:
        own: the model's tensors.
        state: the file's, under m2f's names.

    Raises:
        ValueError: no name fits; a part of the model would stay as it is to a good part; or both sides have the same
            parts with more blocks, more in a block, or other norms.
    """
    if not own.keys() & state.keys():
        raise ValueError(f"no weight has a name of the model; first names: {', '.join(list(state)[:3])}")
    for part in PARTS:
        _require_same_part(of_part(own, part), of_part(state, part), part)
    theirs = _lists(state)
    both = [(name, blocks, theirs[name]) for name, blocks in _lists(own).items() if name in theirs]
    for require in (_require_same_depth, _require_no_fuller_blocks):
        for name, our_blocks, their_blocks in both:
            require(name, our_blocks, their_blocks)
    _require_statistics(own, state)


def of_part(state: Mapping[str, Tensor], part: str) -> State:
    """The tensors of one of `PARTS`."""
    return {name: tensor for name, tensor in state.items() if name.startswith(part + ".")}


def without_counters(names: Iterable[str]) -> tuple[str, ...]:
    """Without the counters of batch norms: nothing reads them, and frozen ones do not have them."""
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))


def _require_same_part(own: State, state: State, part: str) -> None:
    """A part under names that the model does not have is another network, or another version's."""
    wanted, found = without_counters(own), without_counters(state)
    missing = [name for name in wanted if name not in state]
    if found and (2 * len(missing) > len(wanted) or 10 * _renamed(own, state, missing, found) > len(wanted)):
        raise ValueError(
            f"holds a {part}, but only {len(wanted) - len(missing)} of the model's {len(wanted)} tensors there; "
            f"missing {', '.join(missing[:3])} ... The weights belong to another {part}"
        )


def _renamed(own: State, state: State, missing: Sequence[str], found: Sequence[str]) -> int:
    """How many of the missing tensors may stand in the file under other names, going by their shapes."""
    unknown = Counter(state[name].shape for name in found if name not in own)
    return sum((Counter(own[name].shape for name in missing) & unknown).values())


def _lists(state: Mapping[str, Tensor]) -> dict[str, Blocks]:
    """Numbered modules, such as those below `layers.2.blocks.`, also where they hold one another."""
    lists: dict[str, Blocks] = {}
    for name in without_counters(state):
        for number in _NUMBER.finditer(name):
            block = lists.setdefault(name[: number.start()], {}).setdefault(int(number[0]), {})
            block[name[number.end() + 1 :]] = state[name].shape
    return lists


def _require_same_depth(name: str, ours: Blocks, theirs: Blocks) -> None:
    """A block more is another depth if it is like the last common one; a stage more, which is not, may be cut off."""
    here, there = max(ours), max(theirs)
    last, longer = min(here, there), ours if here > there else theirs
    if any(number > last and block == longer.get(last) for number, block in longer.items()):
        raise ValueError(
            f"{name[:-1]} ends at {there} in the file and at {here} in the model: "
            "the weights belong to a network of another depth"
        )


def _require_no_fuller_blocks(name: str, ours: Blocks, theirs: Blocks) -> None:
    """What a block has and the model's lacks changes its output; only after the last one may something be cut off."""
    for number, block in ours.items():
        more = theirs.get(number, {}).keys() - block.keys()
        if number < max(ours) and more and block.keys() <= theirs[number].keys():
            raise ValueError(
                f"{name}{number} has {min(more)} in the file, which the model lacks: the weights belong to another "
                "network"
            )


def _require_statistics(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name in own:
        weight = _STATISTICS.sub("weight", name)
        if weight != name and name not in state and weight in state:
            raise ValueError(f"has {weight}, but not {name}: the weights belong to a network with other norms")
