"""Cells from the mosaic, the same whatever blocks it is read in.

From maps of whole cells they are the connected components (`wsiscore.components`). From maps of centres they are local
maxima: a cell is a pixel, or a plateau of touching pixels, that is above the threshold and highest in the square of
±radius around it (Molnar et al., IHCScoreGAN, eq. 8). Each block is read with a rim of the radius and keeps only
the maxima in its own core; a plateau that a block cuts is joined again by its pixels at the cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi
from dask.base import compute
from dask.delayed import delayed
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from wsiscore.components import find_components, least_area_um2
from wsiscore.errors import MosaicError
from wsiscore.generators import CellRules
from wsiscore.mosaic import Mosaic
from wsiscore.regions import Region, Roi, inside

__all__ = ["Cells", "find_cells", "smooth_center"]

_BLOCK_PX = 1024
_SUMS = ("center", "positive", "negative", "dab_od")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cells:
    """Counted cells as columns of one length, ordered by y, then x.

    Parameters
    ----------
    x_um, y_um
        Centre, in micrometres from the slide's top left.
    confidence
        Height of the centre map there; of whole cells the mean of the higher class map over the cell; in [0, 1].
    positivity
        Positive map's share of positive and negative together; of whole cells the positive share of the classified
        pixels; in [0, 1].
    dab_od
        Mean optical density of DAB around the centre; of whole cells the mean over the cell.
    roi
        Index of the first ROI that holds it.
    """

    x_um: Floats
    y_um: Floats
    confidence: Floats
    positivity: Floats
    dab_od: Floats
    roi: Ints

    def __post_init__(self) -> None:
        if len({len(getattr(self, column.name)) for column in fields(self)}) != 1:
            raise ValueError("the columns of cells differ in length")

    def __len__(self) -> int:
        return len(self.x_um)

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """Whether each cell is positive: its positivity is at least one half."""
        return self.positivity >= 0.5

    def select(self, which: npt.NDArray[np.generic]) -> Self:
        """Return the cells at these indices or where this mask is true."""
        return type(self)(*(getattr(self, column.name)[which] for column in fields(self)))


@dataclass(frozen=True, slots=True)
class _Maxima:
    """Maxima of one block, or of all: per maximum its number of pixels and sums over them, exact in float64.

    `edge_x`, `edge_y`, `edge_of` are the pixels at the block's rim and the maximum each belongs to.
    """

    n: Ints
    x: Floats
    y: Floats
    values: Floats  # (4, maxima), in the order of _SUMS
    edge_x: Ints
    edge_y: Ints
    edge_of: Ints


_NONE, _NOWHERE = np.empty(0, np.int64), np.empty(0)
_NO_MAXIMA = _Maxima(_NONE, _NOWHERE, _NOWHERE, np.empty((len(_SUMS), 0)), _NONE, _NONE, _NONE)


def find_cells(
    mosaic: Mosaic,
    rois: Sequence[Roi] | None = None,
    *,
    rules: CellRules | None = None,
    block_px: int = _BLOCK_PX,
    found: dict[str, float] | None = None,
) -> Cells:
    """Find the cells of a mosaic that lie in the ROIs.

    Parameters
    ----------
    mosaic
        Maps ``positive``, ``negative``, ``dab_od`` and either ``center`` or ``boundary``, with no tile left to do.
    rois
        Where cells count; by default where the mosaic was made.
    rules
        By default those the mosaic was made with.
    block_px
        Side of the blocks that dask reads at a time. It bounds the memory and changes nothing else.
    found
        Filled with the rules that were found on the slide itself: ``least_area_um2``.

    Raises
    ------
    MosaicError
        If tiles are missing, or the mosaic is a picture.
    """
    if mosaic.about["output"] == "image":
        raise MosaicError(f"{mosaic.path} is a virtual stain, not a map of cells; score it as a slide")
    if missing := mosaic.missing():
        raise MosaicError(f"{mosaic.path} lacks {missing} tiles; run the same `wsiscore infer` again to finish it")
    rules = rules or CellRules(**mosaic.about["rules"])
    rois = mosaic.tiles.rois if rois is None else rois
    if mosaic.about["output"] == "components":
        return _in_rois(_whole_cells(mosaic, rules, block_px, {} if found is None else found), rois)
    radius_px = max(1, round(rules.radius_um / mosaic.grid.mpp))
    find = delayed(_block_maxima)
    sigma_px = rules.smooth_um / mosaic.grid.mpp
    tasks = [find(mosaic, block, radius_px, sigma_px, rules.threshold) for block in mosaic.blocks(block_px)]
    maxima = _join(compute(*tasks, scheduler="threads"))
    return _in_rois(_to_cells(maxima, mosaic.grid.mpp, radius_px), rois)


def _whole_cells(mosaic: Mosaic, rules: CellRules, block_px: int, found: dict[str, float]) -> Cells:
    components, mpp = find_components(mosaic, rules, block_px=block_px), mosaic.grid.mpp
    least = rules.least_area_um2
    if least is None:
        least = found["least_area_um2"] = least_area_um2(components, mpp)
    large = components.size_px * mpp**2 > least
    x_px, y_px, positive, negative, confidence, dab_od = (
        getattr(components, name)[large].astype(np.float64)
        for name in ("x_px", "y_px", "positive_px", "negative_px", "confidence", "dab_od")
    )
    nowhere = np.full(len(x_px), -1, np.int64)
    cells = Cells((x_px + 0.5) * mpp, (y_px + 0.5) * mpp, confidence, positive / (positive + negative), dab_od, nowhere)
    return cells.select(np.lexsort((x_px, y_px)))


def _block_maxima(mosaic: Mosaic, block: Region, radius_px: int, sigma_px: float, threshold: float) -> _Maxima:
    halo = radius_px + _reach(sigma_px)
    pad_x, pad_y = min(block.x, halo), min(block.y, halo)
    width, height = block.width + 2 * halo, block.height + 2 * halo
    maps = mosaic.read(block.x - halo, block.y - halo, width, height, _SUMS).astype(np.float32)
    maps[0] = smooth_center(maps[0], sigma_px)
    square = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    peak = (maps[0] == cv2.dilate(maps[0], square)) & (maps[0] > threshold)
    core = np.s_[pad_y : pad_y + block.height, pad_x : pad_x + block.width]
    labels, count = ndi.label(peak[core], np.ones((3, 3)))
    y, x = np.nonzero(labels)
    of = labels[y, x] - 1

    def total(weights: npt.NDArray[np.generic]) -> Floats:
        return np.bincount(of, weights.astype(np.float64), minlength=count).astype(np.float64)

    edge = (x == 0) | (y == 0) | (x == block.width - 1) | (y == block.height - 1)
    values = np.stack([total(map_[core][y, x]) for map_ in maps])
    x, y = x + block.x, y + block.y
    n = np.bincount(of, minlength=count).astype(np.int64)
    return _Maxima(n, total(x), total(y), values, x[edge], y[edge], of[edge].astype(np.int64))


def _reach(sigma_px: float) -> int:
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
    side = 2 * _reach(sigma_px) + 1
    whole = np.round(center * 65535).astype(np.uint16)
    wide = cv2.copyMakeBorder(whole, *(side // 2,) * 4, cv2.BORDER_CONSTANT, value=0)
    soft = cv2.GaussianBlur(wide, (side, side), sigma_px)[side // 2 : -(side // 2), side // 2 : -(side // 2)]
    return soft.astype(np.float32) / np.float32(65535)


def _join(parts: Sequence[_Maxima]) -> _Maxima:
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
    return _Maxima(total(n).astype(np.int64), x, y, values, edge_x, edge_y, edge_of)


def _to_cells(maxima: _Maxima, mpp: float, radius_px: int) -> Cells:
    center, positive, negative, dab_od = maxima.values / np.maximum(maxima.n, 1)
    x, y = maxima.x / np.maximum(maxima.n, 1), maxima.y / np.maximum(maxima.n, 1)
    both = positive + negative
    positivity = np.divide(positive, both, out=np.full_like(both, 0.5), where=both > 0)
    nowhere = np.full(len(x), -1, np.int64)
    cells = Cells((x + 0.5) * mpp, (y + 0.5) * mpp, center, positivity, dab_od, nowhere)
    order = np.lexsort((x, y))
    return cells.select(order[_first_of_equals(x[order], y[order], center[order], radius_px)])


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


def _in_rois(cells: Cells, rois: Sequence[Roi]) -> Cells:
    """Return the cells inside a ROI, each with the index of the first that holds it."""
    first = np.full(len(cells), -1, np.int64)
    for index, roi in reversed(list(enumerate(rois))):
        first[inside(roi.outline_um, cells.x_um, cells.y_um)] = index
    return replace(cells, roi=first).select(first >= 0)
