"""The design effect: how much an index varies between blocks of tissue, and from one end of the tissue to the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wsiscore.analysis.intervals import MIN_BLOCKS, Sampling, t_quantile
from wsiscore.cells.table import Cells

__all__ = [
    "SIDES_UM",
    "BlockSize",
    "between_fields",
    "block_sizes",
    "broad_effect",
    "choose_blocks",
    "correlation_um",
    "design_effect",
    "sampling",
]

SIDES_UM = (250.0, 500.0, 1000.0, 2000.0, 4000.0)
"""Sides of the blocks that are tried, in micrometres."""

_WIDE, _TOO_NARROW = 6.0, 2.0  # side of a block in correlation lengths: wanted, and the least of a ninth of the area
_WAVES = 5  # of the broadest

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlockSize:
    """The design effect at one size of block.

    Parameters
    ----------
    block_um
        Side in micrometres.
    blocks
        Number of blocks, (Σn)²/Σn² for n cells in each, rounded: a block with few cells counts in part.
    design_effect
        As `design_effect` returns it; nan for fewer than `MIN_BLOCKS` blocks.
    """

    block_um: float
    blocks: int
    design_effect: float


def design_effect(n: Counts, n_positive: Counts) -> float:
    """Return the variance of a ratio between blocks over that of independent cells, at least 1.

    With n cells and y positive ones in each of m blocks and p = Σy/Σn, the variance is
    m/(m − 1) · Σ(y − p n)²/(Σn)², and that of independent cells p (1 − p)/Σn.

    Parameters
    ----------
    n, n_positive
        All and positive cells of each block, of at least two blocks; each has a cell.

    References
    ----------
    W. G. Cochran, Sampling Techniques, 3rd ed., Wiley 1977, section 6.3. L. Kish, Survey Sampling, Wiley 1965.
    """
    m, total = len(n), int(n.sum())
    p = float(n_positive.sum()) / total
    if p in (0.0, 1.0):
        return 1.0
    variance = m / (m - 1) * float(np.sum((n_positive - p * n) ** 2)) / total**2
    return max(1.0, variance * total / (p * (1 - p)))


def block_sizes(cells: Cells) -> tuple[BlockSize, ...]:
    """Return the design effect at each of `SIDES_UM`; the grids start at the least x and y of the cells."""
    return tuple(_size(cells, side) for side in SIDES_UM)


def sampling(cells: Cells) -> Sampling | None:
    """Return the design effect that gives the wider interval: of blocks, or of the broadest waves.

    It is that of `choose_blocks`; or that of `broad_effect`, times the ratio of the squared quantiles of Student's t,
    so that blocks and waves each have their own degrees of freedom.
    """
    found = choose_blocks(block_sizes(cells), correlation_um(cells))
    if found is None:
        return None
    raised = broad_effect(cells) * (t_quantile(0.975, _WAVES) / t_quantile(0.975, found.freedom)) ** 2
    return replace(found, design_effect=max(found.design_effect, raised))


def choose_blocks(sizes: Sequence[BlockSize], correlation: float) -> Sampling | None:
    """Return the design effect between blocks; None if no size has `MIN_BLOCKS` blocks.

    It is that of the smallest block of at least 6 correlation lengths; where there are fewer than `MIN_BLOCKS` of
    these, that of the largest block of which there are as many. If a ninth of the area is narrower than 2 correlation
    lengths, the area is too small to know the variation, and the design effect is a lower bound.

    Parameters
    ----------
    sizes
        The design effects by ascending side.
    correlation
        As `correlation_um` returns it.
    """
    known = [size for size in sizes if size.blocks >= MIN_BLOCKS]
    if not known:
        return None
    size = next((size for size in known if size.block_um >= _WIDE * correlation), known[-1])
    ninth_um = sizes[0].block_um * math.sqrt(sizes[0].blocks / MIN_BLOCKS)
    return Sampling(size.block_um, size.blocks, size.design_effect, ninth_um < _TOO_NARROW * correlation)


def broad_effect(cells: Cells) -> float:
    """Return the variance of an index over the broadest waves over that of independent cells, at least 1.

    Blocks that depend on their neighbours vary too little between them; the broadest waves over the tissue see what
    varies over its whole width. The waves are the five products of a cosine along x and one along y of the lowest
    frequency: of half a period, as one end against the other, to a whole one, as the middle against the ends. They are
    made orthogonal to one another and to a constant over the cells, and scaled to a mean square of 1. With e = y − p n
    in blocks of 250 µm of n cells and y positive ones, the variance is the mean of the squares of Σ e wave, over N²
    for N cells in all.

    References
    ----------
    U. K. Müller, J. Econometrics 141 (2007) 1331. E. Lazarus et al., J. Bus. Econ. Stat. 36 (2018) 541.
    """
    counts, positive = _counts(cells, SIDES_UM[0])
    row, col = np.nonzero(counts)
    n, y = counts[row, col].astype(np.float64), positive[row, col]
    p = float(y.sum() / n.sum())
    if p in (0.0, 1.0):
        return 1.0
    height, width = counts.shape
    both = ((j, k) for j in range(_WAVES + 1) for k in range(_WAVES + 1))
    lowest = sorted(both, key=lambda jk: ((jk[0] / height) ** 2 + (jk[1] / width) ** 2, jk))[: _WAVES + 1]
    waves = np.stack(
        [np.cos(np.pi * j * (row + 0.5) / height) * np.cos(np.pi * k * (col + 0.5) / width) for j, k in lowest], axis=1
    )
    orthogonal = np.linalg.qr(waves * np.sqrt(n)[:, None])[0][:, 1:]  # the first is the constant
    sums = orthogonal.T @ ((y - p * n) / np.sqrt(n))
    return max(1.0, float(np.mean(sums**2)) / (p * (1 - p)))


def correlation_um(cells: Cells) -> float:
    """Return over what distance the local index is alike, in micrometres; 0 if it varies no more than by chance.

    It is the distance at which the covariance of the index between blocks of 250 µm falls under 1/e of its variance,
    less that of counting. With n cells and y positive ones a block has e = y − p n; the covariance at a distance is the
    sum of the products of e over that of n, of all pairs of blocks so far apart, which is rounded to blocks.
    """
    side = SIDES_UM[0]
    if not len(cells):
        return 0.0
    n, y = (values.astype(np.float64) for values in _counts(cells, side))
    p = float(y.sum() / n.sum())
    e = y - p * n
    variance = float(np.sum(e**2) - p * (1 - p) * n.sum()) / float(np.sum(n**2))
    if variance <= 0:
        return 0.0
    pairs, products = _by_distance(n), _by_distance(e)
    reached = pairs > 0.5  # sums of whole numbers
    covariance = np.divide(products, pairs, out=np.zeros_like(pairs), where=reached) / variance
    covariance[0] = 1.0
    below = np.flatnonzero(reached & (covariance < 1 / math.e))
    if not len(below):
        return side * len(covariance)
    at = int(below[0])
    steep = covariance[at - 1] - covariance[at]
    return side * (at - 1 + float(covariance[at - 1] - 1 / math.e) / float(steep))


def _by_distance(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sums of the products of all pairs of blocks, by their distance rounded to blocks."""
    from scipy import fft

    size = [fft.next_fast_len(2 * n) for n in values.shape]
    products = fft.irfft2(np.abs(fft.rfft2(values, size)) ** 2, size)
    dy, dx = (np.minimum(np.arange(n), n - np.arange(n)) for n in size)
    distance = np.rint(np.hypot(dy[:, None], dx[None])).astype(np.int64)
    return np.asarray(np.bincount(distance.ravel(), products.ravel())[: max(values.shape)], np.float64)


def between_fields(n: Sequence[int], n_positive: Sequence[int]) -> Sampling | None:
    """Return the design effect between fields that lie apart, as those of one case do; None for too few of them.

    Parameters
    ----------
    n, n_positive
        All and positive cells of each field; fields without cells are left out.
    """
    every, positive = np.asarray(n, np.int64), np.asarray(n_positive, np.int64)
    held = every > 0
    if not held.any() or (blocks := _effective(every[held])) < MIN_BLOCKS:
        return None
    return Sampling(math.nan, blocks, design_effect(every[held], positive[held]))


def _size(cells: Cells, side: float) -> BlockSize:
    if not len(cells):
        return BlockSize(side, 0, math.nan)
    n, n_positive = _counts(cells, side)
    held = n > 0
    blocks = _effective(n[held])
    if blocks < MIN_BLOCKS:
        return BlockSize(side, blocks, math.nan)
    return BlockSize(side, blocks, design_effect(n[held], n_positive[held]))


def _counts(cells: Cells, side: float) -> tuple[Counts, Counts]:
    """Return all and the positive cells of each block, (rows, cols); the grid starts at the least x and y."""
    row, col = (((at - at.min()) // side).astype(np.int64) for at in (cells.y_um, cells.x_um))
    rows, cols = int(row.max()) + 1, int(col.max()) + 1
    at = row * cols + col
    n, n_positive = (np.bincount(which, minlength=rows * cols) for which in (at, at[cells.positive]))
    return n.astype(np.int64).reshape(rows, cols), n_positive.astype(np.int64).reshape(rows, cols)


def _effective(n: Counts) -> int:
    """Return the number of blocks of equal size that say as much as these."""
    return round(float(n.sum()) ** 2 / float(np.sum(n.astype(np.float64) ** 2)))
