"""True cells as columns, and what may be said of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import numpy as np
import numpy.typing as npt

__all__ = ["Kind", "TrueCells"]


class Kind(IntEnum):
    """What an annotation says of a cell."""

    NEGATIVE = 0
    POSITIVE = 1
    EXCLUDED = 2  # there is a cell, but not one the index is of: a lymphocyte, stroma
    UNKNOWN = 3  # a cell to count, of unknown class: it measures detection only


@dataclass(frozen=True, slots=True)
class TrueCells:
    """Annotated cells as columns of one length.

    Parameters
    ----------
    xy_um
        (N, 2): x and y of the centre, in micrometres from the image's top left.
    kind
        (N,): a `Kind` each.
    """

    xy_um: npt.NDArray[np.float64]
    kind: npt.NDArray[np.int8]

    def __post_init__(self) -> None:
        if self.xy_um.shape != (len(self.kind), 2):
            raise ValueError(f"{len(self.kind)} kinds need as many pairs x, y; got {self.xy_um.shape}")

    @classmethod
    def of(cls, xy_um: npt.ArrayLike, kinds: Sequence[int] | npt.NDArray[np.integer]) -> Self:
        """Return cells from anything that makes columns; none at all will do."""
        return cls(np.asarray(xy_um, np.float64).reshape(-1, 2), np.asarray(kinds, np.int8))

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Whether each cell counts."""
        return np.not_equal(self.kind, Kind.EXCLUDED)

    @property
    def has_classes(self) -> bool:
        """Whether all cells that count are known to be positive or negative."""
        return not bool((self.kind == Kind.UNKNOWN).any())
