"""From cells to an index: counts, an interval, and a call at the cutoff, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import shapely

from wsiscore.analysis.blocks import sampling
from wsiscore.analysis.consensus import OtherModel
from wsiscore.analysis.flags import UNSUITABLE, flag_sentence, join_flags, split_flags
from wsiscore.analysis.intervals import COUNTING, ModelError, Sampling, conformal, p_at_or_above, score_interval
from wsiscore.cells.edits import Edits
from wsiscore.cells.table import Cells
from wsiscore.errors import RoiError
from wsiscore.regions import PointIndex, Roi, scored
from wsiscore.slide.readers.base import VirtualStain

__all__ = [
    "CUTOFF",
    "MIN_CELLS",
    "UNCLEAR",
    "Call",
    "Decision",
    "Issue",
    "SlideScore",
    "Tally",
    "decide",
    "score_cells",
    "with_flags",
]

CUTOFF = 20.0
"""Percent at and above which an index is called high."""
MIN_CELLS = 500
"""Fewest cells for a call; the number the International Ki67 in Breast Cancer Working Group asks for."""

UNCLEAR = (0.05, 0.95)
"""Between these probabilities that the index is at or above the cutoff, the call is "indeterminate"."""

Call = Literal["low", "high", "indeterminate", "insufficient", "unsuitable", "no cells"]


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted, and where; tallies of disjoint areas add up.

    Parameters
    ----------
    n_positive, n_negative
        Counted cells.
    area_mm2
        Area they were looked for in, in mm².
    """

    n_positive: int = 0
    n_negative: int = 0
    area_mm2: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.n_positive + other.n_positive,
            self.n_negative + other.n_negative,
            self.area_mm2 + other.area_mm2,
        )

    @property
    def n(self) -> int:
        """All counted cells."""
        return self.n_positive + self.n_negative

    @property
    def ki67_index(self) -> float:
        """Positive cells among all, in percent; nan without cells, never 0."""
        return 100.0 * self.n_positive / self.n if self.n else math.nan

    @property
    def interval_95(self) -> tuple[float, float]:
        """Wilson score interval of the index, in percent; (nan, nan) without cells.

        It holds the uncertainty of counting this many cells and nothing else: neither the choice of the field
        nor mistakes of the detection. Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209.
        """
        return score_interval(self.n_positive, self.n)

    @property
    def cells_per_mm2(self) -> float:
        """Density of all counted cells; nan without area."""
        return self.n / self.area_mm2 if self.area_mm2 else math.nan


@dataclass(frozen=True, slots=True)
class Issue:
    """Who issued a report, and what was edited for it.

    Parameters
    ----------
    author
        Name.
    date
        ISO 8601, to the second, UTC.
    edits
        What differs from what the model found; None if the cells are the model's.
    """

    author: str
    date: str
    edits: Edits | None = None


@dataclass(frozen=True, slots=True)
class SlideScore:
    """The result of one slide.

    Parameters
    ----------
    slide
        What the slide is called.
    model
        Name of the model that found the cells.
    total
        Over the union of all ROIs; with disjoint ROIs the sum of `by_roi`.
    by_roi
        ROI name to its own tally; where ROIs overlap, a cell counts in each.
    cutoff
        Percent at and above which the index is high.
    virtual
        The model that generated the slide, if it is a virtual stain; None if it was stained.
    flags
        Words of `wsiscore.analysis.flags` that apply to it.
    sampling
        How much the index varies between blocks of tissue; None if the area is too small to know.
    model_error
        How far off the model's index may be; None if that is not known.
    excluded
        Class of annotations that are not scored to the area that they take off the regions, in mm².
    path
        The slide's file.
    sha256
        Its content.
    case
        Case that it belongs to.
    n_other
        Nuclei that were found and left out, as other than the tumour's.
    issue
        Who issued it with which edits; None if nobody did.
    others
        What further models counted in the same regions.
    """

    slide: str
    model: str
    total: Tally
    by_roi: dict[str, Tally] = field(default_factory=dict)
    cutoff: float = CUTOFF
    virtual: VirtualStain | None = None
    flags: tuple[str, ...] = ()
    sampling: Sampling | None = None
    model_error: ModelError | None = None
    excluded: dict[str, float] = field(default_factory=dict)
    path: str = ""
    sha256: str = ""
    case: str = ""
    n_other: int = 0
    issue: Issue | None = None

    @property
    def edits(self) -> Edits | None:
        """What differs from what the model found; None if the cells are the model's."""
        return self.issue.edits if self.issue else None

    others: tuple[OtherModel, ...] = ()

    @property
    def excluded_mm2(self) -> float:
        """Area that was taken off the regions, in mm²."""
        return math.fsum(self.excluded.values())

    @property
    def indices(self) -> dict[str, float]:
        """The index by each model that was compared, in percent, this one first; empty if there was no other."""
        if not self.others:
            return {}
        return {self.model: self.total.ki67_index, **{other.model: other.index for other in self.others}}

    @property
    def decision(self) -> Decision:
        """The call with its reason."""
        return decide(self.total, self.cutoff, varies=self.sampling, model_error=self.model_error, flags=self.flags)

    @property
    def call(self) -> Call:
        """Which side of the cutoff, or why none, as `decide` says."""
        return self.decision.call

    @property
    def p_at_or_above_cutoff(self) -> float:
        """Probability that the index is at or above the cutoff; of counting alone if `sampling` is None."""
        return p_at_or_above(self.cutoff, self.total.n_positive, self.total.n, self.sampling or COUNTING)

    @property
    def sampling_95(self) -> tuple[float, float]:
        """The 95 % interval of sampling, in percent; (nan, nan) if it is not known."""
        if self.sampling is None:
            return math.nan, math.nan
        return score_interval(self.total.n_positive, self.total.n, self.sampling)

    @property
    def model_interval(self) -> tuple[float, float]:
        """The index less and plus the model's half-width, within 0 and 100 %; (nan, nan) if that is not known."""
        if self.model_error is None:
            return math.nan, math.nan
        index, half = self.total.ki67_index, self.model_error.half_width
        return max(index - half, 0.0), min(index + half, 100.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """A call and the reason for it, in a sentence without a full stop."""

    call: Call
    reason: str


def decide(
    tally: Tally,
    cutoff: float = CUTOFF,
    *,
    varies: Sampling | None = None,
    model_error: ModelError | None = None,
    flags: Sequence[str] = (),
) -> Decision:
    """Return the call of an index, with its reason.

    The first that applies: "unsuitable" by a flag; "no cells"; "insufficient" under `MIN_CELLS` cells;
    "indeterminate" if the probability that the index is at or above the cutoff lies within `UNCLEAR`, or if the
    model's half-width spans the cutoff; else "high" at and above the cutoff, or "low".

    Parameters
    ----------
    tally
        The counted cells.
    cutoff
        Percent.
    varies
        The variation between blocks, from which the probability is computed; from counting alone if None.
    model_error
        The half-width of the model's error; None if it is not known, and then it does not enter.
    flags
        Words of `wsiscore.analysis.flags`.
    """
    if unsuitable := [word for word in flags if word in UNSUITABLE]:
        return Decision("unsuitable", flag_sentence(unsuitable[0]).rstrip("."))
    if not tally.n:
        return Decision("no cells", "no cells were found in the regions")
    if tally.n < MIN_CELLS:
        return Decision("insufficient", f"{tally.n} cells were counted, and a call needs {MIN_CELLS}")
    index = tally.ki67_index
    side: Literal["low", "high"] = "high" if index >= cutoff else "low"
    p = p_at_or_above(cutoff, tally.n_positive, tally.n, varies or COUNTING)
    by = "sampling" if varies else "counting alone"
    said = f"by {by} it is at or above {cutoff:g} % with a probability of {_probability_words(p)}"
    if UNCLEAR[0] < p < UNCLEAR[1]:
        return Decision("indeterminate", said)
    if model_error and index - model_error.half_width < cutoff <= index + model_error.half_width:
        return Decision(
            "indeterminate", f"the error of the model, up to {model_error.half_width:.1f} points, spans the cutoff"
        )
    return Decision(side, said)


def _probability_words(p: float) -> str:
    if p < 0.001:
        return "less than 0.001"
    return "more than 0.999" if p > 0.999 else f"{p:.3f}" if p < 0.01 or p > 0.99 else f"{p:.2f}"


def score_cells(
    cells: Cells,
    rois: Sequence[Roi],
    *,
    slide: str = "",
    model: str = "",
    cutoff: float = CUTOFF,
    unread_um: shapely.Geometry | None = None,
    virtual: VirtualStain | None = None,
    index_errors: Sequence[float] = (),
    flags: Iterable[str] = (),
) -> SlideScore:
    """Count the cells of each ROI and of all together.

    Parameters
    ----------
    cells
        Positions in micrometres from the slide's top left.
    rois
        Where cells are counted; those that are excluded have been cut out of the others, as
        `wsiscore.roi.classes.subtract` does.
    slide, model
        Names for the result.
    cutoff
        Percent at and above which the index is high, in (0, 100).
    unread_um
        What of the ROIs could not be read, in micrometres; it is taken off the area.
    virtual
        The model that generated the slide, if it is a virtual stain.
    index_errors
        Absolute error of the model's index on each image of sets that it was not chosen on, in points.
    flags
        Words of `wsiscore.analysis.flags` that apply to the slide; "blocks_few" and "indeterminate" are added.

    Returns
    -------
    SlideScore
        The tally of each ROI and that of their union.

    Raises
    ------
    RoiError
        If two ROIs have the same name.
    ValueError
        If the cutoff is not between 0 and 100.
    """
    if not 0 < cutoff < 100:
        raise ValueError(f"the cutoff is a percentage between 0 and 100, got {cutoff}")
    if len({roi.name for roi in rois}) < len(rois):
        raise RoiError("two ROIs share a name; rename one, so that the report can tell them apart")
    excluded: dict[str, float] = {}
    for roi in rois:
        if roi.excluded:
            name = roi.class_name or roi.name
            excluded[name] = excluded.get(name, 0.0) + roi.area_mm2
    rois = scored(rois)
    points, positive = PointIndex(cells.x_um, cells.y_um), cells.positive
    if unread_um is not None:
        shapely.prepare(unread_um)

    def tally(outline: shapely.Geometry) -> Tally:
        counted = points.inside(outline)
        n_positive = int(np.count_nonzero(positive[counted]))
        read = outline
        if unread_um is not None and shapely.intersects(unread_um, outline):
            read = shapely.difference(outline, unread_um)
        return Tally(n_positive, len(counted) - n_positive, float(shapely.area(read)) / 1e6)

    by_roi = {roi.name: tally(roi.outline_um) for roi in rois}
    union = shapely.disjoint_subset_union_all([roi.outline_um for roi in rois])  # fast where ROIs are apart
    varies = sampling(cells.select(points.inside(union)))
    score = SlideScore(
        slide,
        model,
        tally(union),
        by_roi,
        cutoff,
        virtual,
        sampling=varies,
        model_error=conformal(index_errors),
        excluded=excluded,
    )
    return with_flags(score, flags)


def with_flags(score: SlideScore, flags: Iterable[str]) -> SlideScore:
    """Return a score with more flags, and with those that its call and its sampling give."""
    flagged = replace(score, flags=tuple({*score.flags, *flags}))
    found = {"blocks_few"} if score.sampling and score.sampling.lower_bound else set()
    if flagged.call == "indeterminate":
        found.add("indeterminate")
    return replace(score, flags=split_flags(join_flags({*flagged.flags, *found})))
