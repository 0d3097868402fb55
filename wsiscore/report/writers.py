"""All that is written of a scored slide and of a cohort: two lists that the pipeline runs and the pages link to.

A new output of a slide is one function ``write(path, result)`` and one line in `WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiscore.report.json import write_quality, write_score
from wsiscore.report.overlay import write_overlay
from wsiscore.report.pages.cohort import write_index
from wsiscore.report.pages.slide import write_report
from wsiscore.report.qupath import write_detections, write_fields
from wsiscore.report.result import Entry, Result
from wsiscore.report.statistics import entry_row
from wsiscore.report.tables import write_cells_table, write_scores_csv

__all__ = ["COHORT_WRITERS", "WRITERS", "CohortWriter", "Writer"]


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
        ``write(path, entries)`` writes it; OutputError if that is not possible.
    """

    name: str
    title: str
    write: Callable[[Path, Sequence[Entry]], None]


def _write_cells(path: Path, result: Result) -> None:
    write_cells_table(path, result.cells, result.rois, result.others)


def _write_report(path: Path, result: Result) -> None:
    written = [(each.name, each.title) for each in WRITERS if each.name != path.name and each.when(result)]
    write_report(path, result, [*written, *((name, "") for name in result.beside)])


def _write_index(path: Path, entries: Sequence[Entry]) -> None:
    write_index(path, entries, _REPORT, [(each.name, each.link) for each in WRITERS if each.link])


_REPORT = "report.html"

WRITERS: tuple[Writer, ...] = (
    Writer("cells.parquet", "the cells", _write_cells, lambda result: not result.csv),
    Writer("cells.csv", "the cells, with --csv", _write_cells, lambda result: result.csv),
    Writer("score.json", "the numbers", lambda path, result: write_score(path, result.score, result.analysis)),
    Writer("quality.json", "the quality of the slide", write_quality, lambda result: result.quality is not None),
    Writer(
        "cells.geojson",
        "the cells for QuPath",
        lambda path, result: write_detections(path, result.cells, result.others, mpp=result.slide.mpp),
        link="cells",
    ),
    Writer(
        "fields.geojson",
        "the fields of the protocols for QuPath",
        lambda path, result: write_fields(path, result.analysis.protocols, mpp=result.slide.mpp),
        lambda result: bool(result.analysis.protocols.fields),
    ),
    Writer(
        "overlay.jpg",
        "the slide with regions and marked cells",
        lambda path, result: write_overlay(path, result.slide, result.rois, result.cells),
        link="overlay",
    ),
    Writer(_REPORT, "the report, a single file", _write_report, needs_run=True),
)
"""The files of a slide's folder, in the order they are written: numbers, pictures, and the report last."""

COHORT_WRITERS: tuple[CohortWriter, ...] = (
    CohortWriter(
        "scores.csv",
        "the cohort, a row a slide",
        lambda path, entries: write_scores_csv(path, [entry_row(entry) for entry in entries]),
    ),
    CohortWriter("index.html", "the page of the cohort", _write_index),
)
"""The files of a cohort, beside the slides' folders."""
