"""Scores of a cohort joined with its clinical values, and their measures."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsiscore.errors import TruthError
from wsiscore.evaluation.cohort.agreement import Values, auc, confusion, differences, icc, roc
from wsiscore.score import Tally

__all__ = [
    "CASE_HEADER",
    "RELAXATION_HEADER",
    "ScoredCase",
    "case_rows",
    "indices",
    "read_scored_cases",
    "relaxation_rows",
    "summarise_cases",
]

CASE_HEADER = (
    "case",
    "slides",
    "positive",
    "negative",
    "ki67_index",
    "clinical",
    "difference",
    "call",
    "label",
    "note",
)
"""Columns of the table of cases, in order."""
RELAXATION_HEADER = ("cutoff", "within", "tp", "fp", "fn", "tn", "precision", "recall", "accuracy", "f1")
"""Columns of the relaxation table, in order."""
_WIDEST = 10  # greatest half width of the interval, percentage points

_log = logging.getLogger("wsiscore")


@dataclass(frozen=True, slots=True)
class ScoredCase:
    """Cell counts and clinical value of a case.

    Parameters
    ----------
    name
        Name of the case, or of its only slide.
    slides
        Its slides.
    tally
        Sum over its scored slides.
    clinical
        Clinical index, percent.
    failed
        Name and reason of each slide without a score.
    """

    name: str
    slides: tuple[str, ...]
    tally: Tally
    clinical: float
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Table:
    path: Path
    rows: list[dict[str, str]]

    def has(self, column: str) -> bool:
        return bool(self.rows) and column in self.rows[0]


def read_scored_cases(scores: Path, clinical: Path) -> list[ScoredCase]:
    """Read the scores of a cohort and join them with its clinical values.

    Parameters
    ----------
    scores
        ``scores.csv``, or the table that `wsiscore score` prints.
    clinical
        A table with the columns ``ki67``, in percent, and ``slide`` or ``case`` or both. With both, the counts of
        the slides of a case add up; with one, each slide is a case. Comma, tab or semicolon separated.

    Returns
    -------
    list of ScoredCase
        In the order of the clinical table. A case without any cell has an empty tally.

    Raises
    ------
    TruthError
        If a table cannot be read, a value is not an index, or the two tables have different slides.
    """
    counts = _scores(_read(scores, ("slide", "positive", "negative")))
    table = _read(clinical, ("ki67",))
    if not (table.has("slide") or table.has("case")):
        raise TruthError(f"{clinical} has neither a column slide nor case; wanted one of them beside ki67")
    values: dict[str, float] = {}
    slides_of: dict[str, list[str]] = {}
    for line, row in enumerate(table.rows, start=2):
        slide = row["slide" if table.has("slide") else "case"]
        case, value = row.get("case") or slide, _percent(row["ki67"], clinical, line)
        if values.setdefault(case, value) != value:
            raise TruthError(f"{clinical}, line {line}: case {case} has {value:g} here and {values[case]:g} above")
        slides_of.setdefault(case, []).append(slide)
    _same_slides(scores, clinical, list(counts), [slide for slides in slides_of.values() for slide in slides])
    if values and 0 < max(values.values()) <= 1:
        _log.warning("%s: no value of ki67 is above 1; wanted percent", clinical)
    return [_case(name, slides, counts, values[name]) for name, slides in slides_of.items()]


def _case(name: str, slides: list[str], counts: dict[str, tuple[Tally, str]], clinical: float) -> ScoredCase:
    tally = sum((counts[slide][0] for slide in slides), Tally())
    failed = tuple(f"{slide}: {counts[slide][1]}" for slide in slides if counts[slide][1])
    return ScoredCase(name, tuple(slides), tally, clinical, failed)


def _read(path: Path, wanted: Sequence[str]) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        rows = list(csv.DictReader(text.splitlines(), delimiter=max("\t;,", key=head.count), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TruthError(f"{path} cannot be read ({error}); wanted a table as text") from error
    if not rows:
        raise TruthError(
            f"{path} has no rows; wanted a line with the columns {', '.join(wanted)}, and a line for each case"
        )
    found = [str(column) for column in rows[0] if column is not None]
    if missing := [column for column in wanted if column not in found]:
        raise TruthError(f"{path} lacks {', '.join(missing)}; it has the columns {', '.join(found)}")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise TruthError(f"{path}, line {line} has not {len(found)} fields as the first line does; correct it")
    return _Table(path, [{name: value.strip() for name, value in row.items()} for row in rows])


def _scores(table: _Table) -> dict[str, tuple[Tally, str]]:
    """Return the counts of each slide, and the reason if it has none."""
    counts: dict[str, tuple[Tally, str]] = {}
    for line, row in enumerate(table.rows, start=2):
        slide = row["slide"]
        if slide in counts:
            raise TruthError(f"{table.path}, line {line}: slide {slide} is there twice; keep one line")
        if row["positive"] == "nan":
            counts[slide] = Tally(), row.get("call") or "no score"
            continue
        try:
            tally = Tally(int(row["positive"]), int(row["negative"]))
        except ValueError as error:
            raise TruthError(f"{table.path}, line {line}: wanted counts of cells ({error})") from error
        counts[slide] = tally, "" if tally.n else "no cells"
    return counts


def _percent(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise TruthError(f"{path}, line {line}: ki67 is {text!r}; wanted a number from 0 to 100, in percent")
    return value


def _same_slides(scores: Path, clinical: Path, scored: list[str], known: list[str]) -> None:
    twice = sorted({slide for slide in known if known.count(slide) > 1}) if len(set(known)) < len(known) else []
    for path, problem, slides in (
        (clinical, "has these slides twice", twice),
        (clinical, f"has slides that {scores.name} has not", sorted(set(known) - set(scored))),
        (scores, f"has slides that {clinical.name} has not", sorted(set(scored) - set(known))),
    ):
        if slides:
            shown = ", ".join(slides[:5]) + (f" and {len(slides) - 5} more" if len(slides) > 5 else "")
            raise TruthError(f"{path} {problem}: {shown}; correct the name or remove the line")


def indices(cases: Sequence[ScoredCase]) -> tuple[Values, Values]:
    """Return the predicted and the clinical index of the cases with cells, in percent."""
    scored = [case for case in cases if case.tally.n]
    predicted = np.array([case.tally.ki67_index for case in scored], np.float64)
    return predicted, np.array([case.clinical for case in scored], np.float64)


def summarise_cases(cases: Sequence[ScoredCase], cutoff: float) -> dict[str, float]:
    """Return the measures of a cohort; cases without cells count as ``unscored`` only.

    Parameters
    ----------
    cases
        Cases of the cohort.
    cutoff
        An index of at least so many percent is high.
    """
    predicted, clinical = indices(cases)
    calls = confusion(predicted, clinical, cutoff)
    difference = differences(predicted, clinical)
    _, fpr, tpr = roc(predicted, clinical >= cutoff)
    return {
        "cases": len(cases),
        "unscored": len(cases) - len(predicted),
        "cutoff": cutoff,
        **{name: getattr(calls, name) for name in RELAXATION_HEADER[2:]},
        "index_error": float(np.abs(predicted - clinical).mean()) if len(predicted) else math.nan,
        "bias": difference.bias,
        "limit_low": difference.low,
        "limit_high": difference.high,
        "icc_2_1": icc(np.column_stack([predicted, clinical])),
        "auc": auc(fpr, tpr),
    }


def relaxation_rows(cases: Sequence[ScoredCase], cutoff: float) -> list[list[str]]:
    """Return the rows of `RELAXATION_HEADER`: the calls at cutoff ± 0, 1, … 10 percentage points.

    Source: Molnar et al., IHCScoreGAN, table 4.
    """
    predicted, clinical = indices(cases)
    rows = []
    for within in range(_WIDEST + 1):
        calls = confusion(predicted, clinical, cutoff, within)
        values = [getattr(calls, name) for name in RELAXATION_HEADER[2:]]
        rows.append(
            [f"{cutoff:g}", f"{within}", *(f"{n}" for n in values[:4]), *(f"{fraction:.3f}" for fraction in values[4:])]
        )
    return rows


def case_rows(cases: Sequence[ScoredCase], cutoff: float) -> list[list[str]]:
    """Return the rows of `CASE_HEADER`; indices to one decimal, ``nan`` and a note where there is none."""
    rows = []
    for case in cases:
        index = case.tally.ki67_index
        call = ("high" if index >= cutoff else "low") if case.tally.n else "unscored"
        counts = [f"{case.tally.n_positive}", f"{case.tally.n_negative}"]
        values = [f"{value:.1f}" for value in (index, case.clinical, index - case.clinical)]
        label = "high" if case.clinical >= cutoff else "low"
        rows.append([case.name, f"{len(case.slides)}", *counts, *values, call, label, "; ".join(case.failed)])
    return rows
