"""Choice of the rules for finding cells by annotated pictures, from mosaics alone: no network runs.

The loss of rules is ``1 - F1 + 0.02 × index error`` in points, over all pictures. Where the truth is known to lack
nuclei, ``0.5 × (1 - recall)`` stands for ``1 - F1``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.cells.rules import CenterRules
from wsiscore.cells.table import Cells
from wsiscore.errors import MosaicError
from wsiscore.evaluation.detection.matching import match
from wsiscore.evaluation.detection.truth import Kind, TrueCells
from wsiscore.mosaic import Mosaic
from wsiscore.regions import PointIndex

__all__ = ["Counts", "Picture", "Summary", "best_rules", "count_cells", "summarise"]

_INDEX_WEIGHT = 0.02  # of a point of index error in the loss
_INCOMPLETE_WEIGHT = 0.5  # of missed cells where the truth lacks nuclei
_TIE = 0.002  # losses that differ less are equal
_NO_CELL = 50.0  # index error in points where no cell is found
CUTOFF = 20.0
"""Percent at and above which an index is high."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A scored picture with its truth.

    Parameters
    ----------
    name
        Its stem.
    mosaic
        Its maps, finished.
    truth
        Its annotated cells.
    outlines
        Geometries in µm inside which cells are compared; empty: everywhere.
    complete
        Whether the truth has every nucleus.
    """

    name: str
    mosaic: Mosaic
    truth: TrueCells
    outlines: tuple[shapely.Geometry, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Counts:
    """What some rules find on one picture: matched and unmatched cells, and the index in percent, true and found."""

    tp: int
    fp: int
    fn: int
    true_index: float
    found_index: float
    complete: bool = True

    @property
    def index_error(self) -> float:
        """Absolute error of the index in points; nan where the truth has no index."""
        if math.isnan(self.true_index):
            return math.nan
        return _NO_CELL if math.isnan(self.found_index) else abs(self.found_index - self.true_index)


@dataclass(frozen=True, slots=True)
class Summary:
    """Measures over pictures: detection from the sums, mean index error in points, agreement on low and high."""

    f1: float
    precision: float
    recall: float
    index_error: float
    agreement: float
    loss: float


def count_cells(
    picture: Picture,
    rules: CenterRules,
    *,
    thresholds: Sequence[float],
    positive_ods: Sequence[float | None],
    radius_um: float,
    sures: Sequence[float] = (),
) -> dict[CenterRules, Counts]:
    """Count what rules find that differ from `rules` in threshold and class; the mosaic is read once.

    Parameters
    ----------
    picture
        With its mosaic.
    rules
        Of which radius, smoothing and the rest are kept.
    thresholds, positive_ods
        To try, all with all.
    radius_um
        Greatest distance of matched cells.
    sures
        Values of `CenterRules.sure` to try with each limit; by default that of `rules`.

    Raises
    ------
    MosaicError
        If tiles of the mosaic are missing.
    """
    if missing := picture.mosaic.missing():
        raise MosaicError(f"{picture.mosaic.path} lacks {missing} tiles; score {picture.name} again to finish it")
    lowest = replace(rules, threshold=min(thresholds), positive_od=0.0)
    cells, _ = lowest.find(picture.mosaic)
    cells = cells.in_rois(picture.mosaic.tiles.rois)
    truth = picture.truth
    if picture.outlines:
        cells = cells.select(_within(picture, cells.x_um, cells.y_um))
        truth = truth.select(_within(picture, truth.xy_um[:, 0], truth.xy_um[:, 1]))
    found: dict[CenterRules, Counts] = {}
    for threshold in thresholds:
        kept = cells.select(cells.confidence > threshold)
        tp, fp, fn, used = _matched(kept, truth, radius_um)
        for limit, sure in product(positive_ods, sures or (rules.sure,)):
            tried = replace(rules, threshold=threshold, positive_od=limit, sure=sure)
            positive = tried.are_positive(kept.positivity, kept.dab_od)
            index = 100 * float(positive[used].mean()) if used.any() else math.nan
            found[tried] = Counts(tp, fp, fn, _true_index(truth), index, picture.complete)
    return found


def _within(picture: Picture, x_um: npt.NDArray[np.float64], y_um: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    points = PointIndex(x_um, y_um)
    within = np.zeros(len(x_um), np.bool_)
    for outline in picture.outlines:
        within[points.inside(outline)] = True
    return within


def _matched(cells: Cells, truth: TrueCells, radius_um: float) -> tuple[int, int, int, npt.NDArray[np.bool_]]:
    """Return tp, fp, fn, and which cells are not matched with excluded ones."""
    xy_um = np.column_stack([cells.x_um, cells.y_um])
    first, _ = match(xy_um, truth.xy_um[truth.counted], radius_um)
    rest = np.delete(np.arange(len(cells)), first)
    on_excluded, _ = match(xy_um[rest], truth.xy_um[~truth.counted], radius_um)
    used = np.ones(len(cells), np.bool_)
    used[rest[on_excluded]] = False
    return len(first), len(rest) - len(on_excluded), int(truth.counted.sum()) - len(first), used


def _true_index(truth: TrueCells) -> float:
    kinds = truth.kind[truth.counted]
    return 100 * float((kinds == Kind.POSITIVE).mean()) if len(kinds) and truth.has_classes else math.nan


def summarise(counts: Sequence[Counts]) -> Summary:
    """Return the measures over pictures; of pictures with incomplete truth only the recall and the index count."""
    tp, fp, fn = (sum(own) for own in zip(*((at.tp, at.fp, at.fn) for at in counts), strict=True))
    f1, precision, recall = 2 * tp / max(2 * tp + fp + fn, 1), tp / max(tp + fp, 1), tp / max(tp + fn, 1)
    errors = [at.index_error for at in counts if not math.isnan(at.true_index)]
    error = sum(errors) / len(errors) if errors else math.nan
    agree = [(at.found_index >= CUTOFF) == (at.true_index >= CUTOFF) for at in counts if not math.isnan(at.true_index)]
    whole = [at for at in counts if at.complete]
    missed = _INCOMPLETE_WEIGHT * (1 - recall)
    if whole:
        hits, rest = 2 * sum(at.tp for at in whole), sum(at.fp + at.fn for at in whole)
        missed = 1 - hits / max(hits + rest, 1)
    loss = missed + _INDEX_WEIGHT * (error if errors else 0.0)
    return Summary(f1, precision, recall, error, sum(agree) / len(agree) if agree else math.nan, loss)


def best_rules(tables: Sequence[Mapping[CenterRules, Sequence[Counts]]], own: CenterRules) -> CenterRules:
    """Return the rules with the lowest loss, the mean over the sets of pictures; of equal ones the nearest to `own`.

    Parameters
    ----------
    tables
        For each set the counts of its pictures by rules; all of the same rules.
    own
        Rules of the model.
    """
    losses = {rules: sum(summarise(table[rules]).loss for table in tables) / len(tables) for rules in tables[0]}
    least = min(losses.values())
    equal = [rules for rules, loss in losses.items() if loss <= least + _TIE]
    return min(equal, key=lambda rules: (_distance(rules, own), losses[rules]))


def _distance(rules: CenterRules, own: CenterRules) -> float:
    limits = (rules.positive_od, own.positive_od)
    apart = 0.0 if limits[0] == limits[1] else 1.0 if None in limits else 2 * abs((limits[0] or 0) - (limits[1] or 0))
    shape = abs(rules.radius_um - own.radius_um) / 10 + abs(rules.smooth_um - own.smooth_um) / 10
    return abs(rules.threshold - own.threshold) + apart + abs(rules.sure - own.sure) + shape
