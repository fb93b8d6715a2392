"""Names to classes: the one way to plug a component into m2f.

A component takes real arguments in `__init__`; its `from_config` turns a cfg (and context) into those arguments;
`Registry.build` joins the two. A component may also be a plain function of the same call contract.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from fvcore.common.registry import Registry as _FvcoreRegistry


class Registry(_FvcoreRegistry):
    """A named set of components, filled by decorators at import.

    Args:
        name: what the members are, in the singular and as a user would say it ("backbone").
        contract: how a member is called or built; shown to readers, not checked.
    """

    def __init__(self, name: str, contract: str) -> None:
        super().__init__(name)
        self.__doc__ = contract

    def register(self, name: str | None = None) -> Callable[[Any], Any]:
        """Decorate a class or function with its registered name (default: its own name).

        Raises:
            KeyError: the name is taken; the message names the first owner.
        """

        def decorate(component: Any) -> Any:
            key = name or component.__name__
            owner = self._obj_map.get(key)
            if owner is not None:
                raise KeyError(f"{self._name} {key!r} is already registered by {owner.__module__}.{owner.__qualname__}")
            self._obj_map[key] = component
            return component

        return decorate

    def get(self, name: str) -> Any:
        """Return the member called `name`.

        Raises:
            KeyError: there is none; the message lists the members and names the nearest.
        """
        if name in self._obj_map:
            return self._obj_map[name]
        near = difflib.get_close_matches(name, self._obj_map, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise KeyError(f"unknown {self._name} {name!r}{hint} Registered: {', '.join(sorted(self._obj_map)) or 'none'}")

    def build(self, name: str, cfg: Any, *context: Any) -> Any:
        """Build the member called `name` from a cfg and the context its contract asks for."""
        component = self.get(name)
        if hasattr(component, "from_config"):
            return component(**component.from_config(cfg, *context))
        return component(cfg, *context)

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._obj_map)
