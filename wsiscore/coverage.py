"""Which rectangles of a grid polygons cover, each compared with the corners near it only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

__all__ = ["Edges", "Polygons", "covered"]

_MANY_CORNERS = 100  # of a polygon that is cut to a block before it is compared with the rectangles in it
_MOST_CORNERS = 200_000  # compared in one block

Polygons = npt.NDArray[Any]
Edges = npt.NDArray[np.float64]


def covered(polygons: Polygons, x: Edges, y: Edges, least: float) -> Iterator[tuple[int, int]]:
    """Yield the (row, col) of the rectangles of which polygons cover a part, and at least a fraction.

    The grid is halved, and the polygons of many corners are cut, until few corners are to be compared in a block or a
    polygon covers all of it.

    Parameters
    ----------
    polygons
        Valid polygons, which may overlap.
    x, y
        Edges of the columns and rows, ascending.
    least
        Least fraction of a rectangle that the polygons together cover, in [0, 1]. Area 0 is never enough.
    """
    yield from _covered(polygons, x, y, least, 0, 0)


def _covered(polygons: Polygons, x: Edges, y: Edges, least: float, row: int, col: int) -> Iterator[tuple[int, int]]:
    bounds = x[0], y[0], x[-1], y[-1]
    polygons, (rows, cols) = _cut(polygons, bounds), (len(y) - 1, len(x) - 1)
    if not len(polygons):
        return
    if _covers(polygons, bounds):
        yield from itertools.product(range(row, row + rows), range(col, col + cols))
    elif rows * cols == 1 or _corners_to_compare(polygons, x, y) <= _MOST_CORNERS:
        rectangles = shapely.box(*np.meshgrid(x[:-1], y[:-1]), *np.meshgrid(x[1:], y[1:])).ravel()
        for index in np.flatnonzero(_are_covered(polygons, rectangles, least)).tolist():
            yield row + index // cols, col + index % cols
    elif rows >= cols:
        half = rows // 2
        yield from _covered(polygons, x, y[: half + 1], least, row, col)
        yield from _covered(polygons, x, y[half:], least, row + half, col)
    else:
        half = cols // 2
        yield from _covered(polygons, x[: half + 1], y, least, row, col)
        yield from _covered(polygons, x[half:], y, least, row, col + half)


def _cut(polygons: Polygons, bounds: tuple[float, float, float, float]) -> Polygons:
    """Return the polygons that meet a rectangle, those of many corners cut to it."""
    left, top, right, bottom = bounds
    x0, y0, x1, y1 = shapely.bounds(polygons).T
    polygons = polygons[(x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)]
    x0, y0, x1, y1 = shapely.bounds(polygons).T
    crosses = (x0 < left) | (x1 > right) | (y0 < top) | (y1 > bottom)
    crosses &= shapely.get_num_coordinates(polygons) > _MANY_CORNERS
    pieces = shapely.get_parts(shapely.intersection(polygons[crosses], shapely.box(*bounds)))
    return np.concatenate([polygons[~crosses], pieces[shapely.get_dimensions(pieces) == 2]])


def _covers(polygons: Polygons, bounds: tuple[float, float, float, float]) -> bool:
    """Return whether one of the polygons covers a rectangle."""
    left, top, right, bottom = bounds
    x0, y0, x1, y1 = shapely.bounds(polygons).T
    around = polygons[(x0 <= left) & (y0 <= top) & (x1 >= right) & (y1 >= bottom)]
    return bool(shapely.covers(around, shapely.box(*bounds)).any())


def _corners_to_compare(polygons: Polygons, x: Edges, y: Edges) -> int:
    """Return about how many corners are compared when each polygon meets each rectangle that its bounds meet."""
    x0, y0, x1, y1 = shapely.bounds(polygons).T
    across = np.searchsorted(x[1:-1], x1) - np.searchsorted(x[1:-1], x0) + 1
    down = np.searchsorted(y[1:-1], y1) - np.searchsorted(y[1:-1], y0) + 1
    return int(np.sum(across * down * shapely.get_num_coordinates(polygons)))


def _are_covered(polygons: Polygons, rectangles: Polygons, least: float) -> npt.NDArray[np.bool_]:
    """Return of which rectangles the polygons together cover a part, and at least the fraction `least`."""
    rectangle, polygon = shapely.STRtree(polygons).query(rectangles, predicate="intersects")
    x0, y0, x1, y1 = shapely.bounds(polygons).T[:, polygon]
    left, top, right, bottom = shapely.bounds(rectangles).T[:, rectangle]
    overlap = (np.minimum(x1, right) - np.maximum(x0, left)) * (np.minimum(y1, bottom) - np.maximum(y0, top))
    order = np.lexsort((-overlap, rectangle))
    rectangle, polygon, area = rectangle[order], polygon[order], shapely.area(rectangles)
    is_first = np.diff(rectangle, prepend=-1) > 0
    highest, total = np.zeros(len(rectangles)), np.zeros(len(rectangles))
    for chosen in (is_first, ~is_first):  # the polygon of the largest overlap is mostly enough
        pairs = chosen & ~((highest > 0) & (highest >= least))[rectangle]
        at = rectangle[pairs]
        fractions = shapely.area(shapely.intersection(polygons[polygon[pairs]], rectangles[at])) / area[at]
        np.maximum.at(highest, at, fractions)
        np.add.at(total, at, fractions)
    for index in np.flatnonzero((highest < least) & (total >= least * (1 - 1e-9)) & (total > highest)).tolist():
        together = shapely.union_all(polygons[polygon[rectangle == index]])
        highest[index] = shapely.area(shapely.intersection(together, rectangles[index])) / area[index]
    enough: npt.NDArray[np.bool_] = (highest > 0) & (highest >= least)
    return enough
