"""The design effect: how much an index varies between square blocks of tissue, and at which size of block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from wsiscore.analysis.intervals import MIN_BLOCKS, Sampling
from wsiscore.cells.table import Cells

__all__ = ["SIDES_UM", "BlockSize", "between_fields", "block_sizes", "design_effect", "sampling"]

SIDES_UM = (250.0, 500.0, 1000.0, 2000.0)
"""Sides of the blocks that are tried, in micrometres."""

_SETTLED = 1.1  # a design effect that grows by less than a tenth to the next size has settled

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlockSize:
    """The design effect at one size of block.

    Parameters
    ----------
    block_um
        Side in micrometres.
    blocks
        Number of blocks with cells.
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


def sampling(sizes: Sequence[BlockSize]) -> Sampling | None:
    """Return the design effect to use; None if no size has `MIN_BLOCKS` blocks.

    It is that of the smallest block from which it grows by less than a tenth to the next size. Where there is none, or
    no next size, it is that of the largest block, and a lower bound.
    """
    known = [size for size in sizes if size.blocks >= MIN_BLOCKS]
    for size, larger in pairwise(known):
        if larger.design_effect < _SETTLED * size.design_effect:
            return Sampling(size.block_um, size.blocks, size.design_effect)
    if not known:
        return None
    return Sampling(known[-1].block_um, known[-1].blocks, known[-1].design_effect, lower_bound=True)


def between_fields(n: Sequence[int], n_positive: Sequence[int]) -> Sampling | None:
    """Return the design effect between fields that lie apart, as those of one case do; None for too few of them.

    Parameters
    ----------
    n, n_positive
        All and positive cells of each field; fields without cells are left out.
    """
    every, positive = np.asarray(n, np.int64), np.asarray(n_positive, np.int64)
    held = every > 0
    if np.count_nonzero(held) < MIN_BLOCKS:
        return None
    return Sampling(math.nan, int(np.count_nonzero(held)), design_effect(every[held], positive[held]))


def _size(cells: Cells, side: float) -> BlockSize:
    if not len(cells):
        return BlockSize(side, 0, math.nan)
    col = ((cells.x_um - cells.x_um.min()) // side).astype(np.int64)
    row = ((cells.y_um - cells.y_um.min()) // side).astype(np.int64)
    _, which = np.unique(row * (int(col.max()) + 1) + col, return_inverse=True)
    n = np.bincount(which).astype(np.int64)
    if len(n) < MIN_BLOCKS:
        return BlockSize(side, len(n), math.nan)
    n_positive = np.bincount(which[cells.positive], minlength=len(n)).astype(np.int64)
    return BlockSize(side, len(n), design_effect(n, n_positive))
