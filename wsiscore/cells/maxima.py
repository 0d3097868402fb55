"""Cells as local maxima of a map of cell centres, the same whatever blocks it is read in.

A cell is a pixel, or a plateau of touching pixels, that is above the threshold and highest in the square of ±radius
around it (Molnar et al., IHCScoreGAN, eq. 8). Each block is read with a
margin of the radius and keeps only the maxima in its own core; a plateau that lies in several blocks is joined again
by its pixels at the blocks' edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from wsiscore.cells.table import NO_ROI, Cells
from wsiscore.mosaic import Mosaic
from wsiscore.regions import Region
from wsiscore.threads import in_threads

__all__ = ["Maxima", "cells_of_maxima", "local_maxima", "maxima_of_blocks", "smooth_center"]

_SUMS = ("center", "positive", "negative", "dab_od", "other")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Maxima:
    """Local maxima of one block, or of all: per maximum its number of pixels and sums over them, exact in float64.

    `edge_x`, `edge_y`, `edge_of` are the pixels at the block's edge and the maximum each belongs to.
    """

    n: Ints
    x: Floats
    y: Floats
    values: Floats  # (5, maxima), in the order of _SUMS
    edge_x: Ints
    edge_y: Ints
    edge_of: Ints


_NONE, _NOWHERE = np.empty(0, np.int64), np.empty(0)
_NO_MAXIMA = Maxima(_NONE, _NOWHERE, _NOWHERE, np.empty((len(_SUMS), 0)), _NONE, _NONE, _NONE)


def maxima_of_blocks(
    mosaic: Mosaic, blocks: Iterable[Region], *, threshold: float, radius_um: float, smooth_um: float
) -> list[Maxima]:
    """Return the local maxima of a mosaic's centre map in each block, for `cells_of_maxima`.

    Parameters
    ----------
    mosaic
        Maps ``center``, ``positive``, ``negative``, ``dab_od`` and perhaps ``other``, with no tile left to do.
    blocks
        As `Mosaic.blocks`. Their size bounds the memory and changes nothing else.
    threshold, radius_um, smooth_um
        As in `wsiscore.cells.rules.CenterRules`.
    """
    radius_px, sigma_px = _radius_px(mosaic, radius_um), smooth_um / mosaic.grid.mpp
    return in_threads(lambda block: _block_maxima(mosaic, block, radius_px, sigma_px, threshold), blocks)


def cells_of_maxima(mosaic: Mosaic, parts: Sequence[Maxima], *, radius_um: float) -> Cells:
    """Return the cells of a mosaic from the maxima of all its blocks, ordered by y, then x, in no region yet."""
    ground_od = float(mosaic.about.get("dab_ground_od", 0.0))
    return _to_cells(_join(parts), mosaic.grid.mpp, _radius_px(mosaic, radius_um), ground_od)


def local_maxima(center: npt.NDArray[np.float32], radius_px: int, threshold: float) -> npt.NDArray[np.bool_]:
    """Return which pixels of a centre map (H, W) are above `threshold` and highest in the square of ±`radius_px`.

    Touching pixels of equal height are all marked: they are one maximum.
    """
    square = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    highest: npt.NDArray[np.bool_] = (center == cv2.dilate(center, square)) & (center > threshold)
    return highest


def _block_maxima(mosaic: Mosaic, block: Region, radius_px: int, sigma_px: float, threshold: float) -> Maxima:
    margin = radius_px + _margin_px(sigma_px)
    pad_x, pad_y = min(block.x, margin), min(block.y, margin)
    width, height = block.width + 2 * margin, block.height + 2 * margin
    held = [name for name in _SUMS if name in mosaic.channels]
    maps = mosaic.stored(block.x - margin, block.y - margin, width, height)[
        [mosaic.channels.index(name) for name in held]
    ]
    center = smooth_center(mosaic.values(maps[:1], held[:1])[0].astype(np.float32, copy=False), sigma_px)
    peak = local_maxima(center, radius_px, threshold)
    core = np.s_[pad_y : pad_y + block.height, pad_x : pad_x + block.width]
    labels, count = ndi.label(peak[core], np.ones((3, 3)))
    y, x = np.nonzero(labels)
    of = labels[y, x] - 1

    def total(weights: npt.NDArray[np.generic]) -> Floats:
        return np.bincount(of, weights.astype(np.float64), minlength=count).astype(np.float64)

    edge = (x == 0) | (y == 0) | (x == block.width - 1) | (y == block.height - 1)
    others = mosaic.values(maps[1:, *core][:, y, x], held[1:]).astype(np.float32, copy=False)
    unknown = [np.full(len(y), np.nan)] * (len(_SUMS) - len(held))  # the map of other nuclei, which few models have
    values = np.stack([total(own) for own in (center[core][y, x], *others, *unknown)])
    x, y = x + block.x, y + block.y
    n = np.bincount(of, minlength=count).astype(np.int64)
    return Maxima(n, total(x), total(y), values, x[edge], y[edge], of[edge].astype(np.int64))


def _radius_px(mosaic: Mosaic, radius_um: float) -> int:
    return max(1, round(radius_um / mosaic.grid.mpp))


def _margin_px(sigma_px: float) -> int:
    return math.ceil(3 * sigma_px)


def smooth_center(center: npt.NDArray[np.float32], sigma_px: float) -> npt.NDArray[np.float32]:
    """Smooth a centre map by a Gaussian.

    Parameters
    ----------
    center
        (H, W) in [0, 1]; 0 beyond its edge.
    sigma_px
        Standard deviation in pixels; 0 for none.

    Returns
    -------
    (H, W) in [0, 1], computed in whole numbers, so that a pixel has the same value in any block.
    """
    if not sigma_px:
        return center
    side = 2 * _margin_px(sigma_px) + 1
    whole = np.round(center * 65535).astype(np.uint16)
    wide = cv2.copyMakeBorder(whole, *(side // 2,) * 4, cv2.BORDER_CONSTANT, value=0)
    soft = cv2.GaussianBlur(wide, (side, side), sigma_px)[side // 2 : -(side // 2), side // 2 : -(side // 2)]
    return soft.astype(np.float32) / np.float32(65535)


def _join(parts: Sequence[Maxima]) -> Maxima:
    """Put the blocks together and make one of each plateau that a cut went through."""
    parts = [_NO_MAXIMA, *parts]
    starts = np.cumsum([0, *(len(part.n) for part in parts[:-1])])
    edge_of = np.concatenate([part.edge_of + start for part, start in zip(parts, starts, strict=True)])
    edge_x, edge_y = (np.concatenate([getattr(part, name) for part in parts]) for name in ("edge_x", "edge_y"))
    n = np.concatenate([part.n for part in parts])
    touching = KDTree(np.column_stack([edge_x, edge_y])).query_pairs(1.5, p=np.inf, output_type="ndarray")
    links = coo_array((np.ones(len(touching)), (edge_of[touching[:, 0]], edge_of[touching[:, 1]])), (len(n), len(n)))
    count, whole = connected_components(links, directed=False) if len(n) else (0, np.empty(0, np.int64))

    def total(weights: npt.NDArray[np.generic]) -> Floats:
        return np.bincount(whole, weights.astype(np.float64), minlength=count).astype(np.float64)

    values = np.stack([total(row) for row in np.concatenate([part.values for part in parts], axis=1)])
    x, y = (total(np.concatenate([getattr(part, name) for part in parts])) for name in ("x", "y"))
    return Maxima(total(n).astype(np.int64), x, y, values, edge_x, edge_y, edge_of)


def _to_cells(maxima: Maxima, mpp: float, radius_px: int, ground_od: float) -> Cells:
    center, positive, negative, dab_od, other = maxima.values / np.maximum(maxima.n, 1)
    x, y = maxima.x / np.maximum(maxima.n, 1), maxima.y / np.maximum(maxima.n, 1)
    both = positive + negative
    positivity = np.divide(positive, both, out=np.full_like(both, np.nan), where=both > 0)
    nowhere = np.full(len(x), NO_ROI, np.int64)
    cells = Cells((x + 0.5) * mpp, (y + 0.5) * mpp, center, positivity, dab_od - ground_od, nowhere, other=other)
    order = np.lexsort((x, y))
    order = order[_first_of_equals(x[order], y[order], center[order], radius_px)]
    return cells.select(order)


def _first_of_equals(x: Floats, y: Floats, height: Floats, radius_px: int) -> npt.NDArray[np.bool_]:
    """Mark all but those equally high as an earlier one within the radius: a flat top with a dent is one cell."""
    keep = np.ones(len(x), np.bool_)
    if not len(x):
        return keep
    pairs = KDTree(np.column_stack([x, y])).query_pairs(radius_px, p=np.inf, output_type="ndarray")
    pairs = np.sort(pairs[height[pairs[:, 0]] == height[pairs[:, 1]]], axis=1)
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist():
        if keep[first]:
            keep[second] = False
    return keep
