"""Weights and training states, in and out."""
