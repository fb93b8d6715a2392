"""Read weight files and put them into a model, saying what fitted and what did not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from m2f.checkpoint.checkpointer import load_file
from m2f.checkpoint.convert import State, to_m2f

PARTS = ("backbone", "pixel_decoder", "transformer_decoder")

# Tensors whose first axis follows the dataset or the number of queries: another length leaves them as they are.
_RESIZABLE = re.compile(r"(^|\.)(class_embed\.(weight|bias)|(query_feat|query_embed)\.weight|empty_weight)$")


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's weights.

    Attributes:
        source: path or description of the weights.
        scheme: the naming scheme found in them.
        loaded: names of the model's tensors that were set.
        fresh: names of the model's tensors that kept their initial values.
        ignored: names of tensors, converted to m2f's scheme, that the model did not use.
    """

    source: str
    scheme: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]

    def lines(self) -> list[str]:
        """Three lines for the log."""
        return [
            f"loaded {_count(self.loaded)} from {self.source} ({self.scheme} names)",
            f"not in the file, left at their initial values: {_count(self.fresh)}",
            f"in the file, not used: {_count(self.ignored)}",
        ]


def _count(names: Sequence[str], shown: int = 4) -> str:
    if not names:
        return "0 tensors"
    more = ", ..." if len(names) > shown else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:shown])}{more})"


def read_state(path: str | Path) -> tuple[State, dict[str, Any]]:
    """Read a weight file of m2f, the official code, TAO, torchvision, Microsoft's Swin or mit-han-lab.

    Args:
        path: a file that `torch.save` wrote, in any spelling that `find_checkpoint` knows.

    Returns:
        The weights under m2f's names, and what else the file holds (an m2f checkpoint's iteration, spec, metadata ...)
        with `scheme`, the naming scheme of its weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, of another kind, or holds no known weights; the message names the file.
    """
    path = Path(path)
    content = _read(path)
    weights, rest = _split(path, content)
    if "m2f_version" in rest:  # ours, whatever a project's model calls its parts
        return weights, {**rest, "scheme": "m2f"}
    try:
        state, scheme = to_m2f(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return state, {**rest, "scheme": scheme}


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, part: str | None = None
) -> LoadReport:
    """Copy weights into a model, by name.

    Args:
        model: a model with the parts `backbone`, `pixel_decoder` and `transformer_decoder`; changed in place, and only
            if nothing is wrong.
        weights: a file, or a state dict of any known scheme.
        part: one of the three parts: the rest of the file and of the model is left alone and not reported.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be used; a shape differs (the class head and the queries excepted, which then stay
            as they are); or a part that the file holds would mostly stay as it is.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"part is {part!r}; it is one of {', '.join(PARTS)}")
    own = model.state_dict()
    source, state, scheme = _open(weights, own)
    if part is not None:
        own = _of_part(own, part)
        state = _of_part(state, part)
        if not state:
            raise ValueError(f"{source} holds no weights of the {part}")
    fitting = _fitting(own, state, source)
    _refuse_unloaded_parts(own, state, source)
    model.load_state_dict(fitting, strict=False)
    return LoadReport(
        source=source,
        scheme=scheme,
        loaded=tuple(name for name in own if name in fitting),
        fresh=tuple(name for name in own if name not in fitting and not _is_counter(name)),
        ignored=tuple(name for name in state if name not in fitting and not _is_counter(name)),
    )


def _open(weights: str | Path | Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, State, str]:
    """Where the weights come from, the weights under m2f's names, and the scheme they had."""
    if not isinstance(weights, Mapping):
        state, info = read_state(weights)
        return str(weights), state, info["scheme"]
    if weights.keys() <= own.keys():  # ours, whatever a project's model calls its parts
        return "a state dict", dict(weights), "m2f"
    state, scheme = to_m2f(weights)
    return "a state dict", state, scheme


def _read(path: Path) -> dict[str, Any]:
    if path.suffix in (".pkl", ".safetensors", ".onnx"):
        raise ValueError(f"{path}: {path.suffix} files are not read; give a file that torch.save wrote (.pth, .pt)")
    return load_file(path)


def _split(path: Path, content: dict[str, Any]) -> tuple[State, dict[str, Any]]:
    """A file's weights, and the rest of it: m2f and official files have `model`, Lightning's have `state_dict`."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            rest = {other: value for other, value in content.items() if other != key}
            return _tensors(path, content[key]), rest
    return _tensors(path, content), {}


def _tensors(path: Path, weights: Mapping[str, Any]) -> State:
    state = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no weights, only {', '.join(map(str, list(weights)[:5])) or 'an empty dict'}")
    return state


def _of_part(state: Mapping[str, Tensor], part: str) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith(part + ".")}


def _is_counter(name: str) -> bool:
    """Batch norms count batches; nothing reads it, and frozen ones do not have it."""
    return name.endswith("num_batches_tracked")


def _fitting(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> State:
    """What the model can take."""
    fitting = {}
    for name in own.keys() & state.keys():
        ours, theirs = own[name].shape, state[name].shape
        if ours == theirs:
            fitting[name] = state[name]
        elif not (_RESIZABLE.search(name) and ours[1:] == theirs[1:]):
            raise ValueError(
                f"{source}: {name} has shape {tuple(theirs)}, the model's has {tuple(ours)}; "
                "the weights belong to another architecture"
            )
    return fitting


def _refuse_unloaded_parts(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """A part that the file holds under names the model does not have is another network."""
    if not own.keys() & state.keys():
        raise ValueError(f"{source}: no weight has a name of the model; first names: {', '.join(list(state)[:3])}")
    for part in PARTS:
        wanted, found = _of_part(own, part), _of_part(state, part)
        missing = [name for name in wanted if name not in found]
        if found and 2 * len(missing) > len(wanted):
            raise ValueError(
                f"{source}: holds a {part}, but only {len(wanted) - len(missing)} of the model's {len(wanted)} tensors "
                f"there; missing {', '.join(missing[:3])} ... The weights belong to another {part}"
            )
