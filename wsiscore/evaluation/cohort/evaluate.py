"""Evaluation of a cohort's scores against clinical values: from files to tables and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsiscore.evaluation.cohort.agreement import roc
from wsiscore.evaluation.cohort.cases import (
    CASE_HEADER,
    RELAXATION_HEADER,
    ScoredCase,
    case_rows,
    indices,
    read_scored_cases,
    relaxation_rows,
    summarise_cases,
)
from wsiscore.evaluation.figures import case_figure
from wsiscore.evaluation.tables import Table, csv_text, summary_rows, warn_about, write_text

__all__ = ["evaluate_cases"]


def evaluate_cases(
    scores: Path, clinical: Path, *, cutoff: float = 20.0, out: Path | None = None
) -> tuple[Table, Table]:
    """Compare a cohort's scores with clinical values.

    Parameters
    ----------
    scores, clinical
        See `cases.read_scored_cases`.
    cutoff
        An index of at least so many percent is high.
    out
        Folder for ``cases.csv``, ``summary.csv``, ``relaxation.csv``, ``roc.csv`` and ``cases.svg``; None writes
        nothing.

    Returns
    -------
    tuple
        The measures, one per line, and the relaxation table, each with its header.

    Raises
    ------
    TruthError
        If the tables cannot be read, or do not have the same slides.
    OutputError
        If a file cannot be written.
    """
    cases = read_scored_cases(scores, clinical)
    warn_about("left out, no score", [case.name for case in cases if not case.tally.n])
    warn_about("some slides have no score", [case.name for case in cases if case.tally.n and case.failed])
    summary = summary_rows(summarise_cases(cases, cutoff))
    relaxation: Table = [RELAXATION_HEADER, *relaxation_rows(cases, cutoff)]
    if out is not None:
        write_text(out / "cases.csv", csv_text([CASE_HEADER, *case_rows(cases, cutoff)]))
        write_text(out / "summary.csv", csv_text(summary))
        write_text(out / "relaxation.csv", csv_text(relaxation))
        write_text(out / "roc.csv", csv_text(_roc_rows(cases, cutoff)))
        write_text(out / "cases.svg", case_figure(cases, cutoff))
    return summary, relaxation


def _roc_rows(cases: Sequence[ScoredCase], cutoff: float) -> Table:
    predicted, clinical = indices(cases)
    points = zip(*(column.tolist() for column in roc(predicted, clinical >= cutoff)), strict=True)
    return [("threshold", "fpr", "tpr"), *([f"{value:.6g}" for value in point] for point in points)]
