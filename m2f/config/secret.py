"""The one value of a spec that is read and never written: nothing that m2f leaves behind, a log included, holds it."""

from __future__ import annotations

from collections.abc import Sequence

SECRET = "encryption_key"
HIDDEN = "<hidden>"


def without_key(arguments: Sequence[str]) -> list[str]:
    """The words of a command line as they may be shown; the key is hidden in either way of writing it."""
    shown: list[str] = []
    for word in arguments:
        is_value = shown[-1:] == [SECRET]
        shown.append(HIDDEN if is_value else f"{SECRET}={HIDDEN}" if word.startswith(f"{SECRET}=") else word)
    return shown
