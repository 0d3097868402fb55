"""The page of a cohort: every slide with its index, its interval and its call, or why it failed."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from wsiscore.report.pages.charts import interval_bars, interval_plot
from wsiscore.report.pages.rendering import write_page
from wsiscore.report.result import CaseResult, Entry
from wsiscore.report.statistics import Place, Statistic, Value, readable, statistics_in
from wsiscore.report.thumbnail import MOST_BYTES, THUMBNAIL
from wsiscore.score import SlideScore

__all__ = ["write_index"]

_NUMBERS = tuple(each for each in statistics_in(Place.COHORT) if not each.is_text)
_OF_SEVERAL_MODELS = {"model_difference"}  # left out where each slide was scored by one
_TEXTS = tuple(each for each in statistics_in(Place.COHORT) if each.is_text)


def write_index(
    path: Path,
    entries: Sequence[Entry],
    report: str,
    links: Sequence[tuple[str, str]] = (),
    cases: Iterable[tuple[CaseResult, str]] = (),
) -> None:
    """Write the page of a cohort, slides in the order given. Its tables can be sorted where scripts run.

    Parameters
    ----------
    path
        The file to write.
    entries
        The slides.
    report
        Name of the report in a slide's folder.
    links
        Names of other files in a slide's folder to link to where they are, each with the words of the link.
    cases
        Cases, each with the path of its page.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    scores = [entry.score for entry in entries if entry.score is not None]
    compared = any(score.others for score in scores)
    numbers = [each for each in _NUMBERS if compared or each.name not in _OF_SEVERAL_MODELS]
    write_page(
        path,
        "cohort.html.j2",
        title=f"Ki67 index of {len(entries)} slide{'s' * (len(entries) != 1)}",
        models=sorted({score.model for score in scores}),
        virtual_models=sorted(Counter(score.virtual.model for score in scores if score.virtual).items()),
        n_scored=len(scores),
        counts=_counts(entries, scores),
        plot=interval_plot(scores) if sum(score.total.n > 0 for score in scores) > 1 else None,
        number_headings=[each.column_heading for each in numbers],
        text_headings=[each.column_heading for each in _TEXTS],
        slides=[_slide(path.parent, entry, numbers, links) for entry in entries],
        cases=[_case(case, link) for case, link in cases],
        script=_script(),
        report=report,
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


@cache
def _script() -> dict[str, str]:
    """Return the script that sorts tables, and its hash for the content security policy, under which no other runs."""
    code = (files("wsiscore.report") / "templates" / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    return {"code": Markup(code), "hash": f"sha256-{digest}"}


def _case(case: CaseResult, link: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": case.case, "link": quote(link), "slides": len(case.slides)}
    if (score := case.score) is None:
        return shown | {"index": "–", "key": "", "sampling": "–", "bar": "", "call": f"no index: {case.error}"}
    return shown | {
        "index": readable(score.total.ki67_index, decimals=1, unit="%"),
        "key": _key(score.total.ki67_index),
        "sampling": readable(*score.sampling_95, decimals=1, unit="%"),
        "bar": interval_bars(score),
        "call": score.call,
    }


def _key(value: Value) -> str:
    """Return what a column is sorted by: a number, the lower end of an interval; empty if undefined."""
    number = value[0] if isinstance(value, tuple) else value
    return repr(float(number)) if isinstance(number, int | float) and math.isfinite(number) else ""


def _thumbnail(folder: Path) -> str:
    """Return the picture of a slide as an address that holds it; empty if there is none of a fitting size."""
    try:
        data = (folder / THUMBNAIL).read_bytes()
    except OSError:
        return ""
    if not 0 < len(data) <= MOST_BYTES:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"


def _slide(out: Path, entry: Entry, numbers: Sequence[Statistic], links: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return what the row of a slide shows."""
    score = entry.score
    if score is None:
        return {"name": entry.slide, "error": entry.error}
    return {
        "name": entry.slide,
        "error": None,
        "folder": quote(entry.folder.encode("utf-8", "surrogateescape")),
        "links": [each for each in links if entry.folder and (out / entry.folder / each[0]).is_file()],
        "virtual": score.virtual,
        "thumbnail": _thumbnail(out / entry.folder) if entry.folder else "",
        "numbers": [(each.on_page(score, score.total), _key(each.compute(score, score.total))) for each in numbers],
        "texts": [each.on_page(score, score.total) for each in _TEXTS],
        "bar": interval_bars(score),
    }
