"""Target maps of annotated nuclei, and how much each pixel of each map counts in the loss.

Maps are (4, H, W) uint8: centre, positive, negative, other (not of the tumour). Weights are alike, 0 (ignored) to 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.training.targets import OTHERS, center_map

__all__ = ["UNKNOWN_KIND", "Points", "blank_strip", "cell_targets", "point_targets", "rotation", "warped"]

UNKNOWN_KIND = 20_000
"""First number of cells of which it is not known whether they are of the tumour."""

_DOUBTFUL_WEIGHT = 50  # of ground that may be a pale nucleus nobody marked
_RING_WEIGHT = 90  # of the centre map around the disc of a point, where the nucleus may go on
_RING_UM = 6.0
_RING_FRACTION = 0.45  # of the dye at the point: what is paler is ground
_MARKED_UM = 5.5  # further from all points, a pixel is unmarked
_GROUND_OD = 0.18  # unmarked ground with more dye may be a nucleus
_FAR_PX = 14.0
_BORDER_PX = 8

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def rotation(rng: np.random.Generator, shape: tuple[int, ...], side_px: int, scale: float, free: bool = True) -> Floats:
    """Return a random affine map, (2, 3), from a (side, side) crop into a picture of this (H, W).

    Parameters
    ----------
    scale
        Pixels of the crop per pixel of the picture.
    free
        Whether to rotate by any angle; else by multiples of 90°.
    """
    angle = float(rng.uniform(0, 2 * np.pi)) if free else float(rng.integers(4)) * np.pi / 2
    half = side_px / 2 / scale * 0.8  # the crop may reach a little beyond the picture
    x, y = (
        rng.uniform(min(half, n / 2), max(n - half, n / 2)) if n > 2 * half else n / 2 + rng.uniform(-0.1, 0.1) * n
        for n in (shape[1], shape[0])
    )
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [mirror, 1.0] / scale
    middle = (side_px - 1) / 2
    return np.column_stack([turned, np.array([x - 0.5, y - 0.5]) - turned @ [middle, middle]])


def warped(picture: npt.NDArray[Any], matrix: Floats, side_px: int, *, values: bool = True) -> npt.NDArray[Any]:
    """Return the (side, side) crop of a picture; beyond it it is mirrored, and 0 where `values` is False (labels)."""
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if values else cv2.INTER_NEAREST)
    border = cv2.BORDER_REFLECT if values else cv2.BORDER_CONSTANT
    return np.asarray(cv2.warpAffine(picture, matrix, (side_px, side_px), flags=flags, borderMode=border))


def cell_targets(
    cells: npt.NDArray[np.integer[Any]], doubtful: Mask | None, unknown: Mask | None, pale: Mask | None
) -> tuple[Picture, Picture]:
    """Return maps and weights of outlined or rendered nuclei.

    Parameters
    ----------
    cells
        (H, W), as in `wsiscore.training.targets`, also with numbers from `UNKNOWN_KIND` on.
    doubtful
        Pixels whose class is not known.
    unknown
        Pixels of which nothing is known.
    pale
        Ground that may be an unmarked nucleus.
    """
    number = np.abs(cells)
    no_kind = number >= UNKNOWN_KIND
    other = (number >= OTHERS) & ~no_kind
    maps = np.stack([center_map(cells), *(at.astype(np.uint8) * np.uint8(255) for at in (cells > 0, cells < 0, other))])
    weights = np.full(maps.shape, 255, np.uint8)
    weights[3][no_kind] = 0
    if doubtful is not None:
        weights[1:3, doubtful] = 0
    if pale is not None:
        weights[:, pale] = _DOUBTFUL_WEIGHT
    if unknown is not None:
        weights[:, unknown] = 0
    return maps, weights


@dataclass(frozen=True, slots=True)
class Points:
    """Points at nuclei, as columns.

    Parameters
    ----------
    xy_px
        (N, 2) in pixels of the crop.
    radius_px
        (N,): radius of the disc that is surely nucleus.
    positive, negative
        (N,): whether each is; of neither the class is not known.
    other
        (N,): 1, 0, or -1 where it is not known whether the nucleus is of the tumour.
    """

    xy_px: Floats
    radius_px: Floats
    positive: Mask
    negative: Mask
    other: npt.NDArray[np.int8]

    def near(self, side_px: int) -> Points:
        """Return the points in a (side, side) crop or close to it."""
        kept = ((self.xy_px > -_BORDER_PX) & (self.xy_px < side_px + _BORDER_PX)).all(1)
        return Points(
            self.xy_px[kept], self.radius_px[kept], self.positive[kept], self.negative[kept], self.other[kept]
        )


def point_targets(
    points: Points, dye: npt.NDArray[np.float32], mpp: float, ring_scale: float, complete: bool
) -> tuple[Picture, Picture]:
    """Return maps and weights of nuclei that are marked by points.

    A disc around each point is nucleus. Where the nucleus ends is not known: around the disc only what is much paler
    than the point is ground.

    Parameters
    ----------
    points
        Of the crop, see `Points.near`.
    dye
        (S, S): optical density of both dyes, a little smoothed.
    mpp
        Resolution of the crop.
    ring_scale
        How much larger than usual the nuclei of the crop are.
    complete
        Whether every nucleus is marked; if not, dark ground far from all points is ignored.
    """
    side = dye.shape[0]
    maps = np.zeros((4, side, side), np.uint8)
    weights = np.full(maps.shape, 255, np.uint8)
    distance = np.full((side, side), np.inf, np.float32)
    if len(points.xy_px):
        owner, distance = _nearest(points.xy_px, side)
        disc = (distance <= _FAR_PX) & (distance <= points.radius_px[owner])
        own = points.radius_px[owner].astype(np.float32)
        maps[0] = np.where(disc, np.exp(-2 * np.square(distance / own)) * 255, 0)
        for at, which in ((1, points.positive), (2, points.negative), (3, points.other == 1)):
            maps[at][disc & which[owner]] = 255
        weights[1:3, disc & ~(points.positive | points.negative)[owner]] = 0
        weights[3][disc & (points.other < 0)[owner]] = 0
        x, y = np.clip(points.xy_px.round().astype(int), 0, side - 1).T
        ring = (distance <= _FAR_PX) & ~disc & (distance * mpp < _RING_UM * max(1.0, ring_scale))
        dark = ring & (dye > _RING_FRACTION * dye[y, x][owner])
        weights[1:4, dark] = 0
        weights[0][dark] = _RING_WEIGHT
    if not complete:
        weights[:, (distance * mpp > _MARKED_UM) & (dye > _GROUND_OD)] = 0
    return maps, weights


def _nearest(xy_px: Floats, side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return the index of the nearest point and its distance, (side, side) each."""
    wide = side + 2 * _BORDER_PX
    seeds = np.ones((wide, wide), np.uint8)
    x, y = np.clip(xy_px.round().astype(int) + _BORDER_PX, 0, wide - 1).T
    seeds[y, x] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    of = np.zeros(int(label.max()) + 1, np.intp)
    of[label[y, x]] = np.arange(len(xy_px))
    inner = slice(_BORDER_PX, -_BORDER_PX)
    return of[label[inner, inner]], np.asarray(distance[inner, inner], np.float32)


def blank_strip(rng: np.random.Generator, rgb: Picture, maps: Picture, weights: Picture, inside: Picture) -> None:
    """Make a strip of a crop, in place, what lies beyond the edge of a slide: white, without nuclei.

    Parameters
    ----------
    rgb, maps, weights, inside
        (S, S, 3), (4, S, S), (4, S, S) and (1, S, S); `inside` becomes 0 in the strip.
    """
    strip = int(rng.uniform(0.05, 0.6) * rgb.shape[0])
    turns = int(rng.integers(4))
    np.rot90(rgb, turns)[:strip] = 255
    for at, value in ((maps, 0), (weights, 255), (inside, 0)):
        np.rot90(at, turns, (1, 2))[:, :strip] = value
