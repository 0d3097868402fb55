"""Agreement of two measurements of the same cases: calls at a cutoff, differences, correlation, ROC."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Confusion", "Differences", "auc", "confusion", "differences", "icc", "roc"]

Values = npt.NDArray[np.float64]

_TOLERANCE = 1e-9  # percentage points: an index this near the end of an interval is inside


@dataclass(frozen=True, slots=True)
class Confusion:
    """Confusion matrix of calls and labels, "high" being positive. Source: Molnar et al., IHCScoreGAN, eq. 9.

    The paper's text swaps the names of FP and FN ("incorrectly-classified positive cases as False Negative"). Here a
    false positive is, as usual, called high and labelled low.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def precision(self) -> float:
        """Fraction of the high calls that are right, in [0, 1]; nan without one."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Fraction of the cases labelled high that are called high, in [0, 1]; nan without one."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def accuracy(self) -> float:
        """Fraction of right calls, in [0, 1]; nan without cases."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]; nan if no call and no label is high."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def confusion(predicted: Values, clinical: Values, cutoff: float, within: float = 0.0) -> Confusion:
    """Count calls against labels; an index at or above the cutoff is high.

    With `within`, a case whose prediction and label both lie in [cutoff − within, cutoff + within] is correct: a true
    positive if it is labelled high, else a true negative. Source: Molnar et al., IHCScoreGAN, section 3.3.

    Parameters
    ----------
    predicted, clinical
        (N,) indices in percent, finite.
    cutoff
        Percent.
    within
        Half width of the interval, in percentage points.
    """
    label = clinical >= cutoff
    half = within + _TOLERANCE
    equivocal = (np.abs(predicted - cutoff) <= half) & (np.abs(clinical - cutoff) <= half) & (within > 0)
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
    """Return bias and limits of agreement of predicted − clinical; limits are nan with fewer than two cases."""
    each = predicted - clinical
    bias = float(each.mean()) if len(each) else math.nan
    half = 1.96 * float(each.std(ddof=1)) if len(each) > 1 else math.nan
    return Differences(bias, bias - half, bias + half)


def icc(ratings: Values) -> float:
    """Return the intraclass correlation ICC(2,1): two-way random effects, absolute agreement, a single rating.

    (MSB − MSE) / (MSB + (k − 1) MSE + k (MSJ − MSE) / n) with the mean squares between cases (MSB), between raters
    (MSJ) and of the residual (MSE). Source: P. E. Shrout and J. L. Fleiss, Psychol. Bull. 86 (1979) 420.

    Parameters
    ----------
    ratings
        (n, k): rows are cases, columns are raters.

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
        (N,): whether each case is labelled high.

    Returns
    -------
    tuple of array
        Threshold, false positive rate and true positive rate, from a threshold above all indices (inf) down to the
        least index; a case is called high at or above the threshold. Rates are nan if no case has the label.
    """
    thresholds = np.concatenate([[np.inf], np.unique(predicted)[::-1]])
    called = predicted[None, :] >= thresholds[:, None]
    n_high, n_low = int(label.sum()), int((~label).sum())
    tpr = (called & label).sum(axis=1) / n_high if n_high else np.full(len(thresholds), np.nan)
    fpr = (called & ~label).sum(axis=1) / n_low if n_low else np.full(len(thresholds), np.nan)
    return thresholds, fpr, tpr


def auc(fpr: Values, tpr: Values) -> float:
    """Return the area under a curve of `roc`.

    It is the probability that a high case has a higher index than a low one, where ties count one half.
    """
    return float(np.trapezoid(tpr, fpr))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
