"""Predictions as files: COCO results, COCO panoptic and masks of category ids, written and read back."""

from m2f.data.predictions.reader import SavedPredictions
from m2f.data.predictions.writer import PredictionWriter

__all__ = ["PredictionWriter", "SavedPredictions"]
