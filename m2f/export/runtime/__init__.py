"""Runs an exported graph like a model, on numpy, Pillow and ONNX Runtime alone: no torch, nothing else of m2f's needs.

Read along the path: preprocess (a picture to the graph's input), session (the file), resizing and postprocess (outputs
to answers), model (all of it).
"""

from m2f.export.runtime.answers import Answer, InstanceAnswer, PanopticAnswer
from m2f.export.runtime.model import GraphModel, OnnxModel

__all__ = ["Answer", "GraphModel", "InstanceAnswer", "OnnxModel", "PanopticAnswer"]
