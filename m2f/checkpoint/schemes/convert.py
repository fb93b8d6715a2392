"""The one way in and out: find a state dict's scheme and hand it over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from m2f.checkpoint.schemes.scheme import SCHEME_REGISTRY, State, unwrapped
from m2f.checkpoint.schemes.timm import to_network


def to_m2f(state: Mapping[str, Tensor], own: Collection[str] = ()) -> tuple[State, str]:
    """Convert a state dict of any registered scheme.

    Args:
        state: names and tensors as their home wrote them; left alone.
        own: names of the model's tensors; they tell how a timm network names its modules.

    Returns:
        The tensors under m2f's names, and the name of the scheme.

    Raises:
        ValueError: no scheme knows the names, or the scheme that does cannot use them.
    """
    bare = unwrapped(state)
    network = to_network(bare, own)
    if network is not None:
        return network, "timm"
    scheme = detect(bare)
    scheme = SCHEME_REGISTRY.get(scheme).look_alike(bare) or scheme
    return SCHEME_REGISTRY.get(scheme).to_m2f(bare), scheme


def from_m2f(state: Mapping[str, Tensor], scheme: str) -> State:
    """Give a model's tensors another home's names and layouts.

    Raises:
        KeyError: there is no such scheme.
        ValueError: it is only read, or cannot hold this model.
    """
    home = SCHEME_REGISTRY.get(scheme)
    try:
        return home.from_m2f(dict(state))
    except ValueError as error:
        raise ValueError(f"{scheme}: {error}") from None


def detect(names: Iterable[str]) -> str:
    """The name of the scheme that recognises these names.

    Raises:
        ValueError: none does, or several do.
    """
    bare = [name.removeprefix("module.") for name in names]
    found = [name for name in SCHEME_REGISTRY.names() if SCHEME_REGISTRY.get(name).recognises(bare)]
    whole = [name for name in found if SCHEME_REGISTRY.get(name).whole_model]
    if not found:
        raise ValueError(
            f"unknown weight names ({', '.join(bare[:3]) or 'none at all'} ...); "
            f"m2f reads {', '.join(SCHEME_REGISTRY.names())}, and timm's where model.backbone.type is timm and "
            "model.backbone.timm.name is the file's network"
        )
    if len(whole or found) > 1:
        raise ValueError(f"weight names of {' and '.join(whole or found)} at once; a file has those of one home")
    return (whole or found)[0]
