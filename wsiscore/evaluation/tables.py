"""Tables of an evaluation as rows of text, and warnings about what they leave out."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wsiscore.files import replacing

__all__ = [
    "Table",
    "csv_text",
    "format_number",
    "mean",
    "means_of",
    "rows_of",
    "shortened",
    "summary_rows",
    "warn_about",
    "write_text",
]

Table = list[Sequence[str]]

_log = logging.getLogger("wsiscore")


def summary_rows(values: Mapping[str, float]) -> Table:
    """Return measures as a table of two columns with a header."""
    return [("measure", "value"), *((name, format_number(value)) for name, value in values.items())]


def format_number(value: float) -> str:
    """Return a number as text: integers as they are, others with four digits, ``nan`` if undefined."""
    return "nan" if math.isnan(value) else f"{value:d}" if isinstance(value, int) else f"{value:.4g}"


def mean(values: Iterable[float]) -> float:
    """Return the mean of the defined values; nan if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def shortened(names: Sequence[str]) -> str:
    """Return the first five names and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def rows_of(images: Sequence[tuple[str, Mapping[str, float]]], total: Mapping[str, float]) -> Table:
    """Return a table: a header, a row for each image, and the total, whose measures are the columns."""
    names = list(total)
    rows = [[stem, *(format_number(values.get(name, math.nan)) for name in names)] for stem, values in images]
    return [("slide", *names), *rows, ["total", *(format_number(value) for value in total.values())]]


def means_of(images: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """Return the mean of each measure over the images for which it is defined."""
    names = dict.fromkeys(name for _, values in images for name in values)
    return {name: mean(values.get(name, math.nan) for _, values in images) for name in names}


def warn_about(what: str, names: Sequence[str]) -> None:
    """Log a warning that names the images it applies to, if there are any."""
    if names:
        _log.warning("%s (%d): %s", what, len(names), shortened(names))


def csv_text(rows: Table) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; raise OutputError if it cannot be written."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
