"""The convention: the index as a function of how brown a nucleus must be to count as positive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wsiscore.cells.rules import CenterRules
from wsiscore.cells.table import Cells

__all__ = ["ANY_BROWN", "LIMITS", "PLAINLY_BROWN", "Convention", "convention"]

LIMITS = tuple(step / 100 for step in range(5, 51))
"""Optical densities of DAB at which the index is given."""
ANY_BROWN, PLAINLY_BROWN = 0.10, 0.30
"""Ends of the range in which annotators draw the line between negative and positive."""


@dataclass(frozen=True, slots=True)
class Convention:
    """The index if cells were positive from a limit of DAB optical density on.

    Parameters
    ----------
    index
        At each of `LIMITS`, in percent.
    used
        The limit the cells were classified by; else the one that gives the same index.
    used_is_rule
        Whether the cells were classified by that limit.
    """

    index: tuple[float, ...]
    used: float
    used_is_rule: bool = False

    @property
    def span(self) -> tuple[float, float]:
        """The index at "plainly brown" and at "any brown", in percent."""
        return self.index[LIMITS.index(PLAINLY_BROWN)], self.index[LIMITS.index(ANY_BROWN)]

    def decides(self, cutoff: float) -> bool:
        """Return whether the side of a cutoff, in percent, changes within the span."""
        low, high = self.span
        return low < cutoff <= high


def convention(cells: Cells, rules: CenterRules | None = None) -> Convention | None:
    """Return the index by limit; None without cells of known optical density.

    Parameters
    ----------
    cells
        The counted cells.
    rules
        By which they were classified, if by a limit; the index is then what another limit gives with the same rules.
    """
    known = np.isfinite(cells.dab_od)
    if not known.any():
        return None
    ordered = np.sort(cells.dab_od[known])
    if rules is not None and rules.positive_od is not None:
        positivity, dab_od = cells.positivity[known], cells.dab_od[known]
        limited = rules.are_limited(positivity)
        above = np.count_nonzero(limited) - np.searchsorted(np.sort(dab_od[limited]), LIMITS, side="left")
        n_positive = above + np.count_nonzero(positivity[~limited] >= 0.5)
        return Convention(tuple((100 * n_positive / len(ordered)).tolist()), rules.positive_od, used_is_rule=True)
    below = np.searchsorted(ordered, np.asarray(LIMITS), side="left")
    index = tuple((100 * (1 - below / len(ordered))).tolist())
    n_negative = int(np.count_nonzero(~cells.positive[known]))
    used = float(ordered[n_negative]) if n_negative < len(ordered) else math.nextafter(float(ordered[-1]), math.inf)
    return Convention(index, used)
