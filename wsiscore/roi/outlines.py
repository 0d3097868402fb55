"""Drawn outlines: repaired where they hardly cross themselves, refused where they clearly do, cut to the slide."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from shapely import MultiPolygon, Polygon

from wsiscore.errors import RoiError
from wsiscore.regions import Roi

__all__ = [
    "REPAIR_TOLERANCE",
    "Outline",
    "Points",
    "clip_rois",
    "closed",
    "corners_px",
    "outline_px",
    "polygonal",
    "to_um",
]

Points: TypeAlias = npt.NDArray[np.float64]
"""(N, 2): x and y in level-0 pixels."""
Outline: TypeAlias = Polygon | MultiPolygon

REPAIR_TOLERANCE = 0.01
"""Largest fraction of its area by which a repaired outline may differ from the drawn one."""
_FARTHEST_PX = 1e9
_NO_AREA_PX2 = 1e-6
_OFF_SLIDE = 1e-6  # fraction of an outline beyond the slide's edge that is only rounding
_ELLIPSE_POINTS = 128
_SAMPLED_EDGES = 256
_MOST_NEIGHBOURS = 50  # edges whose boxes meet that of an edge, on average; freehand outlines have 2 to 5

_log = logging.getLogger("wsiscore")


def corners_px(raw: Iterable[Any], name: str) -> Points:
    """Return the corners of an outline as an array.

    Parameters
    ----------
    raw
        Pairs of numbers, or of texts that are numbers; values after the second are ignored.
    name
        Name of the outline in messages.

    Raises
    ------
    RoiError
        If one is not a pair of finite numbers of a slide's order of magnitude.
    """
    try:
        points = np.array([(corner[0], corner[1]) for corner in raw], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise RoiError(f"outline {name!r} has a corner that is not two numbers ({error}); export it again") from error
    for x, y in points[~(np.abs(points) < _FARTHEST_PX).all(axis=1)]:
        raise RoiError(f"outline {name!r} has a corner at ({x:g}, {y:g}), which is nowhere on a slide; export it again")
    return points


def closed(kind: str, corners: Points) -> Points:
    """Return the outline of a shape; an ellipse, and HALO's rectangle, may be given by corners of their box.

    Parameters
    ----------
    kind
        ``polygon``, ``rectangle`` or ``ellipse``.
    corners
        (N, 2); an ellipse of more than four corners is returned as it is.

    Returns
    -------
    array
        (M, 2); an ellipse as a polygon of 128 corners and the ellipse's exact area.
    """
    few = 2 if kind == "rectangle" else 4
    if kind == "polygon" or not 2 <= len(corners) <= few:
        return corners
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    if kind == "rectangle":
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)
    step = 2 * math.pi / _ELLIPSE_POINTS
    stretch = math.sqrt(step / math.sin(step)) / 2  # the polygon between points on the ellipse is too small
    angle = step * np.arange(_ELLIPSE_POINTS)
    x = (left + right) / 2 + stretch * (right - left) * np.cos(angle)
    y = (top + bottom) / 2 + stretch * (bottom - top) * np.sin(angle)
    return np.column_stack([x, y])


def outline_px(name: str, polygons: Sequence[Sequence[Points]], cut: Outline | None = None) -> tuple[Outline, bool]:
    """Return a valid outline, and whether it had to be repaired.

    A freehand outline often crosses itself slightly, at its start or in a sharp corner. It is repaired if that changes
    at most 1 % of its area. The area of the repaired outline is compared with the signed area of the drawn one (the
    shoelace formula), in which a loop of the other direction is negative and one drawn twice counts twice.

    Parameters
    ----------
    name
        Name of the outline in messages.
    polygons
        For each part its edge, then its holes, each (N, 2) in pixels, closed or not.
    cut
        Area that is cut from it.

    Raises
    ------
    RoiError
        If it has no area, clearly crosses itself, has parts or holes that overlap, or is cut away wholly.
    """
    parts, repaired = [], False
    for rings in polygons:
        part, was_repaired = _part(name, rings)
        parts.append(part)
        repaired = repaired or was_repaired
    outline = parts[0] if len(parts) == 1 else polygonal(shapely.union_all(parts))
    if sum(part.area for part in parts) - outline.area > REPAIR_TOLERANCE * outline.area:
        raise RoiError(f"the parts of outline {name!r} overlap; merge them or draw them apart")
    if cut is not None:
        outline = polygonal(outline.difference(cut))
        if outline.area < _NO_AREA_PX2:
            raise RoiError(f"outline {name!r} is wholly cut away by the negative regions of its layer")
    return outline, repaired


def _part(name: str, rings: Sequence[Points]) -> tuple[Outline, bool]:
    for ring in rings or [np.empty((0, 2))]:
        if (found := _distinct(ring)) < 3:
            raise RoiError(f"outline {name!r} has {found} different corners, wanted at least 3; redraw or delete it")
    part: Outline = Polygon(rings[0], rings[1:])
    was_valid = bool(part.is_valid)
    if not was_valid:
        edge, *holes = (_ring(name, ring) for ring in rings)
        part = polygonal(edge.difference(shapely.union_all(holes)))
        if abs(edge.area - sum(hole.area for hole in holes) - part.area) > REPAIR_TOLERANCE * edge.area:
            raise RoiError(f"the holes of outline {name!r} extend over its edge or overlap; redraw it")
    if part.area < _NO_AREA_PX2:
        raise RoiError(f"outline {name!r} has no area; redraw or delete it")
    return part, not was_valid


def _distinct(ring: Points) -> int:
    """Return how many different corners there are, at most 3."""
    found, rest = 0, ring
    while len(rest) and found < 3:
        found, rest = found + 1, rest[(rest != rest[0]).any(axis=1)]
    return found


def _ring(name: str, points: Points) -> Outline:
    drawn = Polygon(points)
    if drawn.is_valid:
        return drawn
    if _is_tangled(points):
        raise RoiError(f"outline {name!r} crosses itself everywhere, so that its inside is unclear; redraw it")
    repaired = polygonal(shapely.make_valid(drawn, method="structure", keep_collapsed=False))
    if abs(repaired.area - drawn.area) > REPAIR_TOLERANCE * repaired.area:
        where = re.search(r"\[(\S+) (\S+)\]", shapely.is_valid_reason(drawn))
        at = f" at ({float(where[1]):.1f}, {float(where[2]):.1f}) px" if where else ""
        raise RoiError(
            f"outline {name!r} crosses itself{at}, so that its inside is unclear; redraw it as one plain loop"
        )
    return repaired


def _is_tangled(points: Points) -> bool:
    """Return whether the edges of an outline cross so often that a repair would take minutes."""
    if len(points) <= _MOST_NEIGHBOURS * 10:
        return False
    ends = np.roll(points, -1, axis=0)
    boxes = shapely.box(*np.minimum(points, ends).T, *np.maximum(points, ends).T)
    sample = boxes[:: -(-len(boxes) // _SAMPLED_EDGES)]
    return len(shapely.STRtree(boxes).query(sample)[0]) > _MOST_NEIGHBOURS * len(sample)


def polygonal(geometry: Any) -> Outline:
    """Return the areas of a geometry, without points and lines."""
    if isinstance(geometry, (Polygon, MultiPolygon)):
        return geometry
    parts = [part for part in shapely.get_parts(geometry) if shapely.get_dimensions(part) == 2]
    union: Outline = shapely.union_all(parts) if parts else MultiPolygon()
    return union


def to_um(outline: Outline, mpp: float, origin_px: tuple[float, float]) -> Outline:
    """Return an outline given in pixels of `mpp` in micrometres from `origin_px`."""
    moved = shapely.transform(outline, lambda xy: (xy - np.asarray(origin_px)) * mpp)
    if not moved.is_valid:  # rounding alone can cross two edges that nearly touch
        moved = shapely.make_valid(moved, method="structure", keep_collapsed=False)
    return polygonal(moved)


def clip_rois(rois: Sequence[Roi], width_um: float, height_um: float) -> list[Roi]:
    """Cut ROIs to a slide of the given size, with a logged warning where some area is lost.

    Parameters
    ----------
    rois
        Outlines in micrometres from the slide's top left.
    width_um, height_um
        The slide's size in micrometres.

    Raises
    ------
    RoiError
        If a ROI lies wholly off the slide.
    """
    slide = shapely.box(0.0, 0.0, width_um, height_um)
    bounds = shapely.bounds([roi.outline_um for roi in rois]).reshape(-1, 4)
    on_slide = (bounds[:, :2] >= 0).all(axis=1) & (bounds[:, 2:] <= (width_um, height_um)).all(axis=1)
    clipped = []
    for roi, is_on_slide in zip(rois, on_slide.tolist(), strict=True):
        if is_on_slide:
            clipped.append(roi)
            continue
        inside = polygonal(roi.outline_um.intersection(slide))
        if roi.excluded and not inside.area > 0:
            continue
        if not inside.area > 0:
            left, top, right, bottom = roi.outline_um.bounds
            raise RoiError(
                f"ROI {roi.name!r} lies at x {left:.0f} to {right:.0f} µm, y {top:.0f} to {bottom:.0f} µm, off"
                f" the slide, which is {width_um:.0f} × {height_um:.0f} µm; was it drawn on another slide, or at"
                " another resolution?"
            )
        off = 1 - inside.area / roi.outline_um.area
        if off > _OFF_SLIDE:
            _log.warning("ROI %r: %.2g %% of it lies off the slide and was cut away", roi.name, 100 * off)
        clipped.append(replace(roi, outline_um=inside))
    return clipped
