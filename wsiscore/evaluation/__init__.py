"""Evaluation: cells, masks and pictures against annotated ones, scores against clinical values."""

from wsiscore.evaluation.cohort.evaluate import evaluate_cases
from wsiscore.evaluation.detection.evaluate import evaluate_cells
from wsiscore.evaluation.detection.truth import Kind, TrueCells

__all__ = ["Kind", "TrueCells", "evaluate_cases", "evaluate_cells"]
