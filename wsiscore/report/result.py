"""What the files of a slide and of a cohort are written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wsiscore.analysis.analyse import Analysis
from wsiscore.cells.table import Cells
from wsiscore.quality.assess import Quality
from wsiscore.regions import Roi
from wsiscore.score import SlideScore
from wsiscore.slide.slide import Slide

__all__ = ["CaseResult", "Entry", "Result"]


@dataclass(frozen=True, slots=True)
class Result:
    """All that is known of a scored slide.

    Parameters
    ----------
    slide
        What was scored; pictures are read from it again.
    rois
        Regions in which cells were counted.
    cells
        All counted cells.
    score
        Their counts.
    run
        What ``run.json`` says: ``slide``, ``model``, ``settings``, ``versions``, ``stages`` (seconds by name),
        ``warnings``, ``started``, ``wsiscore``, ``process_peak_memory_mb``. What is missing is reported as not given.
    analysis
        What they say beyond their number.
    quality
        Of the slide; None if it is not known.
    csv
        Write the cells as ``cells.csv`` instead of ``cells.parquet``.
    others
        Nuclei that were found and do not count, as other than the tumour's.
    beside
        Names of files of earlier steps in the same folder, for the links of the report.
    excluded
        Parts that were cut out of the regions.
    by_model
        Counted cells of further models, by name.
    """

    slide: Slide
    rois: Sequence[Roi]
    cells: Cells
    score: SlideScore
    run: Mapping[str, Any]
    analysis: Analysis
    quality: Quality | None = None
    csv: bool = False
    others: Cells | None = None
    beside: tuple[str, ...] = ()
    excluded: Sequence[Roi] = ()
    by_model: Mapping[str, Cells] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One slide of a cohort.

    Parameters
    ----------
    slide
        What it is called.
    score
        Its score, or None if it failed.
    error
        Why it failed, on one line.
    folder
        Where its report is, relative to the page; empty if there is none.
    model
        The model that was to score it, if it failed.
    path, case
        Its file and its case, if it failed.
    """

    slide: str
    score: SlideScore | None
    error: str = ""
    folder: str = ""
    model: str = ""
    path: str = ""
    case: str = ""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case: its slides, and what they are together.

    Parameters
    ----------
    case
        Its name.
    slides
        All slides of it, failed ones too.
    score
        Of all counted slides together, each of which is a region of it; None if they cannot be pooled.
    error
        Why not, on one line.
    counted
        Names of the slides that are counted.
    folder
        Name of its folder.
    facts
        ``specimen``, ``clone`` and ``platform``, as far as they are known.
    """

    case: str
    slides: tuple[Entry, ...]
    score: SlideScore | None
    error: str = ""
    counted: tuple[str, ...] = ()
    folder: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
