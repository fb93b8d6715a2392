"""Disk to model input. Importing the room registers its formats, builtin datasets, mappers and samplers."""

from m2f.data import datasets, mappers, samplers

__all__ = ["datasets", "mappers", "samplers"]
