"""How good a model is: cells, masks and pictures against true ones, scores against clinical values."""

from wsiscore.evaluation.detection.truth import Kind, TrueCells
from wsiscore.evaluation.measure import evaluate_cases, evaluate_cells

__all__ = ["Kind", "TrueCells", "evaluate_cases", "evaluate_cells"]
