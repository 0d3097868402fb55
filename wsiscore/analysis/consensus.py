"""Consensus: how far several models agree on one slide, cell by cell and in the index."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiscore.cells.table import Cells

__all__ = ["MATCH_UM", "MOST_APART", "OtherModel", "compare_cells", "difference", "disagree"]

MATCH_UM = 6.0
"""Greatest distance of two cells, in micrometres, that are taken for one; as `wsiscore evaluate cells` has it."""
MOST_APART = 10.0
"""Points of the index by which models may differ before they are said to disagree; ours."""


@dataclass(frozen=True, slots=True)
class OtherModel:
    """What another model counted in the same regions, and how far it agrees with the model that is reported.

    Parameters
    ----------
    model
        Its name.
    n_positive, n
        Positive cells, and all that it counted.
    n_first
        Cells that the reported model counted.
    matched
        Cells that both found: positive by both, by the reported model alone, by this one alone, negative by both.
    """

    model: str
    n_positive: int
    n: int
    n_first: int
    matched: tuple[int, int, int, int]

    def __add__(self, other: OtherModel) -> OtherModel:
        """Return the counts of this model on two slides together."""
        both, first, alone, neither = (a + b for a, b in zip(self.matched, other.matched, strict=True))
        n_positive, n, n_first = self.n_positive + other.n_positive, self.n + other.n, self.n_first + other.n_first
        return OtherModel(self.model, n_positive, n, n_first, (both, first, alone, neither))

    @property
    def index(self) -> float:
        """Its index in percent; nan without cells."""
        return 100.0 * self.n_positive / self.n if self.n else math.nan

    @property
    def found_by_both(self) -> float:
        """Cells that both found, of the mean number that they found (Dice), in [0, 1]; nan without cells."""
        both = self.n + self.n_first
        return 2 * sum(self.matched) / both if both else math.nan

    @property
    def kappa(self) -> float:
        """Cohen's kappa of the classes of the cells that both found; nan where all are of one class.

        References
        ----------
        J. Cohen, Educ. Psychol. Meas. 20 (1960) 37.
        """
        both, first, other, neither = self.matched
        if not (n := sum(self.matched)):
            return math.nan
        chance = ((both + first) * (both + other) + (neither + first) * (neither + other)) / n**2
        return ((both + neither) / n - chance) / (1 - chance) if chance < 1 else math.nan


def compare_cells(model: str, first: Cells, other: Cells) -> OtherModel:
    """Return how far the cells of another model agree with those of the model that is reported.

    Two cells are one if each is the nearest to the other among the cells of its model, within `MATCH_UM`.

    Parameters
    ----------
    model
        Name of the other model.
    first, other
        The counted cells of the reported model and of the other one.
    """
    pairs = _nearest_pairs(first, other)
    a, b = first.positive[pairs[0]], other.positive[pairs[1]]
    counts = (a & b, a & ~b, ~a & b, ~a & ~b)
    both, alone, by_other, neither = (int(np.count_nonzero(each)) for each in counts)
    n_positive = int(np.count_nonzero(other.positive))
    return OtherModel(model, n_positive, len(other), len(first), (both, alone, by_other, neither))


def difference(indices: Iterable[float]) -> float:
    """Return the largest difference between indices, in points; nan for fewer than two that are known."""
    known = [index for index in indices if math.isfinite(index)]
    return max(known) - min(known) if len(known) > 1 else math.nan


def disagree(indices: Iterable[float], cutoff: float) -> bool:
    """Return whether models disagree.

    They do if their indices lie on different sides of the cutoff, if they differ by more than `MOST_APART`, or if some
    found cells and others none.

    Parameters
    ----------
    indices
        Of each model, in percent; nan of one that found no cells.
    cutoff
        Percent.
    """
    found = list(indices)
    known = [index for index in found if math.isfinite(index)]
    sides = {index >= cutoff for index in known}
    return len(sides) > 1 or difference(known) > MOST_APART or 0 < len(known) < len(found)


def _nearest_pairs(first: Cells, other: Cells) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the numbers of the cells that are each other's nearest, and near enough."""
    from scipy.spatial import KDTree

    none = np.empty(0, np.int64)
    if not len(first) or not len(other):
        return none, none
    a, b = (np.stack([cells.x_um, cells.y_um], axis=1) for cells in (first, other))
    _, in_first = KDTree(a).query(b)
    distance, in_other = KDTree(b).query(a)
    own = np.arange(len(a))
    pairs = (in_first[in_other] == own) & (distance <= MATCH_UM)
    return own[pairs], np.asarray(in_other[pairs], np.int64)
