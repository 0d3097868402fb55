"""Tables of an evaluation: rows of words, as CSV, and what was left out of them."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wsiscore.files import replacing

__all__ = ["Table", "csv_text", "few", "mean", "means_of", "plain", "rows_of", "summary_rows", "warn_of", "write_text"]

Table = list[Sequence[str]]

_log = logging.getLogger("wsiscore")


def summary_rows(values: Mapping[str, float]) -> Table:
    """Return measures as a table of two columns, with its header."""
    return [("measure", "value"), *((name, plain(value)) for name, value in values.items())]


def plain(value: float) -> str:
    """Return a number in words: whole ones whole, others with four digits, ``nan`` for what is undefined."""
    return "nan" if math.isnan(value) else f"{value:d}" if isinstance(value, int) else f"{value:.4g}"


def mean(values: Iterable[float]) -> float:
    """Return the mean of those values that are defined; nan if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def few(names: Sequence[str]) -> str:
    """Return the first five names and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def rows_of(images: Sequence[tuple[str, Mapping[str, float]]], total: Mapping[str, float]) -> Table:
    """Return a table of measures: a header, a row an image, and the total with its measures and no others."""
    names = list(total)
    rows = [[stem, *(plain(values.get(name, math.nan)) for name in names)] for stem, values in images]
    return [("slide", *names), *rows, ["total", *(plain(value) for value in total.values())]]


def means_of(images: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """Return the mean over the images of each measure, of those where it is defined."""
    names = dict.fromkeys(name for _, values in images for name in values)
    return {name: mean(values.get(name, math.nan) for _, values in images) for name in names}


def warn_of(what: str, names: Sequence[str]) -> None:
    """Say which images something is to be known of, if there are any."""
    if names:
        _log.warning("%s (%d): %s", what, len(names), few(names))


def csv_text(rows: Table) -> str:
    """Return a table as comma-separated text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; OutputError if it cannot be written."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
