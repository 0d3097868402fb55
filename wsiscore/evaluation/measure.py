"""An evaluation from end to end: files in, the table and what was left out back, files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wsiscore.evaluation.cohort.agreement import roc
from wsiscore.evaluation.cohort.cases import (
    CASE_HEADER,
    RELAXATION_HEADER,
    Case,
    case_rows,
    indices,
    read_cases,
    relaxation_rows,
    summarise_cases,
)
from wsiscore.evaluation.detection.files import find_predicted, read_found, read_truth
from wsiscore.evaluation.detection.measures import CELL_HEADER, cell_rows, compare_cells, summarise_cells
from wsiscore.evaluation.detection.truth import Kind
from wsiscore.evaluation.figures import case_figure, cell_figure
from wsiscore.evaluation.tables import Table, csv_text, summary_rows, warn_of, write_text

__all__ = ["RADIUS_UM", "evaluate_cases", "evaluate_cells"]

RADIUS_UM = 6.0
"""Greatest distance of a predicted and a true cell that are one, in micrometres: about the radius of a nucleus."""


def evaluate_cells(
    predicted: Iterable[Path],
    truth: Path,
    *,
    mpp: float | None = None,
    radius_um: float = RADIUS_UM,
    types: Mapping[int, Kind] | None = None,
    out: Path | None = None,
) -> Table:
    """Measure predicted cells against annotated ones.

    Images without truth, truth without an image, slides that failed, and images that have no index are left out of
    the measures they cannot be in, and are named in a warning.

    Parameters
    ----------
    predicted
        Tables of cells, folders of a slide, or folders of such folders, as `wsiscore score` writes them.
    truth
        File or folder of annotations; see `sources.read_truth`.
    mpp
        Micrometres per pixel of what is annotated.
    radius_um
        Greatest distance of a predicted and a true cell that are one.
    types
        What the numbers of a type map mean; see `masks.from_npy`.
    out
        Where to write ``cells.csv``, ``summary.csv`` and ``index.svg``, if anywhere.

    Returns
    -------
    list
        The header, a row an image, and the total.

    Raises
    ------
    TruthError
        If predictions or truth cannot be read, or do not go together.
    OutputError
        If a file cannot be written.
    """
    tables, failed = find_predicted(predicted)
    known, unused = read_truth(truth, list(tables), mpp=mpp, types=types or {})
    warn_of("no table of cells, did they fail?", [folder.name for folder in failed])
    warn_of("left out for want of truth", sorted(set(tables) - set(known)))
    warn_of("truth without predicted cells", unused)
    images = [compare_cells(stem, read_found(tables[stem]), cells, radius_um) for stem, cells in known.items()]
    warn_of("detection only, the truth has no classes", [i.slide for i in images if i.true is None])
    warn_of("no index for want of a true cell", [i.slide for i in images if i.true is not None and not i.true.n])
    warn_of("no index for want of a predicted cell", [i.slide for i in images if i.true and i.true.n and not i.found.n])
    rows: Table = [CELL_HEADER, *cell_rows(images)]
    if out is not None:
        write_text(out / "cells.csv", csv_text(rows))
        write_text(out / "summary.csv", csv_text(summary_rows(summarise_cells(images))))
        write_text(out / "index.svg", cell_figure(images))
    return rows


def evaluate_cases(
    scores: Path, clinical: Path, *, cutoff: float = 20.0, out: Path | None = None
) -> tuple[Table, Table]:
    """Measure a cohort's scores against clinical values.

    Parameters
    ----------
    scores, clinical
        See `cases.read_cases`.
    cutoff
        Percent at and above which an index is high.
    out
        Where to write ``cases.csv``, ``summary.csv``, ``relaxation.csv``, ``roc.csv`` and ``cases.svg``, if anywhere.

    Returns
    -------
    tuple
        The measures, a line each, and the relaxation table, each with its header.

    Raises
    ------
    TruthError
        If the tables cannot be read, or do not go together.
    OutputError
        If a file cannot be written.
    """
    cases = read_cases(scores, clinical)
    warn_of("left out for want of a score", [case.name for case in cases if not case.tally.n])
    warn_of("scored without all their slides", [case.name for case in cases if case.tally.n and case.failed])
    summary = summary_rows(summarise_cases(cases, cutoff))
    relaxation: Table = [RELAXATION_HEADER, *relaxation_rows(cases, cutoff)]
    if out is not None:
        write_text(out / "cases.csv", csv_text([CASE_HEADER, *case_rows(cases, cutoff)]))
        write_text(out / "summary.csv", csv_text(summary))
        write_text(out / "relaxation.csv", csv_text(relaxation))
        write_text(out / "roc.csv", csv_text(_roc(cases, cutoff)))
        write_text(out / "cases.svg", case_figure(cases, cutoff))
    return summary, relaxation


def _roc(cases: Sequence[Case], cutoff: float) -> Table:
    predicted, clinical = indices(cases)
    points = zip(*(column.tolist() for column in roc(predicted, clinical >= cutoff)), strict=True)
    return [("threshold", "fpr", "tpr"), *([f"{value:.6g}" for value in point] for point in points)]
