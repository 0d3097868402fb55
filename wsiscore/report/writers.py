"""All that is written of a scored slide and of a cohort: two lists that the pipeline runs and the pages link to.

A new output of a slide is one function ``write(path, result)`` and one line in `WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiscore.report.json import write_quality, write_score
from wsiscore.report.overlay import write_overlay
from wsiscore.report.pages.case import write_case
from wsiscore.report.pages.cohort import write_index
from wsiscore.report.pages.slide import write_report
from wsiscore.report.qupath import MOST_PLAIN, write_detections, write_fields, write_regions
from wsiscore.report.result import CaseResult, Entry, Result
from wsiscore.report.statistics import entry_row
from wsiscore.report.tables import write_cases_csv, write_cells_table, write_scores_csv
from wsiscore.report.thumbnail import THUMBNAIL, write_thumbnail

__all__ = ["CASES", "CASE_PAGE", "COHORT_WRITERS", "WRITERS", "CohortWriter", "Writer", "write_case_page"]


def _always(_: Result) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Writer:
    """A file of a slide's folder.

    Parameters
    ----------
    name
        Of the file.
    title
        What it holds, in a few words.
    write
        ``write(path, result)`` writes it; OutputError if that is not possible.
    when
        Whether it is written of a result.
    link
        What the page of a cohort calls the link to it; empty for no link there.
    needs_run
        Whether it shows the finished run record; such a writer stands at the end.
    """

    name: str
    title: str
    write: Callable[[Path, Result], None]
    when: Callable[[Result], bool] = _always
    link: str = ""
    needs_run: bool = False


@dataclass(frozen=True, slots=True)
class CohortWriter:
    """A file of a cohort.

    Parameters
    ----------
    name
        Of the file; no slide's folder has this name.
    title
        What it holds, in a few words.
    write
        ``write(path, entries, cases)`` writes it; OutputError if that is not possible.
    when
        Whether it is written, of the cases there are.
    """

    name: str
    title: str
    write: Callable[[Path, Sequence[Entry], Sequence[CaseResult]], None]
    when: Callable[[Sequence[CaseResult]], bool] = lambda _: True


def _write_cells(path: Path, result: Result) -> None:
    write_cells_table(path, result.cells, result.rois, result.others)


def _write_detections(path: Path, result: Result) -> None:
    write_detections(path, result.cells, result.others, mpp=result.slide.mpp)


def _is_large(result: Result) -> bool:
    return len(result.cells) + (len(result.others) if result.others else 0) > MOST_PLAIN


def _write_report(path: Path, result: Result) -> None:
    written = [(each.name, each.title) for each in WRITERS if each.name != path.name and each.when(result)]
    write_report(path, result, [*written, *((name, "") for name in result.beside)])


def _write_index(path: Path, entries: Sequence[Entry], cases: Sequence[CaseResult]) -> None:
    links = [(each.name, each.link) for each in WRITERS if each.link]
    write_index(path, entries, _REPORT, links, [(case, f"{CASES}/{case.folder}/{CASE_PAGE}") for case in cases])


def write_case_page(out: Path, case: CaseResult) -> None:
    """Write the page of a case below a folder of results; OutputError if that cannot be done."""
    write_case(out / CASES / case.folder / CASE_PAGE, case, _REPORT)


_REPORT = "report.html"
CASES = "cases"
"""Folder of the cases, beside those of the slides."""
CASE_PAGE = "case.html"
"""Name of the page in a case's folder."""

WRITERS: tuple[Writer, ...] = (
    Writer("cells.parquet", "the cells", _write_cells, lambda result: not result.csv),
    Writer("cells.csv", "the cells, with --csv", _write_cells, lambda result: result.csv),
    Writer("score.json", "the numbers", lambda path, result: write_score(path, result.score, result.analysis)),
    Writer("quality.json", "the quality of the slide", write_quality, lambda result: result.quality is not None),
    Writer("cells.geojson", "the cells for QuPath", _write_detections, lambda result: not _is_large(result), "cells"),
    Writer("cells.geojson.zip", "the same, of more than 200,000 cells", _write_detections, _is_large, "cells"),
    Writer(
        "fields.geojson",
        "the fields of the protocols for QuPath",
        lambda path, result: write_fields(path, result.analysis.protocols, mpp=result.slide.mpp),
        lambda result: bool(result.analysis.protocols.fields),
    ),
    Writer(
        "regions.geojson",
        "the regions for QuPath, and what was left out of them",
        lambda path, result: write_regions(path, (*result.rois, *result.excluded), mpp=result.slide.mpp),
        link="regions",
    ),
    Writer(
        "overlay.jpg",
        "the slide with regions and marked cells",
        lambda path, result: write_overlay(path, result.slide, result.rois, result.cells),
        link="overlay",
    ),
    Writer(THUMBNAIL, "the slide, small", lambda path, result: write_thumbnail(path, result.slide)),
    Writer(_REPORT, "the report, a single file, with a viewer of every cell", _write_report, needs_run=True),
)
"""The files of a slide's folder: numbers, pictures, and the report, which is written last."""

COHORT_WRITERS: tuple[CohortWriter, ...] = (
    CohortWriter(
        "scores.csv",
        "the cohort, a row a slide",
        lambda path, entries, _: write_scores_csv(path, [entry_row(entry) for entry in entries]),
    ),
    CohortWriter("cases.csv", "the cases of a manifest", lambda path, _, cases: write_cases_csv(path, cases), bool),
    CohortWriter("index.html", "the page of the cohort", _write_index),
)
"""The files of a cohort, beside the slides' folders."""
