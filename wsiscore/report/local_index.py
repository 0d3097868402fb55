"""The local index: the index in small squares, how it varies over the slide, and which squares to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.cells.table import Cells
from wsiscore.regions import Roi
from wsiscore.score import Tally

__all__ = ["MIN_LOCAL", "Square", "bounds_um", "choose_squares", "count_squares", "map_side_um", "quartiles"]

MIN_LOCAL = 20
"""Fewest cells for the index of a square."""
_SIDES_UM = (50, 100, 200, 250, 500, 1000, 2000)
_MOST_SQUARES = 40  # along the longer side of a map


@dataclass(frozen=True, slots=True)
class Square:
    """One square of the grid that holds cells.

    Parameters
    ----------
    bounds_um
        Left, top, right, bottom in micrometres from the slide's top left.
    tally
        The cells in it; the area is that of the square.
    """

    bounds_um: tuple[float, float, float, float]
    tally: Tally

    def holds(self, cells: Cells) -> npt.NDArray[np.bool_]:
        """Return which cells lie in it."""
        left, top, right, bottom = self.bounds_um
        return (cells.x_um >= left) & (cells.x_um < right) & (cells.y_um >= top) & (cells.y_um < bottom)


def bounds_um(rois: Sequence[Roi]) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of all ROIs together."""
    left, top, right, bottom = shapely.total_bounds([roi.outline_um for roi in rois])
    return float(left), float(top), float(right), float(bottom)


def count_squares(cells: Cells, rois: Sequence[Roi], side_um: float) -> list[Square]:
    """Count the cells in squares that start at the top left of the ROIs; by row, then column; empty ones left out."""
    left, top, right, bottom = bounds_um(rois)
    xs = left + side_um * np.arange((right - left) // side_um + 2)
    ys = top + side_um * np.arange((bottom - top) // side_um + 2)
    # a cell on the edge of an outline that was rounded may lie a little beyond it
    col = np.clip(np.searchsorted(xs, cells.x_um, side="right") - 1, 0, len(xs) - 2)
    row = np.clip(np.searchsorted(ys, cells.y_um, side="right") - 1, 0, len(ys) - 2)
    numbers, which = np.unique(row * len(xs) + col, return_inverse=True)
    n = np.bincount(which, minlength=len(numbers))
    n_positive = np.bincount(which[cells.positive], minlength=len(numbers))
    squares = []
    for at, of, positive in zip(numbers.tolist(), n.tolist(), n_positive.tolist(), strict=True):
        y, x = divmod(at, len(xs))
        corners = float(xs[x]), float(ys[y]), float(xs[x + 1]), float(ys[y + 1])
        squares.append(Square(corners, Tally(positive, of - positive, side_um**2 / 1e6)))
    return squares


def map_side_um(cells: Cells, rois: Sequence[Roi]) -> float:
    """Return the finest side at which a map is readable and most cells lie in squares with enough of them.

    Never so coarse that the ROIs are fewer than two squares long, even if then many squares have too few cells.
    """
    left, top, right, bottom = bounds_um(rois)
    longer = max(right - left, bottom - top)
    readable = [side for side in _SIDES_UM if side * 2 <= longer <= side * _MOST_SQUARES]
    for side in readable:
        enough = (square.tally.n for square in count_squares(cells, rois, side) if square.tally.n >= MIN_LOCAL)
        if sum(enough) >= 0.75 * len(cells):
            return side
    return readable[-1] if readable else longer / 2


def choose_squares(squares: Sequence[Square], wanted: int) -> list[Square]:
    """Choose squares over the whole range of the local index, from the lowest to the hottest.

    The squares with at least `MIN_LOCAL` cells (all squares, if fewer than 4 have as many) are ordered by index, then
    by number of cells, and cut into `wanted` groups of equal size; each group gives its square with the most cells, but
    the last one its hottest. The same cells always give the same squares.
    """
    enough = [square for square in squares if square.tally.n >= MIN_LOCAL]
    ordered = sorted(
        enough if len(enough) >= 4 else squares, key=lambda square: (square.tally.ki67_index, square.tally.n)
    )
    groups = np.array_split(np.arange(len(ordered)), max(min(wanted, len(ordered)), 1))
    most = [max((ordered[at] for at in group), key=lambda square: square.tally.n) for group in groups if len(group)]
    return [*most[:-1], *ordered[-1:]]


def quartiles(squares: Sequence[Square]) -> tuple[float, float, float] | None:
    """Return the lower quartile, median and upper quartile of the local index, or None for fewer than 4 squares."""
    known = [square.tally.ki67_index for square in squares if square.tally.n >= MIN_LOCAL]
    if len(known) < 4:
        return None
    low, median, high = np.percentile(known, [25, 50, 75]).tolist()
    return low, median, high
