"""Heterogeneity: the entropy of the local index over a grid of hexagons."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from wsiscore.cells.table import Cells

__all__ = ["HEXAGON_UM", "hexagon_entropy"]

HEXAGON_UM = 250.0
"""Distance between the centres of neighbouring hexagons, in micrometres."""

_MIN_CELLS = 20  # in a hexagon
_MIN_PAIRS = 20  # of neighbouring hexagons
_BINS = 10  # of the index, each 10 points wide

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def hexagon_entropy(cells: Cells, side_um: float = HEXAGON_UM) -> float:
    """Return Haralick's entropy of the local index in neighbouring hexagons, in bits.

    The index of each hexagon with at least 20 cells is one of ten classes; of all pairs of neighbours the relative
    frequencies of the pairs of classes make a symmetric matrix, whose entropy this is: 0 if all hexagons have one
    class, at most log2(100). nan for fewer than 20 pairs.

    Parameters
    ----------
    cells
        The counted cells.
    side_um
        Distance between the centres of neighbouring hexagons.

    References
    ----------
    R. Haralick et al., IEEE Trans. Syst. Man Cybern. 3 (1973) 610, f9. D. Zilenaite-Petrulaitiene et al., Am. J. Clin.
    Pathol. 164 (2025) 567, who use it for Ki67; the size of the hexagons is ours.
    """
    if not len(cells):
        return math.nan
    q, r = _hexagons(cells.x_um - cells.x_um.min(), cells.y_um - cells.y_um.min(), side_um)
    width = int(q.max() - q.min()) + 1
    keys, which = np.unique((r - r.min()) * width + (q - q.min()), return_inverse=True)
    places = np.stack(np.divmod(keys, width)[::-1], axis=1)
    n = np.bincount(which)
    index = np.bincount(which[cells.positive], minlength=len(n)) / n
    classes = {
        (int(a), int(b)): min(int(value * _BINS), _BINS - 1)
        for (a, b), value, count in zip(places, index, n, strict=True)
        if count >= _MIN_CELLS
    }
    matrix = np.zeros((_BINS, _BINS))
    for (a, b), own in classes.items():
        for neighbour in ((a + 1, b), (a, b + 1), (a + 1, b - 1)):
            if neighbour in classes:
                matrix[own, classes[neighbour]] += 1
                matrix[classes[neighbour], own] += 1
    if matrix.sum() < 2 * _MIN_PAIRS:
        return math.nan
    p = matrix[matrix > 0] / matrix.sum()
    return max(0.0, float(-np.sum(p * np.log2(p))))


def _hexagons(x: Floats, y: Floats, side: float) -> tuple[Ints, Ints]:
    """Return the axial coordinates of the hexagon that holds each point."""
    r = y / (side * math.sqrt(3) / 2)
    q = x / side - r / 2
    rounded = np.round(np.stack([q, r, -q - r]))
    off = np.abs(rounded - np.stack([q, r, -q - r]))
    first = (off[0] > off[1]) & (off[0] > off[2])
    second = ~first & (off[1] > off[2])
    rounded[0, first] = -rounded[1, first] - rounded[2, first]
    rounded[1, second] = -rounded[0, second] - rounded[2, second]
    return rounded[0].astype(np.int64), rounded[1].astype(np.int64)
