"""How well two measurements of the same cases agree: calls at a cutoff, differences, correlation, ROC."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Confusion", "Differences", "auc", "confusion", "differences", "icc", "roc"]

Values = npt.NDArray[np.float64]

_HALVES = 1e-9  # percentage points: an index this near the edge of an interval is on it


@dataclass(frozen=True, slots=True)
class Confusion:
    """Calls against labels; "high" is the positive of the two. Source: Molnar et al., IHCScoreGAN, eq. 9.

    The paper's text swaps the names of FP and FN ("incorrectly-classified positive cases as False Negative"); what it
    means is the usual: a false positive is called high and labelled low.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def precision(self) -> float:
        """Share of the high calls that are right, in [0, 1]; nan without one."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the cases labelled high that are called so, in [0, 1]; nan without one."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def accuracy(self) -> float:
        """Share of right calls, in [0, 1]; nan without cases."""
        return _share(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]; nan if nothing is high."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def confusion(predicted: Values, clinical: Values, cutoff: float, within: float = 0.0) -> Confusion:
    """Count calls against labels; at or above the cutoff is high.

    With `within` a case both predicted and labelled in [cutoff − within, cutoff + within] counts as correct: as a
    true positive if it is labelled high, else as a true negative. Source: Molnar et al., IHCScoreGAN, section 3.3.

    Parameters
    ----------
    predicted, clinical
        (N,) indices in percent, finite.
    cutoff
        Percent.
    within
        Half the interval, in percentage points.
    """
    label = clinical >= cutoff
    reach = within + _HALVES
    equivocal = (np.abs(predicted - cutoff) <= reach) & (np.abs(clinical - cutoff) <= reach) & (within > 0)
    call = np.where(equivocal, label, predicted >= cutoff)
    return Confusion(
        tp=int((call & label).sum()),
        fp=int((call & ~label).sum()),
        fn=int((~call & label).sum()),
        tn=int((~call & ~label).sum()),
    )


@dataclass(frozen=True, slots=True)
class Differences:
    """Bias and 95 % limits of agreement, in percentage points.

    Source: J. M. Bland and D. G. Altman, Lancet 327 (1986) 307: the mean difference, and that ∓ 1.96 standard
    deviations (of n − 1) of the differences.
    """

    bias: float
    low: float
    high: float


def differences(predicted: Values, clinical: Values) -> Differences:
    """Return how predicted indices differ from clinical ones; limits are nan with fewer than two cases."""
    each = predicted - clinical
    bias = float(each.mean()) if len(each) else math.nan
    half = 1.96 * float(each.std(ddof=1)) if len(each) > 1 else math.nan
    return Differences(bias, bias - half, bias + half)


def icc(ratings: Values) -> float:
    """Return the intraclass correlation ICC(2,1): two-way random effects, absolute agreement, a single rating.

    (MSB − MSE) / (MSB + (k − 1) MSE + k (MSJ − MSE) / n) with the mean squares between cases (MSB), between raters
    (MSJ) and of what remains (MSE). Source: P. E. Shrout and J. L. Fleiss, Psychol. Bull. 86 (1979) 420.

    Parameters
    ----------
    ratings
        (n, k): a row a case, a column a rater.

    Returns
    -------
    float
        At most 1; nan with fewer than two cases or raters, or where all ratings are equal.
    """
    n, k = ratings.shape
    if n < 2 or k < 2 or bool((ratings == ratings.flat[0]).all()):
        return math.nan
    mean = ratings.mean()
    cases, raters = ratings.mean(axis=1, keepdims=True), ratings.mean(axis=0, keepdims=True)
    between = k * float(((cases - mean) ** 2).sum()) / (n - 1)
    of_raters = n * float(((raters - mean) ** 2).sum()) / (k - 1)
    rest = float(((ratings - cases - raters + mean) ** 2).sum()) / ((n - 1) * (k - 1))
    whole = between + (k - 1) * rest + k * (of_raters - rest) / n
    return (between - rest) / whole if whole else math.nan


def roc(predicted: Values, label: npt.NDArray[np.bool_]) -> tuple[Values, Values, Values]:
    """Return the receiver operating characteristic of an index.

    Parameters
    ----------
    predicted
        (N,) indices.
    label
        (N,): which cases are labelled high.

    Returns
    -------
    tuple of array
        Threshold, false positive rate and true positive rate, from a threshold above all indices (inf) down to the
        least index; a case is called high at or above the threshold. Rates are nan where no case has that label.
    """
    thresholds = np.concatenate([[np.inf], np.unique(predicted)[::-1]])
    called = predicted[None, :] >= thresholds[:, None]
    n_high, n_low = int(label.sum()), int((~label).sum())
    tpr = (called & label).sum(axis=1) / n_high if n_high else np.full(len(thresholds), np.nan)
    fpr = (called & ~label).sum(axis=1) / n_low if n_low else np.full(len(thresholds), np.nan)
    return thresholds, fpr, tpr


def auc(fpr: Values, tpr: Values) -> float:
    """Return the area under a curve of `roc`: the chance that a high case has the higher index, ties counted half."""
    return float(np.trapezoid(tpr, fpr))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
