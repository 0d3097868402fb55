"""Tissue detection: outlines of the tissue on a slide.

Tissue absorbs light unevenly; glass does not. A pixel is tissue by its optical density plus the local standard
deviation of it, so that a pale section is found like a dark one. Pen, black borders and the edge of the glass are
recognised by hue and shape.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely import MultiPolygon, Polygon

from wsiscore.regions import Region, Roi
from wsiscore.slide.slide import Slide
from wsiscore.stain import background, optical_density

__all__ = ["find_tissue"]

_MPP = 8.0  # coarse enough to read a whole slide, fine enough for its smallest pieces
_SIDE_PX = (512, 3072)  # of the picture that is read: small slides at a finer scale, huge ones at a coarser one
_BLACK = 25  # grey level of a scanner's border; many a nucleus is as black, but not 30 µm of them
_SMOOTH_UM = 10.0  # a cell's surroundings
_EVIDENCE_OD = (0.02, 0.035)  # least and largest cut between glass and tissue, mean of the channels
_CLOSE_UM = 25.0  # gaps this wide between cells are tissue
_OPEN_UM = 15.0  # threads narrower than twice this are none
_HOLE_MM2 = 0.02  # smaller holes are lumens and fat cells, and belong to the tissue
_LEAST_MM2 = 0.01  # smaller pieces, which were half as large before smoothing, are crumbs ...
_LEAST_FRACTION = 0.02  # ... unless the slide is as small as this many of them
_INK_UM = 75.0  # pen lines are wider than twice this, dark clumps of cells are not
_INK_BORDER_UM = 60.0  # how far a pen's edge fades
_LEAST_COLOUR = 0.1  # range of the channels' densities over the largest; real tissue measured 0.13 and more
_FRAME_UM = 400.0  # a strip along the slide's edge narrower than this is the edge of the glass
_FRAME_FRACTION = 0.5  # of the slide's side that such a strip runs along

Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float32]


def find_tissue(slide: Slide) -> list[Roi]:
    """Find the tissue on a slide.

    Parameters
    ----------
    slide
        Any slide or camera field; it is read once at about 8 µm/px.

    Returns
    -------
    list of Roi
        One for each connected piece, ``tissue 1`` the largest; empty if there is only glass.

    Raises
    ------
    SlideError
        If the slide cannot be read, or is too large to be read without a pyramid.
    """
    region = _overview(slide)
    rgb = slide.read(region)
    mask = _tissue(rgb, region.mpp)
    slide_um = shapely.box(0, 0, slide.width_px * slide.mpp, slide.height_px * slide.mpp)
    least_um2 = min(_LEAST_MM2 * 1e6, _LEAST_FRACTION * slide_um.area)
    pieces = (_outline(piece, region.mpp).intersection(slide_um) for piece in _pieces(mask))
    found = sorted((piece for piece in pieces if piece.area >= least_um2), key=lambda piece: -piece.area)
    return [Roi(f"tissue {number}", piece) for number, piece in enumerate(found, 1)]


def _overview(slide: Slide) -> Region:
    """Return the whole slide at the scale at which tissue is sought."""
    width_um, height_um = slide.width_px * slide.mpp, slide.height_px * slide.mpp
    longer_um = max(width_um, height_um)
    mpp = max(slide.mpp, min(_MPP, longer_um / _SIDE_PX[0]), longer_um / _SIDE_PX[1])
    return Region.around_um(0, 0, width_um, height_um, mpp)


def _tissue(rgb: npt.NDArray[np.uint8], mpp: float) -> Mask:
    """Return where tissue is on a picture, (H, W)."""
    dark = _opened(rgb.max(axis=2) < _BLACK, _OPEN_UM / mpp)
    od = optical_density(rgb, background(rgb[~dark])) if not dark.all() else np.zeros(rgb.shape, np.float32)
    od[dark] = 0
    evidence = _evidence(od, mpp)
    od = _blur(od, _SMOOTH_UM / mpp)
    mask = (evidence > _cut(evidence)) & ~_ink(od, mpp) & ~_grown(dark, 2 * _SMOOTH_UM / mpp)
    mask = _shrunk(_grown(mask, _CLOSE_UM / mpp), _CLOSE_UM / mpp)
    mask = _filled(mask, _HOLE_MM2 * 1e6 / mpp**2)
    mask = _opened(mask, _OPEN_UM / mpp)
    return _coloured(_without_frame(mask, mpp), od)


def _evidence(od: Map, mpp: float) -> Map:
    """Return mean optical density plus its local standard deviation."""
    grey = od.mean(axis=2)
    mean = _blur(grey, _SMOOTH_UM / mpp)
    spread = np.sqrt(np.maximum(_blur(grey * grey, _SMOOTH_UM / mpp) - mean * mean, 0))
    return mean + spread


def _cut(evidence: Map) -> float:
    """Return the evidence that best parts glass and tissue (Otsu 1979), within limits."""
    least, most = _EVIDENCE_OD
    scaled = np.clip(evidence * (255 / (4 * most)), 0, 255).astype(np.uint8)
    level, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_OTSU)
    return float(np.clip(level * (4 * most) / 255, least, most))


def _ink(od: Map, mpp: float) -> Mask:
    """Return where a marker pen has drawn: wide, strong, and of a hue that no stain here has."""
    red, green, blue = np.moveaxis(od, 2, 0)
    weakest, strongest = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)

    def hues(least: float) -> Mask:
        blue_ink = (red > least) & (blue < 0.3 * red) & (green < 0.9 * red)
        green_ink = (red > least) & (green < 0.7 * red) & (green < 0.85 * blue)
        red_ink = (green > least) & (red < 0.25 * green) & (blue > 0.55 * green)
        black_ink = (weakest > 1.2 * least) & (weakest > 0.75 * strongest)
        return np.asarray(blue_ink | green_ink | red_ink | black_ink)

    inked = np.pad(hues(0.45), 1)  # a small dark corner of a field is no pen
    strong = _opened(inked, _INK_UM / mpp)[1:-1, 1:-1]
    if not strong.any():
        return strong
    near = _grown(strong, _INK_BORDER_UM / mpp)
    return np.asarray(_grown(strong, _SMOOTH_UM / mpp) | (near & hues(0.08)))


def _without_frame(mask: Mask, mpp: float) -> Mask:
    """Drop long narrow pieces along the slide's edges: the edge of the glass, of its label, of the scan."""
    height, width = mask.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    left, top, wide, high, area = stats.T
    narrow, least = _FRAME_UM / mpp, _FRAME_FRACTION
    upright = ((left == 0) | (left + wide == width)) & (area < narrow * high) & (high > least * height)
    lying = ((top == 0) | (top + high == height)) & (area < narrow * wide) & (wide > least * width)
    frame = (upright & (width > 4 * narrow)) | (lying & (height > 4 * narrow))
    return np.asarray(mask & ~frame[labels])


def _coloured(mask: Mask, od: Map) -> Mask:
    """Drop the pieces without colour: dust, shadows, edges of bubbles; tissue is blue here and brown there."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    strongest = od.max(axis=2)
    chroma, total = (
        np.bincount(labels.ravel(), weights=values.ravel(), minlength=count)
        for values in (strongest - od.min(axis=2), strongest)
    )
    return np.asarray(mask & (chroma > _LEAST_COLOUR * total)[labels])


def _pieces(mask: Mask) -> list[Polygon]:
    """Return the connected pieces with their holes, in pixels through the middles of their border pixels."""
    rings, nesting = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    pieces = []
    for number, ring in enumerate(rings):
        if nesting[0][number][3] >= 0 or len(ring) < 4:
            continue
        holes, child = [], nesting[0][number][2]
        while child >= 0:
            holes.append(rings[child][:, 0])
            child = nesting[0][child][0]
        pieces.append(Polygon(ring[:, 0], [hole for hole in holes if len(hole) > 3]))
    return pieces


def _outline(piece: Polygon, mpp: float) -> Polygon | MultiPolygon:
    """Return a smooth outline in micrometres of a piece in pixels."""
    tolerance = max(0.75, 4 / mpp)
    border = piece.buffer(0).simplify(tolerance / 2).buffer(0.5, join_style="mitre")
    outline = shapely.transform(border.simplify(tolerance), lambda xy: (xy + 0.5) * mpp)
    return outline if isinstance(outline, Polygon | MultiPolygon) else Polygon()


def _filled(mask: Mask, area_px: float) -> Mask:
    """Fill holes smaller than an area; those at the picture's edge are none."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    left, top, wide, high, area = stats.T
    inside = (left > 0) & (top > 0) & (left + wide < mask.shape[1]) & (top + high < mask.shape[0])
    small = inside & (area < area_px)
    small[0] = False
    return np.asarray(mask | small[labels])


def _grown(mask: Mask, radius_px: float) -> Mask:
    """Return all within a radius of a mask."""
    if not mask.any():
        return mask
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) <= radius_px)


def _shrunk(mask: Mask, radius_px: float) -> Mask:
    """Return all of a mask deeper than a radius; the picture's edge is no edge of it."""
    return ~_grown(~mask, radius_px)


def _opened(mask: Mask, radius_px: float) -> Mask:
    """Return a mask without what is narrower than twice a radius."""
    return _grown(_shrunk(mask, radius_px), radius_px)


def _blur(values: Map, sigma_px: float) -> Map:
    blurred: Any = cv2.GaussianBlur(values, (0, 0), max(sigma_px, 0.5), borderType=cv2.BORDER_REFLECT)
    return np.asarray(blurred, dtype=np.float32)
