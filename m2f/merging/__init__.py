"""Several answers about one image made one: tiles of it, or versions of it."""

from m2f.merging.tiles import TiledPredictor

__all__ = ["AugmentedPredictor", "TiledPredictor"]
