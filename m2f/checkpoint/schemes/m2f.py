"""m2f's own names."""

from __future__ import annotations

from collections.abc import Collection

from m2f.checkpoint.schemes.scheme import SCHEME_REGISTRY, Scheme, State, has, without_derived


@SCHEME_REGISTRY.register("m2f")
class M2F(Scheme):
    """Below `backbone.`, `pixel_decoder.` and `transformer_decoder.`."""

    whole_model = True

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """The decoders' names, or a backbone of a project, which no other scheme knows."""
        if has(names, r"^(pixel_decoder|transformer_decoder)\."):
            return True
        others = (SCHEME_REGISTRY.get(name) for name in SCHEME_REGISTRY.names() if name != "m2f")
        is_backbone = bool(names) and all(name.startswith("backbone.") for name in names)
        return is_backbone and not any(other.recognises(names) for other in others)

    @staticmethod
    def to_m2f(state: State) -> State:
        """Nothing to rename."""
        return without_derived(state)

    @staticmethod
    def from_m2f(state: State) -> State:
        """Nothing to rename."""
        return dict(state)
