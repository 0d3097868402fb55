"""The table of counted cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from wsiscore.regions import PointIndex, Roi

__all__ = ["NO_ROI", "Cells", "Edit"]

NO_ROI = -1
"""The `roi` of a cell outside all regions."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_UNSET: Any = None  # stands for a column that follows from the others


class Edit(IntEnum):
    """What somebody changed of a cell."""

    NONE = 0
    ADDED = 1
    CLASS_CHANGED = 2


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
        Fraction of the positive map in positive and negative together; of whole cells that of the positive pixels in
        all classified ones; in [0, 1].
    dab_od
        Mean optical density of DAB within 1.5 µm of the centre, less that of the ground between nuclei; of whole cells
        the mean over the cell.
    roi
        Index of the first ROI that holds it.
    stained
        Whether each is positive, as its rules say; by default where its positivity is at least one half.
    other
        Map of nuclei other than the tumour's at the centre, in [0, 1]; nan where the model has none, as by default.
    edit
        Values of `Edit`; by default none is edited. An added cell has nan for its measurements.
    """

    x_um: Floats
    y_um: Floats
    confidence: Floats
    positivity: Floats
    dab_od: Floats
    roi: Ints
    stained: Bools = _UNSET
    other: Floats = _UNSET
    edit: Ints = _UNSET

    def __post_init__(self) -> None:
        if self.stained is _UNSET:
            object.__setattr__(self, "stained", self.positivity >= 0.5)
        if self.other is _UNSET:
            object.__setattr__(self, "other", np.full(len(self.x_um), np.nan))
        if self.edit is _UNSET:
            object.__setattr__(self, "edit", np.full(len(self.x_um), Edit.NONE, np.int64))
        if len({len(getattr(self, column.name)) for column in fields(self)}) != 1:
            raise ValueError("the columns of cells differ in length")

    def __len__(self) -> int:
        return len(self.x_um)

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """Whether each cell is positive."""
        return self.stained

    def select(self, which: npt.NDArray[np.generic] | slice) -> Self:
        """Return some of the cells.

        Parameters
        ----------
        which
            Indices, a slice, or (N,) booleans that are true for those to keep.
        """
        return type(self)(*(getattr(self, column.name)[which] for column in fields(self)))

    def sorted(self) -> Self:
        """Return the cells ordered by y, then x."""
        return self.select(np.lexsort((self.x_um, self.y_um)))

    def marked(self, stained: Bools, edit: Ints) -> Self:
        """Return the cells with other classes, and what was edited of each."""
        return replace(self, stained=stained, edit=edit)

    def with_others(self, others: Self, *, sort: bool = True) -> Self:
        """Return these cells and others together, ordered by y, then x, or these first."""
        both = type(self)(
            *(np.concatenate([getattr(self, each.name), getattr(others, each.name)]) for each in fields(self))
        )
        return both.sorted() if sort else both

    def in_rois(self, rois: Sequence[Roi]) -> Self:
        """Return the cells inside a region, each with the index of the first region that contains it.

        Parameters
        ----------
        rois
            Outlines in micrometres.
        """
        first = np.full(len(self), NO_ROI, np.int64)
        points = PointIndex(self.x_um, self.y_um)
        for index in reversed(range(len(rois))):
            first[points.inside(rois[index].outline_um)] = index
        return replace(self, roi=first).select(first != NO_ROI)
