"""The counting protocols of the International Ki67 Working Group, from the cells that were counted."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiscore.cells.table import Cells

__all__ = ["FIELD_CELLS", "HOT_SPOT_CELLS", "NEGLIGIBLE", "CountedField", "HotSpot", "Protocols", "protocols", "zone"]

HOT_SPOT_CELLS = 500
"""Cells of the hottest field."""
FIELD_CELLS = 100
"""Cells of each of the four fields of the global protocol."""
NEGLIGIBLE = 2.0
"""Percent; below it a local index is called negligible."""
ZONES = (5.0, 30.0)
"""Percent; up to the first and from the second on, the working group finds the index fit for clinical use."""

_MOST_CANDIDATES = 1000  # centres of fields that are tried
_PERMUTATIONS = 200
_CHANCE = 0.95  # quantile of the hottest field under permutation
_LEVELS = ("negligible", "low", "medium", "high")
_QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")  # where nothing is negligible

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CountedField:
    """A field of the cells nearest to its centre.

    Parameters
    ----------
    name
        What it is called.
    x_um, y_um, radius_um
        Centre and the distance of its farthest cell, in micrometres.
    n_positive, n
        Positive cells, and all.
    weight
        Fraction of the tissue that it stands for.
    """

    name: str
    x_um: float
    y_um: float
    radius_um: float
    n_positive: int
    n: int
    weight: float = 1.0

    @property
    def index(self) -> float:
        """Index of the field, in percent."""
        return 100.0 * self.n_positive / self.n


@dataclass(frozen=True, slots=True)
class HotSpot:
    """The hottest field of 500 cells, and what a homogeneous tumour would give.

    Parameters
    ----------
    field
        The field.
    chance
        95 % quantile of the hottest field's index where the classes are permuted over the cells, in percent.
    """

    field: CountedField
    chance: float

    @property
    def above_chance(self) -> bool:
        """Whether it is hotter than chance makes a field of a homogeneous tumour."""
        return self.field.index > self.chance


@dataclass(frozen=True, slots=True)
class Protocols:
    """The index by each protocol.

    Parameters
    ----------
    global_index
        Of all counted cells, in percent; nan without cells.
    fields
        The four fields of 100 cells; empty for fewer than 400 cells.
    hot_spot
        The hottest field of 500 cells; None for fewer cells.
    """

    global_index: float
    fields: tuple[CountedField, ...] = ()
    hot_spot: HotSpot | None = None

    @property
    def unweighted(self) -> float:
        """Mean index of the four fields, in percent; nan without them."""
        return sum(field.index for field in self.fields) / len(self.fields) if self.fields else math.nan

    @property
    def weighted(self) -> float:
        """Mean index of the four fields, weighted by the tissue each stands for, in percent; nan without them."""
        return sum(field.index * field.weight for field in self.fields) if self.fields else math.nan

    def indices(self) -> dict[str, float]:
        """Return the index by each protocol that applies; the hot spot if it is above chance."""
        found = {"global": self.global_index, "4 × 100": self.unweighted, "4 × 100 weighted": self.weighted}
        if self.hot_spot and self.hot_spot.above_chance:
            found["hot spot"] = self.hot_spot.field.index
        return {name: index for name, index in found.items() if math.isfinite(index)}

    def differ(self, cutoff: float) -> bool:
        """Return whether the protocols disagree about the side of a cutoff, in percent."""
        return len({index >= cutoff for index in self.indices().values()}) > 1


def zone(index: float) -> str:
    """Return where an index lies: up to 5 %, between, or from 30 % on; a dash if it is undefined."""
    if not math.isfinite(index):
        return "–"
    if index <= ZONES[0]:
        return f"{ZONES[0]:g} % or less"
    return f"{ZONES[1]:g} % or more" if index >= ZONES[1] else f"{ZONES[0]:g}–{ZONES[1]:g} %"


def protocols(cells: Cells) -> Protocols:
    """Return the index by each protocol. The same cells always give the same fields.

    Centres of fields are tried on a square grid of at most 1000 places where there are cells; a field holds the cells
    nearest to its centre.

    Parameters
    ----------
    cells
        The counted cells.

    References
    ----------
    S. C. Y. Leung et al., npj Breast Cancer 2 (2016) 16014. T. O. Nielsen et al., J. Natl. Cancer Inst. 113 (2021) 808.
    """
    n = len(cells)
    if not n:
        return Protocols(math.nan)
    overall = 100.0 * int(np.count_nonzero(cells.positive)) / n
    if n < len(_LEVELS) * FIELD_CELLS:
        return Protocols(overall)
    nearest = _Nearest(cells)
    hot = _hot_spot(cells, nearest) if n >= HOT_SPOT_CELLS else None
    return Protocols(overall, _four_fields(nearest), hot)


class _Nearest:
    """The candidate centres and the cells nearest to each."""

    def __init__(self, cells: Cells) -> None:
        from scipy.spatial import KDTree

        places = np.stack([cells.x_um, cells.y_um], axis=1)
        self.tree = KDTree(places)
        self.centres = _candidates(places)
        self.positive = cells.positive

    def fields(self, n: int) -> tuple[npt.NDArray[np.float64], Ints]:
        """Return the radius of the field of n cells at each centre, and the cells' numbers."""
        distance, number = self.tree.query(self.centres, k=n)
        return distance[:, -1], number

    def field(self, name: str, at: int, radius: float, number: Ints, weight: float = 1.0) -> CountedField:
        """Return the field at a centre."""
        x, y = self.centres[at].tolist()
        return CountedField(name, x, y, float(radius), int(self.positive[number].sum()), len(number), weight)


def _candidates(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the centres of the squares that hold cells, of the finest grid that has at most 1000 of them."""
    from_origin = places - (origin := places.min(axis=0))
    side = 50.0
    while True:
        columns = int(from_origin[:, 0].max() // side) + 1
        squares = np.unique((from_origin[:, 1] // side).astype(np.int64) * columns + from_origin[:, 0] // side)
        if len(squares) <= _MOST_CANDIDATES:
            row, column = np.divmod(squares, columns)
            return np.asarray(origin + (np.stack([column, row], axis=1) + 0.5) * side, np.float64)
        side *= max(1.05, math.sqrt(len(squares) / _MOST_CANDIDATES))


def _four_fields(nearest: _Nearest) -> tuple[CountedField, ...]:
    """Return a field of each level of the local index: with the median index, apart from the others if possible."""
    radius, number = nearest.fields(FIELD_CELLS)
    index = 100 * nearest.positive[number].mean(axis=1)
    order = np.argsort(index, kind="stable")
    n_negligible = int(np.count_nonzero(index < NEGLIGIBLE))
    rest = np.array_split(order[n_negligible:], 3)
    if not n_negligible or any(len(part) == 0 for part in rest):
        names, levels = _QUARTERS, np.array_split(order, len(_LEVELS))
    else:
        names, levels = _LEVELS, [order[:n_negligible], *rest]
    chosen: list[CountedField] = []
    for name, level in zip(names, levels, strict=True):
        members = level if len(level) else order
        ranked = members[np.argsort(np.abs(index[members] - np.median(index[members])), kind="stable")]
        apart = (at for at in ranked.tolist() if _is_apart(nearest.centres[at], radius[at], chosen))
        at = next(apart, int(ranked[0]))
        chosen.append(nearest.field(name, at, radius[at], number[at], len(level) / len(order)))
    return tuple(chosen)


def _is_apart(centre: npt.NDArray[np.float64], radius: float, others: list[CountedField]) -> bool:
    return all(math.dist(centre, (each.x_um, each.y_um)) > radius + each.radius_um for each in others)


def _hot_spot(cells: Cells, nearest: _Nearest) -> HotSpot:
    radius, number = nearest.fields(HOT_SPOT_CELLS)
    at = int(np.argmax(nearest.positive[number].sum(axis=1)))
    field = nearest.field("hot spot", at, radius[at], number[at])
    held, within = np.unique(number, return_inverse=True)
    within = within.reshape(number.shape)
    n_positive = int(np.count_nonzero(cells.positive))
    rng = np.random.default_rng(_seed(cells))
    hottest = []
    for _ in range(_PERMUTATIONS):  # of all cells, as far as the fields see them
        among = rng.hypergeometric(n_positive, len(cells) - n_positive, len(held))
        labels = rng.permutation(np.arange(len(held)) < among).astype(np.uint8)
        hottest.append(int(labels[within].sum(axis=1, dtype=np.int64).max()))
    return HotSpot(field, 100.0 * float(np.quantile(hottest, _CHANCE, method="higher")) / HOT_SPOT_CELLS)


def _seed(cells: Cells) -> int:
    digest = hashlib.sha256()
    for column in (cells.x_um, cells.y_um, cells.positivity):
        digest.update(np.ascontiguousarray(column).tobytes())
    return int.from_bytes(digest.digest()[:8], "little")
