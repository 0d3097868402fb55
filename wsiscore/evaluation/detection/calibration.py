"""Expected calibration error of the positivity of matched cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

__all__ = ["N_BINS", "Calibration"]

N_BINS = 10
"""Number of bins of equal width in [0, 1]: [0, 0.1), …, [0.9, 1]."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sums over the cells of each bin of positivity; those of different images add up.

    Parameters
    ----------
    n
        Number of cells.
    positivity
        Sum of their positivity.
    positive
        Number of truly positive ones.
    """

    n: tuple[int, ...] = (0,) * N_BINS
    positivity: tuple[float, ...] = (0.0,) * N_BINS
    positive: tuple[int, ...] = (0,) * N_BINS

    @classmethod
    def of(cls, positivity: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> Self:
        """Return the sums over cells.

        Parameters
        ----------
        positivity
            (N,) predicted, in [0, 1]; cells with nan are left out.
        positive
            (N,): whether each cell is truly positive.
        """
        defined = np.isfinite(positivity)
        positivity, positive = positivity[defined], positive[defined]
        bins = np.minimum((positivity * N_BINS).astype(np.intp), N_BINS - 1)
        n, of_positivity, of_positive = (
            np.bincount(bins, weights, N_BINS).tolist() for weights in (None, positivity, positive.astype(np.float64))
        )
        return cls(tuple(n), tuple(of_positivity), tuple(round(count) for count in of_positive))

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            tuple(a + b for a, b in zip(self.n, other.n, strict=True)),
            tuple(a + b for a, b in zip(self.positivity, other.positivity, strict=True)),
            tuple(a + b for a, b in zip(self.positive, other.positive, strict=True)),
        )

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1], 0 is best; nan without cells.

        The mean over the bins, weighted by their number of cells, of the absolute difference between the fraction of
        truly positive cells and the mean positivity. Source: Naeini et al., AAAI 2015, 2901 (ECE, 10 bins of equal
        width).
        """
        gaps = (abs(true - predicted) for true, predicted in zip(self.positive, self.positivity, strict=True))
        return sum(gaps) / sum(self.n) if sum(self.n) else math.nan
