"""Measures of predicted against annotated cells: detection, classes, counts and index, by image and in total."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wsiscore.evaluation.detection.calibration import Calibration
from wsiscore.evaluation.detection.files import FoundCells
from wsiscore.evaluation.detection.matching import match
from wsiscore.evaluation.detection.truth import Kind, TrueCells
from wsiscore.score import Tally

__all__ = ["CELL_HEADER", "CellMeasures", "Detection", "cell_rows", "compare_cells", "summarise_cells"]

_DETECTION = ("precision", "recall", "f1")
CELL_HEADER = (
    "slide",
    *("tp", "fp", "fn", *_DETECTION),
    *(f"positive_{name}" for name in _DETECTION),
    *(f"negative_{name}" for name in _DETECTION),
    "class_accuracy",
    *("positive_error", "negative_error", "mean_error"),
    *("true_index", "found_index", "index_error"),
    *("excluded", "ignored"),
    "ece",
)
"""Columns of the table, in order."""


@dataclass(frozen=True, slots=True)
class Detection:
    """Counts of matched and unmatched cells; those of different images add up."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Detection) -> Detection:
        return Detection(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        """Fraction of the predicted cells that are true, in [0, 1]; nan if none is predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Fraction of the true cells that are found, in [0, 1]; nan if there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]; nan without any cell."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True, slots=True)
class CellMeasures:
    """Comparison of the cells of one image.

    Parameters
    ----------
    slide
        Name of the image.
    detection
        Of all cells, regardless of class.
    by_class
        Of positive and of negative cells, matched within the class; None where the truth has no classes.
    n_same_class
        Cells matched regardless of class whose class is right.
    true, found
        Counted cells; `true` is None where the truth has no classes.
    n_excluded
        True cells that are not counted.
    n_ignored
        Predicted cells matched with excluded ones; they are not counted either.
    calibration
        Of the positivity of the matched cells whose true class is known.
    """

    slide: str
    detection: Detection
    by_class: tuple[Detection, Detection] | None
    n_same_class: int
    true: Tally | None
    found: Tally
    n_excluded: int
    n_ignored: int
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def count_errors(self) -> tuple[float, float]:
        """Absolute errors of the counts of positive and of negative cells; nan where the truth has no classes."""
        if self.true is None:
            return math.nan, math.nan
        return (
            float(abs(self.true.n_positive - self.found.n_positive)),
            float(abs(self.true.n_negative - self.found.n_negative)),
        )

    @property
    def index_error(self) -> float:
        """Absolute error of the index in percentage points; nan without true or without predicted cells."""
        return abs(self.true.ki67_index - self.found.ki67_index) if self.true else math.nan


def compare_cells(slide: str, found: FoundCells, truth: TrueCells, radius_um: float) -> CellMeasures:
    """Compare the cells predicted on an image with its truth.

    Cells are matched one to one within the radius, first with the counted ones. An unmatched predicted cell that
    matches an excluded one is ignored: it is neither a false positive nor counted. So excluded cells never make a
    result worse.

    Parameters
    ----------
    slide
        Name of the image.
    found, truth
        In micrometres from the same origin.
    radius_um
        Greatest distance of a pair.
    """
    everything = np.ones(len(found), np.bool_)
    detection, (predicted, true), ignored = _detect(found, truth, everything, truth.counted, radius_um)
    same = np.equal(truth.kind[true], found.positive[predicted])
    by_class, tally = None, None
    if truth.has_classes:
        by_class = (
            _detect(found, truth, found.positive, np.equal(truth.kind, Kind.POSITIVE), radius_um)[0],
            _detect(found, truth, ~found.positive, np.equal(truth.kind, Kind.NEGATIVE), radius_um)[0],
        )
        tally = Tally(int((truth.kind == Kind.POSITIVE).sum()), int((truth.kind == Kind.NEGATIVE).sum()))
    positive = found.positive[~ignored]
    return CellMeasures(
        slide,
        detection,
        by_class,
        n_same_class=int(same.sum()),
        true=tally,
        found=Tally(int(positive.sum()), int((~positive).sum())),
        n_excluded=int((~truth.counted).sum()),
        n_ignored=int(ignored.sum()),
        calibration=_calibration(found, truth, predicted, true),
    )


def _calibration(
    found: FoundCells, truth: TrueCells, predicted: npt.NDArray[np.int64], true: npt.NDArray[np.int64]
) -> Calibration:
    """Return the calibration over pairs of indices; empty where the cells have no positivity."""
    if found.positivity is None:
        return Calibration()
    known = np.not_equal(truth.kind[true], Kind.UNKNOWN)
    return Calibration.of(found.positivity[predicted[known]], np.equal(truth.kind[true[known]], Kind.POSITIVE))


def _detect(
    found: FoundCells,
    truth: TrueCells,
    predicted: npt.NDArray[np.bool_],
    counted: npt.NDArray[np.bool_],
    radius_um: float,
) -> tuple[Detection, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.bool_]]:
    """Return the detection of a subset of the cells, the pairs, and which predicted cells are ignored."""
    of_predicted, of_counted = np.flatnonzero(predicted), np.flatnonzero(counted)
    first, second = match(found.xy_um[of_predicted], truth.xy_um[of_counted], radius_um)
    rest = np.delete(of_predicted, first)
    on_excluded, _ = match(found.xy_um[rest], truth.xy_um[~truth.counted], radius_um)
    ignored = np.zeros(len(found), np.bool_)
    ignored[rest[on_excluded]] = True
    detection = Detection(len(first), len(rest) - len(on_excluded), len(of_counted) - len(first))
    return detection, (of_predicted[first], of_counted[second]), ignored


def summarise_cells(images: Sequence[CellMeasures]) -> dict[str, float]:
    """Return the measures over all images: detection and classes from the sums, counts and index as means.

    Classes, counts and index are measured on the images whose truth has classes, the index on those that also have a
    true and a predicted cell. ``MP``, ``MN`` and ``MA`` are the mean absolute errors of the count of
    positive cells, of negative cells, and their average (Molnar et al., IHCScoreGAN, eq. 10 and table 3).
    """
    total = sum((image.detection for image in images), Detection())
    classed = [image for image in images if image.by_class is not None]
    positive = sum((image.by_class[0] for image in classed if image.by_class), Detection())
    negative = sum((image.by_class[1] for image in classed if image.by_class), Detection())
    errors = [image.count_errors for image in classed]
    mp, mn = (_mean([error[which] for error in errors]) for which in (0, 1))
    indexed = [image.index_error for image in images if math.isfinite(image.index_error)]
    return {
        "images": len(images),
        "tp": total.tp,
        "fp": total.fp,
        "fn": total.fn,
        **{name: getattr(total, name) for name in _DETECTION},
        **{f"positive_{name}": getattr(positive, name) for name in _DETECTION},
        **{f"negative_{name}": getattr(negative, name) for name in _DETECTION},
        "class_accuracy": _ratio(sum(i.n_same_class for i in classed), sum(i.detection.tp for i in classed)),
        "images_with_classes": len(classed),
        "MP": mp,
        "MN": mn,
        "MA": (mp + mn) / 2,
        "index_error": _mean(indexed),
        "images_with_index": len(indexed),
        "excluded": sum(image.n_excluded for image in images),
        "ignored": sum(image.n_ignored for image in images),
        "ece": sum((image.calibration for image in images), Calibration()).error,
    }


def cell_rows(images: Sequence[CellMeasures]) -> list[list[str]]:
    """Return a row of `CELL_HEADER` for each image and one for all, called ``total``.

    Fractions have three decimals, indices and errors one; undefined values are ``nan``. In the total the errors are
    means over the images: MP, MN, MA and the mean absolute error of the index; the indices are nan.
    """
    totals = summarise_cells(images)
    rows = [_row(image.slide, summarise_cells([image]), image) for image in images]
    return [*rows, _row("total", totals, None)]


def _row(name: str, values: dict[str, float], image: CellMeasures | None) -> list[str]:
    true = image.true.ki67_index if image and image.true else math.nan
    found = image.found.ki67_index if image else math.nan
    fractions = [f"{part}{measure}" for part in ("", "positive_", "negative_") for measure in _DETECTION]
    return [
        name,
        *(f"{values[key]:.0f}" for key in ("tp", "fp", "fn")),
        *(f"{values[key]:.3f}" for key in (*fractions, "class_accuracy")),
        *(f"{values[key]:.1f}" for key in ("MP", "MN", "MA")),
        *(f"{value:.1f}" for value in (true, found, values["index_error"])),
        *(f"{values[key]:.0f}" for key in ("excluded", "ignored")),
        f"{values['ece']:.3f}",
    ]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
