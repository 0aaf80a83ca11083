"""Evaluation of long-context models, one module per measurement."""
