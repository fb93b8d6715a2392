"""What a weight scheme is: how one home names and lays out its parameters."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping

from torch import Tensor

from m2f.registry import Registry

State = dict[str, Tensor]

SCHEME_REGISTRY = Registry(
    "weight scheme",
    "A `Scheme` class. `recognises(names)` looks at parameter names alone; at most one scheme of a whole model says "
    "yes, else at most one of a backbone. `to_m2f(state)` gives m2f's names and layouts, and `from_m2f(state)`, where "
    "there is one, the way back.",
)


class Scheme(ABC):
    """One home of weights. Never instantiated: its methods are functions of a state dict.

    Names come without DistributedDataParallel's `module.`; tensors that m2f derives by itself (index tables, masks,
    class weights) are dropped on the way in, and names that mean nothing here are kept, for the report.
    """

    # Whether a state dict may hold a whole Mask2Former; else it is a backbone alone.
    whole_model: bool = False

    @staticmethod
    @abstractmethod
    def recognises(names: Collection[str]) -> bool:
        """Whether these are the names of this home."""

    @staticmethod
    @abstractmethod
    def to_m2f(state: State) -> State:
        """Names and layouts of m2f; the input is left alone."""

    @staticmethod
    def look_alike(state: State) -> str | None:  # noqa: ARG004 - for schemes to override
        """The scheme that the values give away, where another home writes the same names."""
        return None

    @staticmethod
    def from_m2f(state: State) -> State:  # noqa: ARG004 - for schemes to override
        """The way back.

        Raises:
            ValueError: this home is only read, or cannot hold the model.
        """
        raise ValueError("weights of this scheme are read, not written")


Rules = tuple[tuple[str, str], ...]

# Tensors that a model makes by itself: Swin's index tables and masks, class weights of the loss, pixel statistics.
_DERIVED = re.compile(r"(^|\.)(relative_position_index|attn_mask|pixel_mean|pixel_std)$|^(model\.)?criterion\.")


def has(names: Iterable[str], pattern: str) -> bool:
    """Whether the regular expression is found in one of the names."""
    compiled = re.compile(pattern)
    return any(compiled.search(name) for name in names)


def rename(name: str, rules: Rules) -> str:
    """Apply each (regular expression, replacement) in turn, at most once each."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def renamed(state: State, rules: Rules) -> State:
    """Apply `rename` to every name.

    Raises:
        ValueError: two names become the same.
    """
    return under(state, lambda name: rename(name, rules))


def under(state: Mapping[str, Tensor], new_name: Callable[[str], str]) -> State:
    """The same tensors under other names.

    Raises:
        ValueError: two names become the same, and one tensor would be lost.
    """
    first: dict[str, str] = {}
    for name in state:
        target = new_name(name)
        if first.setdefault(target, name) != name:
            raise ValueError(f"{first[target]} and {name} are both {target}; a file has one of them")
    return {target: state[name] for target, name in first.items()}


def below_backbone(state: State) -> State:
    """Every name below `backbone.`, where a file of a backbone alone may already have it."""
    return renamed(state, ((r"^(?!backbone\.)", "backbone."),))


def unwrapped(state: Mapping[str, Tensor]) -> State:
    """The names without DistributedDataParallel's `module.`."""
    return under(state, lambda name: name.removeprefix("module."))


def without_derived(state: State) -> State:
    """What is left when the tensors that a model derives by itself are dropped."""
    return {name: tensor for name, tensor in state.items() if not _DERIVED.search(name)}
