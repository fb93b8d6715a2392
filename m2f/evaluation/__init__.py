"""Outputs to numbers."""

from m2f.evaluation.build import EVALUATOR_REGISTRY, build_evaluators
from m2f.evaluation.evaluator import Evaluator, OnBatch, inference_on_dataset
from m2f.evaluation.instance import InstanceEvaluator
from m2f.evaluation.panoptic import PanopticEvaluator
from m2f.evaluation.results import format_results, write_class_csv, write_results
from m2f.evaluation.semantic import SemanticEvaluator

__all__ = [
    "EVALUATOR_REGISTRY",
    "Evaluator",
    "InstanceEvaluator",
    "OnBatch",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "build_evaluators",
    "format_results",
    "inference_on_dataset",
    "write_class_csv",
    "write_results",
]
