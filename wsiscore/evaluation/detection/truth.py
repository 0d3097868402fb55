"""Annotated cells and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from wsiscore.errors import TruthError

__all__ = ["Kind", "TrueCells", "required_mpp"]


class Kind(IntEnum):
    """Class of an annotated cell."""

    NEGATIVE = 0
    POSITIVE = 1
    EXCLUDED = 2  # not counted for the index: a lymphocyte, a stromal cell
    UNKNOWN = 3  # counted, of unknown class: used for detection only


@dataclass(frozen=True, slots=True)
class TrueCells:
    """Annotated cells as columns of one length.

    Parameters
    ----------
    xy_um
        (N, 2): x and y of the centre, in micrometres from the image's top left.
    kind
        (N,): a `Kind` for each cell.
    """

    xy_um: npt.NDArray[np.float64]
    kind: npt.NDArray[np.int8]

    def __post_init__(self) -> None:
        if self.xy_um.shape != (len(self.kind), 2):
            raise ValueError(f"{len(self.kind)} kinds need as many pairs x, y; got {self.xy_um.shape}")

    @classmethod
    def of(cls, xy_um: npt.ArrayLike, kinds: Sequence[int] | npt.NDArray[np.integer]) -> Self:
        """Return cells from sequences, which may be empty."""
        return cls(np.asarray(xy_um, np.float64).reshape(-1, 2), np.asarray(kinds, np.int8))

    def select(self, which: npt.NDArray[np.bool_]) -> Self:
        """Return the cells where the mask is true."""
        return type(self)(self.xy_um[which], self.kind[which])

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Whether each cell is counted, that is, not excluded."""
        return np.not_equal(self.kind, Kind.EXCLUDED)

    @property
    def has_classes(self) -> bool:
        """Whether the class of all counted cells is known."""
        return not bool((self.kind == Kind.UNKNOWN).any())


def required_mpp(mpp: float | None, path: Path) -> float:
    """Return the micrometres per pixel of an annotation file in pixels.

    Raises
    ------
    TruthError
        If it is None.
    """
    if mpp is None:
        raise TruthError(f"{path} has coordinates in pixels; give the micrometres per pixel with --mpp")
    return mpp
