"""Cells that somebody corrected: compared with those that were found, and counted as edits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiscore.cells.table import NO_ROI, Cells, Edit
from wsiscore.errors import CorrectionError
from wsiscore.regions import Roi

__all__ = ["MATCH_UM", "CellClass", "Edits", "MarkedCells", "correct"]

MATCH_UM = 2.0
"""A marked cell within this distance of a found one is that cell; half the radius of a small nucleus."""

_log = logging.getLogger("wsiscore")


class CellClass(IntEnum):
    """Class of a marked cell."""

    NEGATIVE = 0
    POSITIVE = 1
    OTHER = 2  # a nucleus other than the tumour's, which does not count


@dataclass(frozen=True, slots=True)
class MarkedCells:
    """Cells as a file has them.

    Parameters
    ----------
    x_um, y_um
        (N,) centres, in micrometres from the slide's top left.
    kind
        (N,) values of `CellClass`.
    """

    x_um: npt.NDArray[np.float64]
    y_um: npt.NDArray[np.float64]
    kind: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x_um)


@dataclass(frozen=True, slots=True)
class Edits:
    """How corrected cells differ from those that the model found.

    Parameters
    ----------
    added, deleted
        Cells that the model did not find, and cells it found that are none.
    changed
        Cells of another class than the model's.
    found_positive, found_negative
        Counted cells as the model found them.
    """

    added: int
    deleted: int
    changed: int
    found_positive: int
    found_negative: int

    @property
    def total(self) -> int:
        """All edits."""
        return self.added + self.deleted + self.changed


def correct(
    found: Cells, others: Cells, marked: MarkedCells, rois: Sequence[Roi], *, most_new: float = 0.5
) -> tuple[Cells, Cells, Edits]:
    """Replace the cells that were found by those that somebody marked.

    A marked cell and a found one are the same if each is the nearest to the other, within `MATCH_UM`. The same cell
    keeps the place and the measurements of the found one. An added cell has no measurements. Marked cells outside the
    regions do not count.

    Parameters
    ----------
    found, others
        The cells that count and the nuclei that do not, as the model found them inside the regions.
    marked
        All cells, corrected.
    rois
        The regions.
    most_new
        Greatest fraction of the marked cells that may be new.

    Returns
    -------
    The cells that count, those that do not, and the edits.

    Raises
    ------
    CorrectionError
        If more of the marked cells are new.
    """
    stored = found.with_others(others, sort=False)
    kinds = np.r_[found.positive.astype(np.int64), np.full(len(others), CellClass.OTHER)]
    of_stored, of_marked = _same(stored, marked)
    new = np.ones(len(marked), np.bool_)
    new[of_marked] = False
    if new.sum() > most_new * len(marked):
        raise CorrectionError(
            f"only {len(marked) - new.sum():,} of its {len(marked):,} cells are where the model found one; is it of "
            "another slide, or not in pixels of the full resolution? If most cells are really new, add --force"
        )
    kept = stored.select(of_stored)
    kinds_kept = marked.kind[of_marked]
    changed = kinds_kept != kinds[of_stored]
    kept = kept.marked(
        np.where(changed & (kinds_kept != CellClass.OTHER), kinds_kept == CellClass.POSITIVE, kept.positive),
        np.where(changed, Edit.CLASS_CHANGED, Edit.NONE),
    )
    added, kinds_added = _added(marked, new, rois)
    corrected = kept.with_others(added, sort=False)
    is_other = np.r_[kinds_kept, kinds_added] == CellClass.OTHER
    deleted = len(stored) - len(kept)
    if 2 * deleted > len(stored):
        _log.warning("%d of the %d cells that the model found are deleted by the correction", deleted, len(stored))
    n_positive = int(found.positive.sum())
    edits = Edits(len(added), deleted, int(changed.sum()), n_positive, len(found) - n_positive)
    return corrected.select(~is_other).sorted(), corrected.select(is_other).sorted(), edits


def _same(stored: Cells, marked: MarkedCells) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the indices of the pairs that are the same cell, ascending in the first."""
    none = np.empty(0, np.int64)
    if not len(stored) or not len(marked):
        return none, none
    from scipy.spatial import KDTree  # takes a while to import

    a, b = np.column_stack([stored.x_um, stored.y_um]), np.column_stack([marked.x_um, marked.y_um])
    far, nearest_marked = KDTree(b).query(a, distance_upper_bound=MATCH_UM)
    _, nearest_stored = KDTree(a).query(b)
    near = np.flatnonzero(np.isfinite(far))
    mutual = near[nearest_stored[nearest_marked[near]] == near]
    return mutual, nearest_marked[mutual]


def _added(marked: MarkedCells, new: npt.NDArray[np.bool_], rois: Sequence[Roi]) -> tuple[Cells, npt.NDArray[np.int64]]:
    """Return the new cells inside the regions, and their classes."""
    x_um, y_um, kinds = marked.x_um[new], marked.y_um[new], marked.kind[new]
    unknown = np.full(len(x_um), np.nan)
    edit = np.full(len(x_um), Edit.ADDED, np.int64)
    nowhere = np.full(len(x_um), NO_ROI, np.int64)
    parts = []
    for kind in CellClass:
        cells = Cells(
            x_um, y_um, unknown, unknown, unknown, nowhere, np.full(len(x_um), kind == CellClass.POSITIVE), edit=edit
        )
        parts.append(cells.select(kinds == kind).in_rois(rois))
    if outside := len(x_um) - sum(map(len, parts)):
        _log.warning("%d new cells lie outside the regions and do not count", outside)
    negative, positive, other = parts
    together = negative.with_others(positive, sort=False).with_others(other, sort=False)
    return together, np.repeat(list(CellClass), list(map(len, parts)))
