"""Several answers about one image made one: of its tiles, or of versions of it."""

from m2f.merging.augmentation import AugmentedPredictor
from m2f.merging.tiles import TiledPredictor

__all__ = ["AugmentedPredictor", "TiledPredictor"]
