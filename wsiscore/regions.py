"""Places on a slide: rectangles of whole pixels at a stated scale, and outlines in micrometres."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import shapely
from shapely import MultiPolygon, Polygon

__all__ = ["PointIndex", "Region", "Roi", "scored"]

_SAME_SCALE = 1e-9  # relative: scales closer than this are one scale
_WHOLE_PIXEL = 1e-6  # pixels: an edge this close to a whole pixel is on it
_POINTS = 2**20  # compared at a time: memory does not grow with their number
_NUDGE_UM = (1e-6, 2e-6)  # moves a point off the common edge of two outlines


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of whole pixels at a stated scale, half-open, measured from the slide's top left.

    Parameters
    ----------
    x, y
        Left and top edge, in pixels of `mpp`; may be negative or beyond the slide.
    width, height
        Extent in pixels, at least 1.
    mpp
        Micrometres per pixel.

    Raises
    ------
    ValueError
        If the rectangle is empty or the scale is not a positive number.
    """

    x: int
    y: int
    width: int
    height: int
    mpp: float

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a region needs at least one pixel, got {self.width} × {self.height}")
        if not (math.isfinite(self.mpp) and self.mpp > 0):
            raise ValueError(f"mpp must be a positive number of micrometres per pixel, got {self.mpp}")

    @property
    def bounds_um(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in micrometres."""
        return (
            self.x * self.mpp,
            self.y * self.mpp,
            (self.x + self.width) * self.mpp,
            (self.y + self.height) * self.mpp,
        )

    @classmethod
    def around_um(cls, left: float, top: float, right: float, bottom: float, mpp: float) -> Self:
        """Return the smallest region that contains a rectangle given in micrometres.

        Parameters
        ----------
        left, top, right, bottom
            Edges in micrometres from the slide's top left.
        mpp
            Micrometres per pixel of the region returned.
        """
        x, y = (math.floor(edge / mpp + _WHOLE_PIXEL) for edge in (left, top))
        x1, y1 = (math.ceil(edge / mpp - _WHOLE_PIXEL) for edge in (right, bottom))
        return cls(x, y, max(x1 - x, 1), max(y1 - y, 1), mpp)

    def at(self, mpp: float) -> Region:
        """Return the smallest region at another scale that contains this one.

        Parameters
        ----------
        mpp
            Micrometres per pixel of the region returned.
        """
        return Region.around_um(*self.bounds_um, mpp)

    def contains(self, other: Region) -> bool:
        """Return whether `other`, at the same scale, lies inside.

        Raises
        ------
        ValueError
            If the scales differ.
        """
        self._same_scale(other)
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )

    def intersection(self, other: Region) -> Region | None:
        """Return the region that both cover, or None if there is none.

        Raises
        ------
        ValueError
            If the scales differ.
        """
        self._same_scale(other)
        x, y = max(self.x, other.x), max(self.y, other.y)
        width = min(self.x + self.width, other.x + other.width) - x
        height = min(self.y + self.height, other.y + other.height) - y
        return Region(x, y, width, height, self.mpp) if width > 0 and height > 0 else None

    def _same_scale(self, other: Region) -> None:
        if not math.isclose(self.mpp, other.mpp, rel_tol=_SAME_SCALE):
            raise ValueError(f"regions at {self.mpp} and {other.mpp} µm/px do not mix; convert one with .at()")


@dataclass(frozen=True, slots=True)
class Roi:
    """An outline to score: a drawn annotation or a piece of found tissue.

    Parameters
    ----------
    name
        Its name in the report; unique within a slide.
    outline_um
        Valid polygon or multipolygon, with holes, in micrometres from the slide's top left.
    class_name
        Class of the annotation; empty if it has none.
    excluded
        Whether cells inside are not counted.
    """

    name: str
    outline_um: Polygon | MultiPolygon
    class_name: str = ""
    excluded: bool = False

    @property
    def area_mm2(self) -> float:
        """Area without its holes, in mm²."""
        return float(self.outline_um.area) / 1e6


def scored(rois: Iterable[Roi]) -> list[Roi]:
    """Return the ROIs in which cells are counted."""
    return [roi for roi in rois if not roi.excluded]


class PointIndex:
    """Points in the order of y, so that an outline is compared only with the points beside it.

    Parameters
    ----------
    x_um, y_um
        (N,) positions in micrometres; they take no more memory where they are ordered by y, as cells are.
    """

    def __init__(self, x_um: npt.NDArray[np.float64], y_um: npt.NDArray[np.float64]) -> None:
        ordered = bool((y_um[1:] >= y_um[:-1]).all())
        self._order = None if ordered else np.argsort(y_um, kind="stable")
        self._x, self._y = (x_um, y_um) if self._order is None else (x_um[self._order], y_um[self._order])

    def inside(self, outline: shapely.Geometry) -> npt.NDArray[np.int64]:
        """Return the indices, ascending, of the points inside an outline.

        A point on the common edge of two outlines is inside exactly one of them.
        """
        left, top, right, bottom = shapely.bounds(outline).tolist()
        start, stop = np.searchsorted(self._y, (top - 1, bottom + 1)).tolist() if top <= bottom else (0, 0)
        shapely.prepare(outline)
        found = [np.empty(0, np.int64)]
        for first in range(start, stop, _POINTS):
            some = slice(first, min(first + _POINTS, stop))
            x, y = self._x[some] + _NUDGE_UM[0], self._y[some] + _NUDGE_UM[1]
            near = np.flatnonzero((x >= left) & (x <= right) & (y >= top) & (y <= bottom))
            found.append(first + near[shapely.contains_xy(outline, x[near], y[near])])
        places = np.concatenate(found)
        return places if self._order is None else np.sort(self._order[places])
