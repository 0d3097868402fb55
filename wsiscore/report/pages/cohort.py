"""The page of a cohort: every slide with its index, its interval and its call, or why it failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wsiscore.report.pages.charts import interval_bar, interval_plot
from wsiscore.report.pages.rendering import write_page
from wsiscore.report.result import Entry
from wsiscore.report.statistics import Place, statistics_in
from wsiscore.score import SlideScore

__all__ = ["write_index"]

_NUMBERS = tuple(each for each in statistics_in(Place.COHORT) if not each.is_text)
_TEXTS = tuple(each for each in statistics_in(Place.COHORT) if each.is_text)


def write_index(path: Path, entries: Sequence[Entry], report: str, links: Iterable[tuple[str, str]] = ()) -> None:
    """Write the page of a cohort, slides in the order given.

    Parameters
    ----------
    path
        The file to write.
    entries
        The slides.
    report
        Name of the report in a slide's folder.
    links
        Names of other files in a slide's folder to link to, each with the words of the link.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    scores = [entry.score for entry in entries if entry.score is not None]
    write_page(
        path,
        "cohort.html.j2",
        title=f"Ki67 index of {len(entries)} slide{'s' * (len(entries) != 1)}",
        models=sorted({score.model for score in scores}),
        virtual_models=sorted(Counter(score.virtual.model for score in scores if score.virtual).items()),
        n_scored=len(scores),
        counts=_counts(entries, scores),
        plot=interval_plot(scores) if sum(score.total.n > 0 for score in scores) > 1 else None,
        number_headings=[each.column_heading for each in _NUMBERS],
        text_headings=[each.column_heading for each in _TEXTS],
        slides=[_slide(entry) for entry in entries],
        report=report,
        links=list(links),
    )


def _counts(entries: Sequence[Entry], scores: Sequence[SlideScore]) -> list[tuple[str, int]]:
    calls = Counter(score.call for score in scores)
    return [
        ("Low", calls["low"]),
        ("High", calls["high"]),
        ("Indeterminate", calls["indeterminate"]),
        ("Insufficient", calls["insufficient"]),
        ("No cells", calls["no cells"]),
        ("Unsuitable", calls["unsuitable"]),
        ("Failed", len(entries) - len(scores)),
    ]


def _slide(entry: Entry) -> dict[str, Any]:
    """Return what the row of a slide shows."""
    score = entry.score
    if score is None:
        return {"name": entry.slide, "error": entry.error}
    return {
        "name": entry.slide,
        "error": None,
        "folder": quote(entry.folder.encode("utf-8", "surrogateescape")),
        "virtual": score.virtual,
        "numbers": [each.on_page(score, score.total) for each in _NUMBERS],
        "texts": [each.on_page(score, score.total) for each in _TEXTS],
        "bar": interval_bar(score.total, score.cutoff),
    }
