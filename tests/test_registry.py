from __future__ import annotations

import pytest

from m2f.registry import Registry


@pytest.fixture
def registry() -> Registry:
    registry = Registry("shape", "`build(name, cfg, scale)` gives an area.")

    @registry.register()
    class Square:
        def __init__(self, *, side: float, scale: float) -> None:
            self.area = side * side * scale

        @classmethod
        def from_config(cls, cfg, scale):
            return {"side": cfg["side"], "scale": scale}

    @registry.register("disc")
    def make_disc(cfg, scale):
        return 3 * cfg["side"] ** 2 * scale

    return registry


def test_classes_are_built_through_from_config_and_functions_are_called(registry):
    assert registry.build("Square", {"side": 2}, 10).area == 40
    assert registry.build("disc", {"side": 2}, 10) == 120
    assert registry.names() == ["Square", "disc"] and "disc" in registry


def test_an_unknown_name_lists_the_members_and_the_nearest(registry):
    with pytest.raises(KeyError, match=r"unknown shape 'Squares'; did you mean 'Square'\? Registered: Square, disc"):
        registry.get("Squares")
    with pytest.raises(KeyError, match=r"unknown shape 'zzz'\. Registered: Square, disc"):
        registry.get("zzz")
    with pytest.raises(KeyError, match="Registered: none"):
        Registry("empty thing", "").get("x")


def test_a_taken_name_names_its_owner(registry):
    with pytest.raises(KeyError, match=r"shape 'disc' is already registered by .*make_disc"):
        registry.register("disc")(lambda cfg: cfg)


def test_the_docstring_is_the_contract(registry):
    assert registry.__doc__ == "`build(name, cfg, scale)` gives an area."
