"""Tensors with a row per class or per query: carried over by category name, by place, or again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m2f.checkpoint.schemes.scheme import State

SHOWN = 4  # names that a line lists


@dataclass(frozen=True)
class ClassLists:
    """What the rows of a class head mean, no-object left out.

    Attributes:
        theirs: names of the file's classes in label order, or None where it does not say.
        ours: those of the model.
        gaps: labels of the model that no category of the dataset uses; their names mean nothing.
    """

    theirs: Sequence[str] | None = None
    ours: Sequence[str] | None = None
    gaps: frozenset[int] = frozenset()


def carry_class_rows(own: State, theirs: State, *, classes: ClassLists, complete: bool) -> tuple[State, list[str]]:
    """Rows of the (K+1, ...) class head: by category name where both sides have names, else by their place.

    Names are compared without regard to case and surrounding blanks; one that a side has twice fits nothing. The
    no-object row, the last, comes along with any other. Rows without a counterpart keep the model's values.

    Raises:
        ValueError: the head's tensors have different numbers of rows; or the model must be complete and is not.
    """
    if not _differ_in_rows_alone(own, theirs):
        return theirs, []
    here, there = (_num_rows(tensors) - 1 for tensors in (own, theirs))
    ours, others = _names(classes.ours, here), _names(classes.theirs, there)
    if ours is None or others is None:
        return _by_place(theirs, here, there, complete)
    if ours == others:
        return theirs, []
    rows = _matches(ours, others, classes.gaps)
    if complete and not len(rows) == here == there:
        raise ValueError(_other_classes(classes, rows))
    if not rows:
        return {}, [
            f"class head: left at its initial values, none of the file's {there} classes "
            f"({_some(classes.theirs)}) is one of the model's {here} ({_some(classes.ours)})"
        ]
    fitted = {name: _with_rows(own[name].to(tensor), tensor, rows) for name, tensor in theirs.items()}
    return fitted, [_rows_said(classes, rows)]


def fit_queries(own: State, theirs: State, *, complete: bool) -> tuple[State, list[str]]:
    """Learned (Q, C) queries: the first of them, or all of them again and again, until there are the model's Q.

    Raises:
        ValueError: features and positions are not equally many; or the model must be complete and Q differs.
    """
    if not _differ_in_rows_alone(own, theirs):
        return theirs, []
    here, there = _num_rows(own), _num_rows(theirs)
    if here == there:
        return theirs, []
    if complete:
        raise ValueError(
            f"the file has {there} queries and the model {here}, so it would answer otherwise; "
            f"set model.mask_former.num_object_queries to {there}"
        )
    fitted = {name: tensor[torch.arange(here, device=tensor.device) % there] for name, tensor in theirs.items()}
    return fitted, [f"queries: the first {here} of {there}" if here < there else f"queries: {there} repeated to {here}"]


def _differ_in_rows_alone(own: State, theirs: State) -> bool:
    return all(
        tensor.ndim == own[name].ndim > 0 and len(tensor) > 0 and tensor.shape[1:] == own[name].shape[1:]
        for name, tensor in theirs.items()
    )


def _num_rows(tensors: State) -> int:
    """The one number of rows of them all."""
    rows = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"{' and '.join(f'{name} has {n} rows' for name, n in rows.items())}: the file is damaged")
    return next(iter(rows.values()))


def _names(names: Sequence[str] | None, number: int) -> list[str] | None:
    """Names as they are compared; None where there is not one for each row."""
    if names is None or len(names) != number:
        return None
    return [_key(name) for name in names]


def _key(name: str) -> str:
    return name.strip().casefold()


def _by_place(theirs: State, here: int, there: int, complete: bool) -> tuple[State, list[str]]:
    if here == there:
        return theirs, []
    differ = f"the file has {there} classes and the model {here}"
    if complete:
        raise ValueError(f"{differ}; set model.sem_seg_head.num_classes to {there} and evaluate on data of its classes")
    return {}, [f"class head: left at its initial values, as {differ}, and not both sides have names for them"]


def _matches(ours: Sequence[str], others: Sequence[str], gaps: frozenset[int]) -> dict[int, int]:
    """Label here -> label there."""
    here, there = Counter(ours), Counter(others)
    place = {name: label for label, name in enumerate(others) if there[name] == 1}
    return {
        label: place[name] for label, name in enumerate(ours) if name in place and here[name] == 1 and label not in gaps
    }


def _with_rows(own: Tensor, theirs: Tensor, rows: Mapping[int, int]) -> Tensor:
    """A copy of the model's rows with the file's in the places of their classes, and its no-object."""
    filled = own.clone()
    filled[[*rows, -1]] = theirs[[*rows.values(), -1]]
    return filled


def _rows_said(classes: ClassLists, rows: Mapping[int, int]) -> str:
    left, unused = _unmatched(classes, rows)
    ours = len(rows) + len(left)
    if not left and not unused:
        return f"class head: {_count(ours, 'row')} by category name, as the order of the classes is another"
    fresh = f"fresh: {_some(left)}" if left else "none is fresh"
    spare = f"; not used of the file's: {_some(unused)}" if unused else ""
    return f"class head: {len(rows)} of {_count(ours, 'row')} by category name, {fresh}{spare}"


def _other_classes(classes: ClassLists, rows: Mapping[int, int]) -> str:
    left, unused = _unmatched(classes, rows)
    return (
        f"the file's {len(classes.theirs or ())} classes and the model's {len(classes.ours or ())} differ, so labels "
        f"would mean something else: only the model has {_some(left)}; only the file has {_some(unused)}"
    )


def _unmatched(classes: ClassLists, rows: Mapping[int, int]) -> tuple[list[str], list[str]]:
    """Names of the model's classes and of the file's that found none on the other side."""
    used = set(rows.values())
    left = [name for label, name in enumerate(classes.ours or ()) if label not in rows]
    return left, [name for label, name in enumerate(classes.theirs or ()) if label not in used]


def _some(names: Sequence[str] | None) -> str:
    names = names or ["none"]
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
