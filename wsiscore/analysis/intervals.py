"""Intervals of an index: of counting, of sampling, and of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "COUNTING",
    "MIN_BLOCKS",
    "ModelError",
    "Sampling",
    "conformal",
    "p_at_or_above",
    "score_interval",
    "t_quantile",
]

MIN_BLOCKS = 9
"""Fewest blocks for an interval of sampling."""

_LEVELS = ((0.95, 19), (0.90, 9))  # of a conformal half-width, and the fewest images for it: n >= level / (1 - level)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much an index varies between blocks of tissue, beyond what counting explains.

    Parameters
    ----------
    block_um
        Side of a block in micrometres; nan for counting alone.
    blocks
        Number of blocks with cells; 0 for counting alone, which has no Student t.
    design_effect
        Variance of the index between blocks over its variance if cells were independent, 1 or more.
    lower_bound
        The index varies over distances too long for the area, so that the design effect may be too small.
    """

    block_um: float
    blocks: int
    design_effect: float
    lower_bound: bool = False

    @property
    def freedom(self) -> float:
        """Degrees of freedom of Student's t: one fewer than blocks; infinite for counting alone."""
        return self.blocks - 1 if self.blocks else math.inf


COUNTING = Sampling(math.nan, 0, 1.0)
"""Independent cells: the uncertainty of counting and no other."""


@dataclass(frozen=True, slots=True)
class ModelError:
    """How far off the index of a model may be on a new image.

    Parameters
    ----------
    half_width
        In points of the index.
    level
        Probability with which the error on a new image is at most that.
    images
        Number of images it was found from.
    """

    half_width: float
    level: float
    images: int


def score_interval(n_positive: int, n: int, sampling: Sampling = COUNTING) -> tuple[float, float]:
    """Return the 95 % interval of an index in percent; (nan, nan) without cells.

    It is Wilson's score interval with ``n / design_effect`` cells and Student's t for the normal quantile: of counting
    alone it is Wilson's own.

    Parameters
    ----------
    n_positive, n
        Positive cells, and all.
    sampling
        The design effect and the number of blocks.

    References
    ----------
    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209. L. Kish, Survey Sampling, Wiley 1965, section 8.2.
    """
    if not n:
        return math.nan, math.nan
    z, effective = t_quantile(0.975, sampling.freedom), n / sampling.design_effect
    p = n_positive / n
    shrink = 1 + z**2 / effective
    middle = (p + z**2 / (2 * effective)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / effective + z**2 / (4 * effective**2))
    low, high = 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)
    return min(low, 100.0 * n_positive / n), max(high, 100.0 * n_positive / n)  # rounding may cross it at 0 and 100 %


def p_at_or_above(cutoff: float, n_positive: int, n: int, sampling: Sampling = COUNTING) -> float:
    """Return the probability that the index of the tissue is at or above a cutoff; nan without cells.

    The logit of the index is taken as distributed by Student's t, with the standard error of the design effect. An
    index of 0 or 100 % has no logit; there the standard error is that of an index at the cutoff.

    Parameters
    ----------
    cutoff
        Percent, between 0 and 100.
    n_positive, n, sampling
        As in `score_interval`.
    """
    if not n:
        return math.nan
    p, c = n_positive / n, cutoff / 100
    if 0 < n_positive < n:
        distance = math.log(p / (1 - p)) - math.log(c / (1 - c))
        return _probability(distance * math.sqrt(p * (1 - p) * n / sampling.design_effect), sampling.freedom)
    return _probability((p - c) / math.sqrt(c * (1 - c) * sampling.design_effect / n), sampling.freedom)


def conformal(errors: Sequence[float]) -> ModelError | None:
    """Return the split-conformal half-width of a model's errors; None for fewer than 9 images.

    The ⌈(n + 1) × level⌉-th smallest of n absolute errors, at the level 95 % from 19 images on, at 90 % from 9 on. It
    holds for images that are like those the errors were measured on.

    Parameters
    ----------
    errors
        Absolute error of the index on each image, in points, of images that the model was not chosen on.

    References
    ----------
    J. Lei et al., J. Am. Stat. Assoc. 113 (2018) 1094, section 2.2.
    """
    ordered = sorted(abs(error) for error in errors)
    for level, fewest in _LEVELS:
        if len(ordered) >= fewest:
            rank = math.ceil(round((len(ordered) + 1) * level, 9))
            return ModelError(ordered[rank - 1], level, len(ordered))
    return None


def t_quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t; of the normal distribution for infinite degrees of freedom."""
    from scipy import special  # here, since no help text needs it

    return float(special.ndtri(probability) if math.isinf(freedom) else special.stdtrit(freedom, probability))


def _probability(t: float, freedom: float) -> float:
    from scipy import special

    return float(special.ndtr(t) if math.isinf(freedom) else special.stdtr(freedom, t))
