"""Tables: the scores of a cohort as CSV, and the cells of a slide as Parquet or CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from wsiscore.cells.table import Cells
from wsiscore.files import one_line, replacing, spreadsheet_text
from wsiscore.regions import Roi
from wsiscore.report.statistics import COLUMNS, HEADER

__all__ = ["write_cells_table", "write_scores_csv"]


def write_scores_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows of `HEADER` as a comma-separated file with a header line.

    Texts that a spreadsheet would take for a formula are written as `spreadsheet_text` has them.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with (
        replacing(path) as part,
        part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for fields in rows:
            columns = zip(COLUMNS, fields, strict=True)
            writer.writerow([spreadsheet_text(field) if column.is_text else field for column, field in columns])


def write_cells_table(path: Path, cells: Cells, rois: Sequence[Roi], others: Cells | None = None) -> None:
    """Write one row a cell: ``x_um y_um class confidence positivity dab_od roi``.

    Positions are micrometres from the slide's top left, the class is "positive" or "negative", and the ROI is given
    by its name; in a CSV file as `spreadsheet_text` has it. The suffix decides between Parquet (``.parquet``) and
    comma-separated text (``.csv``).

    Raises
    ------
    ValueError
        If the suffix is another one.
    OutputError
        If the file cannot be written.
    """
    if path.suffix not in {".parquet", ".csv"}:
        raise ValueError(f"a table of cells is .parquet or .csv, got {path.name}")
    counted = np.ones(len(cells), np.int32)
    if others is not None and len(others):
        counted = np.r_[counted, np.zeros(len(others), np.int32)][np.lexsort(_places(cells, others))]
        cells = cells.with_others(others)
    names = [one_line(roi.name) for roi in rois]
    if path.suffix == ".csv":
        names = [spreadsheet_text(name) for name in names]
    table = pa.table(
        {
            "x_um": cells.x_um,
            "y_um": cells.y_um,
            "class": _words(cells.positive.astype(np.int32), ["negative", "positive"]),
            "confidence": cells.confidence,
            "positivity": cells.positivity,
            "dab_od": cells.dab_od,
            "roi": _words(cells.roi, names),
            "kind": _words(counted, ["other", "counted"]),
        }
    )
    with replacing(path) as part:
        if path.suffix == ".csv":
            pa.csv.write_csv(table, part)
        else:
            pa.parquet.write_table(table, part)


def _places(*tables: Cells) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return x and y of all cells, as `Cells.with_others` orders them by."""
    return np.concatenate([cells.x_um for cells in tables]), np.concatenate([cells.y_um for cells in tables])


def _words(which: np.ndarray[Any, Any], words: list[str]) -> pa.Array:
    indices = pa.array(which, type=pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, type=pa.string())).cast(pa.string())
