"""m2f: a registry-driven research framework for Mask2Former. Importing it loads nothing heavy."""

__version__ = "0.1.0"
