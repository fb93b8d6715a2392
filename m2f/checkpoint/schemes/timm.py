"""Files of timm, any network, for `model.backbone.type: timm` with the same network."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from m2f.checkpoint.schemes.scheme import State, under

_NETWORK = "backbone.network."
_WRAPPERS = ("model.", "body.", "backbone.")


def to_network(state: State, own: Collection[str]) -> State | None:
    """Give a whole network's tensors the names they have in the model's `features_only` network.

    timm builds that one from the same modules and names them anew: `stages.0` is `stages_0` there, or everything
    stands below `model.` or `body.`. So names are compared without regard to wrappers and to `.` against `_`.

    Args:
        state: a file's tensors.
        own: names of the model's tensors.

    Returns:
        All tensors below `backbone.network.`: those the network lacks below the module of the network in which they
        would stand, or, such as a head's, under the file's names. None: the model has no timm network, or the file at
        most half of its tensors.

    Raises:
        ValueError: two of the network's names, or two of the file's, cannot be told apart in this way.
    """
    wanted = _joined([name.removeprefix(_NETWORK) for name in own if name.startswith(_NETWORK)])
    held = _joined(state) if wanted else {}
    if 2 * len(wanted.keys() & held.keys()) <= len(wanted):
        return None
    modules = {
        joint[: -len(below)]: name[: -len(below)] for joint, name in wanted.items() for below in _tails(joint, name)
    }
    new = {name: wanted.get(joint) or _in_its_module(joint, name, modules) for joint, name in held.items()}
    return under(state, lambda name: _NETWORK + new[name])


def _joined(names: Collection[str]) -> dict[str, str]:
    """Each name by what is left of it without wrapper and joints.

    Raises:
        ValueError: see `to_network`.
    """
    wrapper = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in names)), "")
    joined: dict[str, str] = {}
    for name in names:
        other = joined.setdefault(name.removeprefix(wrapper).replace(".", "_"), name)
        if other != name:
            raise ValueError(f"{other} and {name} cannot be told apart: timm may write a dot as an underscore")
    return joined


def _in_its_module(joint: str, name: str, modules: Mapping[str, str]) -> str:
    """The name in the innermost module of the network, by joint, that it can stand in; else as it is."""
    for below in _tails(joint, name):
        if joint[: -len(below)] in modules:
            return modules[joint[: -len(below)]] + below
    return name


def _tails(joint: str, name: str) -> list[str]:
    """The name from each of its dots on, the shortest first, without its wrapper, which the joint has lost."""
    bare = name[len(name) - len(joint) :]
    return [bare[dot.start() :] for dot in reversed(list(re.finditer(r"\.", bare)))]
