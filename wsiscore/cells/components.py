"""Whole cells from maps of class and boundary: connected components, the same whatever blocks they are read in.

A pixel is classified where positive and negative map together exceed the threshold and the boundary map is low. What
is not, and hangs together side by side with the edge of what was inferred, is background; what is not and does not
hang together with it is a hole in a cell. Cells are what hangs together, also over corners, of all that is not
background (post-processing of Ghahremani et al., DeepLIIF, Nat. Mach. Intell. 4 (2022) 401).

Each block is labelled by itself, with one row and column of the next: where two blocks have labelled the same pixel
they speak of the same thing, and so the pieces are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wsiscore.cells.table import NO_ROI, Cells
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState
from wsiscore.regions import Region
from wsiscore.threads import in_threads
from wsiscore.tiles import TileGrid

__all__ = ["Components", "Pieces", "find_components", "find_least_area_um2", "pieces_of_blocks", "whole_cells"]

_MAPS = ("positive", "negative", "boundary", "dab_od")
_PIXEL_UM = 0.25  # side of the pixels in which the published sizes count
_NOISE_PX = 4  # a component this small or smaller is none
_LEAST_SIDES_PX = (4.0, 10.0)  # a least area found has a side between these
_USUAL_SIDE_PX = 7.0  # and this one, when it is above
_BINS = 500

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Components:
    """Components of a mosaic as columns of one length, in no order.

    Parameters
    ----------
    size_px
        Pixels, holes included.
    x_px, y_px
        Mean of the pixels' columns and rows in the mosaic, rounded.
    positive_px, negative_px
        Pixels of either class.
    confidence
        Mean over the pixels of the higher of the two class maps, in [0, 1].
    dab_od
        Mean over the pixels of the DAB optical density around them.
    """

    size_px: Ints
    x_px: Ints
    y_px: Ints
    positive_px: Ints
    negative_px: Ints
    confidence: Floats
    dab_od: Floats


@dataclass(frozen=True, slots=True)
class Pieces:
    """What one block knows: its pieces are numbered from 1, and 0 is what touches the edge of what was inferred.

    Each side is the numbers along it: `top` and `left` of the block's own pixels, `below` and `beyond` of the row and
    column after them, `below` with the corner, where there are any.
    """

    block: Region
    hole: Flags  # (pieces + 1,): whether its pixels are not classified
    sums: Floats  # (7, pieces + 1): as `Components`, to be divided by the first; exact in float64
    touching: Ints  # (2, pairs): pieces side by side, a hole and a cell's
    top: Ints
    left: Ints
    below: Ints
    beyond: Ints


def whole_cells(mosaic: Mosaic, parts: Sequence[Pieces], *, least_area_um2: float | None) -> tuple[Cells, float]:
    """Return the components larger than the least area, as cells ordered by y, then x, in no region yet.

    Parameters
    ----------
    mosaic
        As in `find_components`.
    parts
        What `pieces_of_blocks` gives of all blocks.
    least_area_um2
        Area that a cell must exceed, in µm²; None finds it from the areas of all components.

    Returns
    -------
    The cells, and the least area used.
    """
    components = _joined(mosaic, parts)
    mpp = mosaic.grid.mpp
    least = find_least_area_um2(components, mpp) if least_area_um2 is None else least_area_um2
    large = components.size_px * mpp**2 > least
    x_px, y_px, positive, negative, confidence, dab_od = (
        getattr(components, name)[large].astype(np.float64)
        for name in ("x_px", "y_px", "positive_px", "negative_px", "confidence", "dab_od")
    )
    nowhere = np.full(len(x_px), NO_ROI, np.int64)
    dab_od -= float(mosaic.about.get("dab_ground_od", 0.0))
    cells = Cells((x_px + 0.5) * mpp, (y_px + 0.5) * mpp, confidence, positive / (positive + negative), dab_od, nowhere)
    return cells.select(np.lexsort((x_px, y_px))), least


def find_components(mosaic: Mosaic, *, threshold: float, boundary: float, block_px: int) -> Components:
    """Find the components of a whole mosaic, noise left out.

    Parameters
    ----------
    mosaic
        Maps ``positive``, ``negative``, ``boundary`` and ``dab_od``, with no tile left to do. What was not inferred is
        background.
    threshold, boundary
        As in `wsiscore.cells.rules.ComponentRules`; compared in steps of 1/255, as published.
    block_px
        Side of the blocks that are read at a time. It bounds the memory and changes nothing else.
    """
    return _joined(mosaic, pieces_of_blocks(mosaic, mosaic.blocks(block_px), threshold=threshold, boundary=boundary))


def pieces_of_blocks(mosaic: Mosaic, blocks: Iterable[Region], *, threshold: float, boundary: float) -> list[Pieces]:
    """Return the pieces of components in each block of a mosaic; the parameters are those of `find_components`."""
    held = mosaic.states() == TileState.WRITTEN
    return in_threads(lambda block: _pieces(mosaic, held, block, threshold, boundary), blocks)


def _joined(mosaic: Mosaic, parts: Sequence[Pieces]) -> Components:
    return _to_components(_join(parts), mosaic.grid.mpp)


def find_least_area_um2(components: Components, mpp: float) -> float:
    """Return the area that a cell must exceed, by the areas of all components: between debris and nuclei.

    It is the first local minimum of a Gaussian kernel density (bandwidth 1, 500 bins) of the square roots of the areas,
    and of that one bin before; at least 4² and, if above 10², 7², in published pixels of 0.25 µm. 0 for one or none.

    Parameters
    ----------
    components
        Of the whole slide.
    mpp
        Micrometres per pixel of the mosaic.
    """
    if len(components.size_px) < 2:
        return 0.0
    side, count = np.unique(np.sqrt(components.size_px) * (mpp / _PIXEL_UM), return_counts=True)
    at = np.arange(_BINS) * (side[-1] + 1) / _BINS
    density = (np.exp(-0.5 * np.square(at[:, None] - side)) @ (count / count.sum())).astype(np.float32)
    inner = density[1:-1]
    minima = np.flatnonzero((inner < density[:-2]) & (inner < density[2:]))  # of the bin before each
    found = at[minima[0]] if len(minima) else 0.0
    found = _USUAL_SIDE_PX if found > _LEAST_SIDES_PX[1] else max(found, _LEAST_SIDES_PX[0])
    return float(round(found**2) * _PIXEL_UM**2)


def _pieces(mosaic: Mosaic, held: Flags, block: Region, threshold: float, boundary_limit: float) -> Pieces:
    grid, own = mosaic.grid, np.s_[: block.height, : block.width]
    maps = mosaic.read(block.x, block.y, block.width + 1, block.height + 1, _MAPS)
    positive, negative, boundary = np.rint(maps[:3].astype(np.float32) * 255).astype(np.int16)
    cell = (positive + negative > round(threshold * 255)) & (boundary <= round(boundary_limit * 255))
    holes, n_holes = ndi.label(~cell)
    cells, n_cells = ndi.label(cell, np.ones((3, 3)))
    number = np.arange(n_holes + 1)
    number[holes[_edge(grid, held, block, cell.shape)]] = 0
    pieces = number[holes] + np.where(cell, cells + n_holes, 0)

    def total(weights: npt.NDArray[np.generic] | None = None) -> Floats:
        weights = None if weights is None else weights[own].ravel().astype(np.float64)
        return np.bincount(pieces[own].ravel(), weights, n_holes + n_cells + 1).astype(np.float64)

    y, x = np.ogrid[block.y : block.y + cell.shape[0], block.x : block.x + cell.shape[1]]
    reddest = cell & (positive >= negative)
    weights = (x + 0 * y, y + 0 * x, reddest, cell & ~reddest, np.maximum(maps[0], maps[1]), maps[3])
    return Pieces(
        block,
        hole=np.arange(n_holes + n_cells + 1) <= n_holes,
        sums=np.stack([total(), *(total(weight) for weight in weights)]),
        touching=_touching(pieces),
        top=pieces[0, : block.width],
        left=pieces[: block.height, 0],
        below=pieces[block.height :].ravel(),
        beyond=pieces[: block.height, block.width :].ravel(),
    )


def _edge(grid: TileGrid, held: Flags, block: Region, shape: tuple[int, ...]) -> Flags:
    """Mark the pixels that were not inferred, or have one beside them that was not or lies beyond the mosaic."""
    y, x = np.arange(block.y - 1, block.y + shape[0] + 1), np.arange(block.x - 1, block.x + shape[1] + 1)
    rows, cols = (np.clip(at // grid.core_px, 0, n - 1) for at, n in zip((y, x), held.shape, strict=True))
    within = ((y >= 0) & (y < grid.height_px))[:, None] & (x >= 0) & (x < grid.width_px)
    inferred = held[np.ix_(rows, cols)] & within
    inner: Flags = inferred[1:-1, 1:-1] & inferred[:-2, 1:-1] & inferred[2:, 1:-1]
    return ~(inner & inferred[1:-1, :-2] & inferred[1:-1, 2:])


def _touching(pieces: Ints) -> Ints:
    """Return as (2, pairs) the pieces that lie side by side: always a hole and a cell's."""
    codes = []
    for one, other in ((pieces[:, :-1], pieces[:, 1:]), (pieces[:-1], pieces[1:])):
        where = (one != other) & (one > 0) & (other > 0)
        low, high = np.minimum(one[where], other[where]), np.maximum(one[where], other[where])
        codes.append(np.unique(low.astype(np.int64) << 32 | high))
    both = np.unique(np.concatenate(codes))
    return np.stack([both >> 32, both & 0xFFFFFFFF])


def _join(parts: Sequence[Pieces]) -> Floats:
    """Return the sums, (7, components), over all pieces of all blocks that hang together and are no background."""
    if not parts:
        return np.zeros((7, 0))
    starts = np.cumsum([0, *(len(part.hole) - 1 for part in parts)])
    hole = np.concatenate([[True], *(part.hole[1:] for part in parts)])
    sums = np.concatenate([np.zeros((7, 1)), *(part.sums[:, 1:] for part in parts)], axis=1)
    same = _same(parts, starts)
    outside = _whole(same[:, hole[same].all(axis=0)], len(hole))
    background = hole & (outside == outside[0])
    links = np.concatenate([same, *(part.touching + start for part, start in zip(parts, starts, strict=False))], axis=1)
    whole = _whole(links[:, ~background[links].any(axis=0)], len(hole))[~background]
    totals = np.stack([np.bincount(whole, row).astype(np.float64) for row in sums[:, ~background]])
    return totals[:, totals[0] > 0]


def _same(parts: Sequence[Pieces], starts: Ints) -> Ints:
    """Return as (2, pairs) the numbers that two blocks gave to the same pixel; 0 is the same thing in all."""

    def numbers(index: int, own: Ints) -> Ints:
        return np.where(own > 0, own + starts[index], 0)

    at = {(part.block.x, part.block.y): index for index, part in enumerate(parts)}
    pairs = [np.empty((2, 0), np.int64)]
    for index, part in enumerate(parts):
        block = part.block
        right, bottom = block.x + block.width, block.y + block.height
        for own, place, side in (
            (part.beyond, (right, block.y), "left"),
            (part.below[: block.width], (block.x, bottom), "top"),
            (part.below[block.width :], (right, bottom), "top"),
        ):
            if (other := at.get(place)) is not None and len(own):
                theirs = getattr(parts[other], side)[: len(own)]
                pairs.append(np.unique([numbers(index, own), numbers(other, theirs)], axis=1))
    return np.concatenate(pairs, axis=1)


def _whole(links: Ints, count: int) -> Ints:
    """Return for each of `count` things the number of its group; `links`, (2, pairs), go together."""
    graph = coo_array((np.ones(links.shape[1]), (links[0], links[1])), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _to_components(sums: Floats, mpp: float) -> Components:
    sums = sums[:, sums[0] * (mpp / _PIXEL_UM) ** 2 > _NOISE_PX]
    size, x, y, positive, negative, confidence, dab_od = sums
    return Components(
        size.astype(np.int64),
        np.rint(x / size).astype(np.int64),
        np.rint(y / size).astype(np.int64),
        positive.astype(np.int64),
        negative.astype(np.int64),
        confidence / size,
        dab_od / size,
    )
