"""From cells to an index: counts, an interval, and a call at the cutoff, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import shapely

from wsiscore.cells.table import Cells
from wsiscore.errors import RoiError
from wsiscore.regions import Roi, inside
from wsiscore.slide.readers.base import VirtualStain

__all__ = ["CUTOFF", "MIN_CELLS", "Call", "SlideScore", "Tally", "call", "score_cells"]

CUTOFF = 20.0
"""Percent at and above which an index is called high."""
MIN_CELLS = 500
"""Fewest cells for a call; the number the International Ki67 in Breast Cancer Working Group asks for."""

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal distribution

Call = Literal["low", "high", "insufficient", "no cells"]


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted, and where; tallies of disjoint areas add up.

    Parameters
    ----------
    n_positive, n_negative
        Counted cells.
    area_mm2
        Area they were looked for in, in mm².
    """

    n_positive: int = 0
    n_negative: int = 0
    area_mm2: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.n_positive + other.n_positive,
            self.n_negative + other.n_negative,
            self.area_mm2 + other.area_mm2,
        )

    @property
    def n(self) -> int:
        """All counted cells."""
        return self.n_positive + self.n_negative

    @property
    def ki67_index(self) -> float:
        """Positive cells among all, in percent; nan without cells, never 0."""
        return 100.0 * self.n_positive / self.n if self.n else math.nan

    @property
    def interval_95(self) -> tuple[float, float]:
        """Wilson score interval of the index, in percent; (nan, nan) without cells.

        It holds the uncertainty of counting this many cells and nothing else: neither the choice of the field
        nor mistakes of the detection. Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209.
        """
        if not self.n:
            return math.nan, math.nan
        share = self.n_positive / self.n
        shrink = 1 + _Z95**2 / self.n
        middle = (share + _Z95**2 / (2 * self.n)) / shrink
        half = _Z95 / shrink * math.sqrt(share * (1 - share) / self.n + _Z95**2 / (4 * self.n**2))
        low, high = 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)
        return min(low, self.ki67_index), max(high, self.ki67_index)  # at 0 and 100 % rounding may cross it

    @property
    def cells_per_mm2(self) -> float:
        """Density of all counted cells; nan without area."""
        return self.n / self.area_mm2 if self.area_mm2 else math.nan


@dataclass(frozen=True, slots=True)
class SlideScore:
    """The result of one slide.

    Parameters
    ----------
    slide
        What the slide is called.
    model
        Name of the model that found the cells.
    total
        Over the union of all ROIs; with disjoint ROIs the sum of `by_roi`.
    by_roi
        ROI name to its own tally; where ROIs overlap, a cell counts in each.
    cutoff
        Percent at and above which the index is high.
    virtual
        Who painted the slide, if it is a virtual stain; None if it was stained.
    """

    slide: str
    model: str
    total: Tally
    by_roi: dict[str, Tally] = field(default_factory=dict)
    cutoff: float = CUTOFF
    virtual: VirtualStain | None = None

    @property
    def call(self) -> Call:
        """Which side of the cutoff, or why none: "no cells", or "insufficient" under `MIN_CELLS` cells."""
        return call(self.total, self.cutoff)


def call(tally: Tally, cutoff: float = CUTOFF) -> Call:
    """Return "high" if the index is at or above `cutoff` percent, else "low", or the reason for neither."""
    if not tally.n:
        return "no cells"
    if tally.n < MIN_CELLS:
        return "insufficient"
    return "high" if tally.ki67_index >= cutoff else "low"


def score_cells(
    cells: Cells,
    rois: Sequence[Roi],
    *,
    slide: str = "",
    model: str = "",
    cutoff: float = CUTOFF,
    unread_um: shapely.Geometry | None = None,
    virtual: VirtualStain | None = None,
) -> SlideScore:
    """Count the cells of each ROI and of all together.

    Parameters
    ----------
    cells
        Positions in micrometres from the slide's top left.
    rois
        Where they were looked for; a cell outside all of them is not counted.
    slide, model
        Names for the result.
    cutoff
        Percent at and above which the index is high, in (0, 100).
    unread_um
        What of the ROIs could not be read, in micrometres; it is taken off the area.
    virtual
        Who painted the slide, if it is a virtual stain.

    Raises
    ------
    RoiError
        If two ROIs share a name.
    ValueError
        If the cutoff is not between 0 and 100.
    """
    if not 0 < cutoff < 100:
        raise ValueError(f"the cutoff is a percentage between 0 and 100, got {cutoff}")
    if len({roi.name for roi in rois}) < len(rois):
        raise RoiError("two ROIs share a name; rename one, so that the report can tell them apart")
    by_roi = {roi.name: _tally(cells, roi.outline_um, unread_um) for roi in rois}
    union = shapely.union_all([roi.outline_um for roi in rois])
    return SlideScore(slide, model, _tally(cells, union, unread_um), by_roi, cutoff, virtual)


def _tally(cells: Cells, outline: shapely.Geometry, unread: shapely.Geometry | None) -> Tally:
    counted = inside(outline, cells.x_um, cells.y_um)
    n_positive = int(np.count_nonzero(counted & cells.positive))
    area = outline if unread is None else shapely.difference(outline, unread)
    return Tally(n_positive, int(np.count_nonzero(counted)) - n_positive, float(shapely.area(area)) / 1e6)
