"""The one door for weights: from any file of any known home into a model, saying what fitted and what did not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from m2f.checkpoint.adapting import CLASS_HEAD, adapt
from m2f.checkpoint.architecture import PARTS, of_part, require_same_network, without_counters
from m2f.checkpoint.class_names import class_names
from m2f.checkpoint.files import Content, read_content
from m2f.checkpoint.rows import ClassLists
from m2f.checkpoint.schemes import State, to_m2f
from m2f.checkpoint.schemes.scheme import unwrapped
from m2f.structures.metadata import Metadata


@dataclass(frozen=True)
class Info:
    """What is known of weights beside their values.

    Attributes:
        source: where they come from, for messages.
        scheme: the naming scheme they had.
        class_names: in label order; None where the file does not say.
        rest: what else the file holds (an m2f checkpoint's iteration, spec, metadata; a Hugging Face folder's config).
    """

    source: str
    scheme: str
    class_names: tuple[str, ...] | None
    rest: dict[str, Any]


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's weights.

    Attributes:
        source: path or description of the weights.
        scheme: the naming scheme found in them.
        loaded: names of the model's tensors that were set.
        fresh: names of the model's tensors that kept their initial values.
        ignored: names of tensors, converted to m2f's scheme, that the model did not use.
        adapted: a line for each rule that changed tensors to make them fit.
        by_place: the rows of the class head were taken in the file's order, since not both sides name their classes.
    """

    source: str
    scheme: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    by_place: bool = False

    def lines(self) -> list[str]:
        """Three lines for the log, and those of the rules."""
        order = "; class rows by their place, as not both sides name them" if self.by_place else ""
        return [
            f"loaded {_count(self.loaded)} from {self.source} ({self.scheme} names){order}",
            f"left at their initial values: {_count(self.fresh)}",
            f"in the file, not used: {_count(self.ignored)}",
            *self.adapted,
        ]


def load_weights(
    model: nn.Module,
    weights: str | Path | Mapping[str, Tensor],
    *,
    part: str | None = None,
    complete: bool = False,
    key: str = "",
) -> LoadReport:
    """Copy weights into a model, by name, adapting what has a rule for it.

    Args:
        model: a model with the parts `backbone`, `pixel_decoder` and `transformer_decoder`; changed in place, and only
            if nothing is wrong. Its `metadata`, where it has one, says what its classes are.
        weights: what `read_state` reads.
        part: one of the three parts: the rest of the file and of the model is left alone and not reported.
        complete: the model shall answer as the file's did, so nothing may be left at its initial values.
        key: of an encrypted file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be used; it is of another network (see `architecture`); a tensor does not fit (see
            `adapting`); or the model is not complete and has to be.
    """
    state, info = read_state(weights, model.state_dict().keys(), key)
    return load_state(model, state, info, part=part, complete=complete)


def read_state(
    weights: str | Path | Mapping[str, Tensor], own: Collection[str] = (), key: str = ""
) -> tuple[State, Info]:
    """Read weights of any home that m2f knows.

    Args:
        weights: a file, a folder or a `package:`, as `files.read_content` takes them; or a state dict.
        own: names of the tensors of the model that they are for. A state dict with no other names is m2f's, whatever a
            project's model calls its parts.
        key: of an encrypted file.

    Returns:
        The weights under m2f's names, and what else is known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, of another kind, encrypted with another key, holds no known weights, or two of
            them become one; the message names the file.
        TypeError: `weights` is none of the three, or a state dict of something else than tensors.
    """
    content = _content(weights, key)
    try:
        bare = unwrapped(content.state)
        is_ours = _is_ours(content.rest) or bare.keys() <= set(own)
        state, scheme = (bare, "m2f") if is_ours else to_m2f(bare, own)
    except ValueError as error:
        raise ValueError(f"{content.source}: {error}") from None
    return state, Info(content.source, scheme, class_names(content.rest), content.rest)


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], info: Info, *, part: str | None = None, complete: bool = False
) -> LoadReport:
    """Copy what `read_state` gave into a model; see `load_weights`."""
    if part is not None and part not in PARTS:
        raise ValueError(f"part is {part!r}; it is one of {', '.join(PARTS)}")
    own = model.state_dict()
    try:
        if part is not None:
            own, state = of_part(own, part), of_part(state, part)
            if not state:
                raise ValueError(f"holds no weights of the {part}")
        require_same_network(own, state)
        classes = _class_lists(model, info)
        fitting, adapted = adapt(own, state, classes, complete=complete)
        fresh = without_counters(name for name in own if name not in fitting)
        if complete and fresh:
            raise ValueError(f"lacks {_count(fresh)}, without which the model cannot answer")
    except ValueError as error:
        raise ValueError(f"{info.source}: {error}") from None
    model.load_state_dict(fitting, strict=False)
    return LoadReport(
        source=info.source,
        scheme=info.scheme,
        loaded=tuple(name for name in own if name in fitting),
        fresh=fresh,
        ignored=without_counters(name for name in state if name not in fitting),
        adapted=tuple(adapted),
        by_place=None in (classes.ours, classes.theirs) and any(map(CLASS_HEAD.search, fitting)),
    )


def _content(weights: str | Path | Mapping[str, Tensor], key: str) -> Content:
    if isinstance(weights, (str, Path)):
        return read_content(weights, key)
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights are a {type(weights).__name__}; give a path or a state dict")
    other = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if other or not weights:
        raise TypeError(f"a state dict maps names to tensors; this one has {', '.join(map(str, other[:3])) or 'none'}")
    return Content("a state dict", dict(weights), {})


def _is_ours(rest: Mapping[str, Any]) -> bool:
    """Whether m2f wrote the file, as a checkpoint or as safetensors."""
    header = rest.get("header")
    return "m2f_version" in rest or (isinstance(header, Mapping) and "m2f_version" in header)


def _class_lists(model: nn.Module, info: Info) -> ClassLists:
    metadata = getattr(model, "metadata", None)
    if not isinstance(metadata, Metadata):
        return ClassLists(info.class_names)
    gaps = frozenset(label for label, category in enumerate(metadata.categories) if category.is_gap)
    return ClassLists(info.class_names, metadata.names, gaps)


def _count(names: Sequence[str], shown: int = 4) -> str:
    if not names:
        return "0 tensors"
    more = ", ..." if len(names) > shown else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:shown])}{more})"
