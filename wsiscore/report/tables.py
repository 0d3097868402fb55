"""Tables: the scores of a cohort as CSV, and the cells of a slide as Parquet or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from wsiscore.analysis.consensus import difference
from wsiscore.analysis.flags import join_flags
from wsiscore.cells.table import NO_ROI, Cells
from wsiscore.files import one_line, plain_text, replacing, spreadsheet_text
from wsiscore.regions import Roi
from wsiscore.report.result import CaseResult
from wsiscore.report.statistics import COLUMNS, HEADER, index_by_model

__all__ = [
    "CASE_COLUMNS",
    "cells_table",
    "geo_metadata",
    "read_cells_table",
    "write_cases_csv",
    "write_cells_table",
    "write_scores_csv",
]


_WKB_POINT = np.dtype([("order", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])  # little-endian

_ROWS = 2**20  # cells made into rows at a time: memory does not grow with the slide


def write_scores_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows of `HEADER` as a comma-separated file with a header line.

    Texts that a spreadsheet would take for a formula are written as `spreadsheet_text` has them.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    texts = [column.is_text for column in COLUMNS]
    _write_csv(path, HEADER, texts, rows)


CASE_COLUMNS = {
    "case": True,
    "model": True,
    "slides": False,
    "failed": False,
    "positive": False,
    "negative": False,
    "ki67_index": False,
    "low95": False,
    "high95": False,
    "sampling_low95": False,
    "sampling_high95": False,
    "design_effect": False,
    "blocks": False,
    "block_um": False,
    "area_mm2": False,
    "call": True,
    "reason": True,
    "flags": True,
    "specimen": True,
    "clone": True,
    "platform": True,
    "index_by_model": True,
    "model_difference": False,
}
"""The columns of ``cases.csv``, and whether each holds texts."""


def write_cases_csv(path: Path, cases: Iterable[CaseResult]) -> None:
    """Write one row a case, of `CASE_COLUMNS`.

    Percent are given to one decimal, mm² to three, and ``nan`` is what is undefined. A case that cannot be pooled has
    its reason as its call.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    rows = ([one_line(_case_row(case).get(name, "nan")) for name in CASE_COLUMNS] for case in cases)
    _write_csv(path, tuple(CASE_COLUMNS), list(CASE_COLUMNS.values()), rows)


def _case_row(case: CaseResult) -> dict[str, str]:
    failed = sum(entry.score is None for entry in case.slides)
    row = {"case": case.case, "model": "", "slides": str(len(case.slides)), "failed": str(failed)}
    row |= {name: case.facts.get(name, "") for name in ("specimen", "clone", "platform")}
    score = case.score
    if score is None:
        return row | {"call": f"error: {case.error}", "reason": "", "flags": "", "index_by_model": ""}
    row |= {
        "model": score.model,
        "positive": str(score.total.n_positive),
        "negative": str(score.total.n_negative),
        "ki67_index": f"{score.total.ki67_index:.1f}",
        "area_mm2": f"{score.total.area_mm2:.3f}",
        "call": score.call,
        "reason": score.decision.reason,
        "flags": join_flags(score.flags),
        "index_by_model": index_by_model(score),
        "model_difference": f"{difference(score.indices.values()):.1f}",
    }
    row["low95"], row["high95"] = (f"{end:.1f}" for end in score.total.interval_95)
    if (found := score.sampling) is not None:
        row["sampling_low95"], row["sampling_high95"] = (f"{end:.1f}" for end in score.sampling_95)
        row |= {
            "design_effect": f"{found.design_effect:.2f}",
            "blocks": str(found.blocks),
            "block_um": f"{found.block_um:g}",
        }
    return row


def _write_csv(path: Path, header: Sequence[str], texts: Sequence[bool], rows: Iterable[Sequence[str]]) -> None:
    with (
        replacing(path) as part,
        part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for fields in rows:
            columns = zip(texts, fields, strict=True)
            writer.writerow([spreadsheet_text(field) if is_text else field for is_text, field in columns])


_EDITS = ["", "added", "class changed"]  # what `Edit` is called in a table


def write_cells_table(path: Path, cells: Cells, rois: Sequence[Roi], others: Cells | None = None) -> None:
    """Write one row a cell: ``x_um y_um class confidence positivity dab_od roi kind``, and ``edit`` if any is edited.

    Positions are micrometres from the slide's top left, the class is "positive" or "negative", and the ROI is given
    by its name; in a CSV file as `spreadsheet_text` has it. The suffix decides between Parquet (``.parquet``) and
    comma-separated text (``.csv``). The Parquet file is GeoParquet 1.1: its last column, ``geometry``, has the
    positions as points, in micrometres and without a geographic reference.

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
    edited = bool(cells.edit.any())
    bounds = [float(each(axis)) for each in (np.min, np.max) for axis in (cells.x_um, cells.y_um)] if len(cells) else []
    starts = range(0, max(len(cells), 1), _ROWS)
    tables = (_rows(cells.select(np.s_[at : at + _ROWS]), counted[at : at + _ROWS], names, edited) for at in starts)
    first = next(tables)
    with replacing(path) as part, part.open("wb") as file:  # Arrow takes no path that is not UTF-8
        if path.suffix == ".csv":
            with pa.csv.CSVWriter(file, first.schema) as rows:
                for table in chain([first], tables):
                    rows.write_table(table)
            return
        texts = [field.name for field in first.schema if pa.types.is_string(field.type)]
        schema = _with_points(first).schema.with_metadata(geo_metadata(["Point"], bounds))
        with pa.parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=texts) as rows:
            for table in chain([first], tables):
                rows.write_table(_with_points(table), row_group_size=_ROWS)


def _rows(cells: Cells, counted: np.ndarray[Any, Any], names: list[str], edited: bool) -> pa.Table:
    """Return some of the rows."""
    return pa.table(
        {
            "x_um": cells.x_um,
            "y_um": cells.y_um,
            "class": _words(cells.positive.astype(np.int32), ["negative", "positive"]),
            "confidence": cells.confidence,
            "positivity": cells.positivity,
            "dab_od": cells.dab_od,
            "roi": _words(cells.roi, names),
            "kind": _words(counted, ["other", "counted"]),
            **({"edit": _words(cells.edit, _EDITS)} if edited else {}),
        }
    )


def _with_points(table: pa.Table) -> pa.Table:
    """Return rows with a column of points, as GeoParquet 1.1 has them."""
    points = np.zeros(len(table), _WKB_POINT)
    points["order"] = points["type"] = 1
    points["x"], points["y"] = table["x_um"].to_numpy(), table["y_um"].to_numpy()
    fixed = pa.Array.from_buffers(pa.binary(_WKB_POINT.itemsize), len(table), [None, pa.py_buffer(points.tobytes())])
    return table.append_column("geometry", fixed.cast(pa.binary()))  # a fixed length is not allowed


def geo_metadata(kinds: Sequence[str], bounds: Sequence[float]) -> dict[str, str]:
    """Return the metadata that make a table with outlines or points as WKB in ``geometry`` GeoParquet 1.1.

    Parameters
    ----------
    kinds
        Of the geometries, such as ``Point``.
    bounds
        Left, top, right, bottom of all; empty if there are none.
    """
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": list(kinds), "crs": None}
    if bounds:
        column["bbox"] = list(bounds)
    about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return {"geo": json.dumps(about)}


def cells_table(folder: Path) -> pa.Table:
    """Return the table of cells in a slide's folder as it is; OSError or ValueError if it cannot be read."""
    is_parquet = (path := folder / "cells.parquet").is_file()
    with (path if is_parquet else folder / "cells.csv").open("rb") as file:
        return pa.parquet.read_table(file) if is_parquet else pa.csv.read_csv(file)


def read_cells_table(folder: Path, rois: Sequence[str] = ()) -> tuple[Cells, Cells] | None:
    """Return the cells in a slide's folder: those that count, and those that do not; None if there is no table.

    Parameters
    ----------
    folder
        Of a slide's results.
    rois
        Names of the regions, in the order in which the cells refer to them; a cell of no such region has `NO_ROI`.
    """
    try:
        table = cells_table(folder)
        names = ("x_um", "y_um", "confidence", "positivity", "dab_od")
        x_um, y_um, confidence, positivity, dab_od = (table[name].to_numpy().astype(np.float64) for name in names)
        stained = np.array([word == "positive" for word in table["class"].to_pylist()], np.bool_)
        number = {one_line(name): at for at, name in reversed(list(enumerate(rois)))}
        held = [number.get(plain_text(str(name)), NO_ROI) for name in table["roi"].to_pylist()]
        edits = table["edit"].to_pylist() if "edit" in table.column_names else [""] * len(stained)
        edit = np.array([_EDITS.index(word or "") for word in edits], np.int64)
        kinds = table["kind"].to_pylist() if "kind" in table.column_names else ["counted"] * len(stained)
    except (OSError, ValueError, KeyError):
        return None
    cells = Cells(x_um, y_um, confidence, positivity, dab_od, np.array(held, np.int64), stained, edit=edit)
    counted = np.array([kind == "counted" for kind in kinds], np.bool_)
    return cells.select(counted), cells.select(~counted)


def _places(*tables: Cells) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return x and y of all cells, as `Cells.with_others` orders them by."""
    return np.concatenate([cells.x_um for cells in tables]), np.concatenate([cells.y_um for cells in tables])


def _words(which: np.ndarray[Any, Any], words: list[str]) -> pa.Array:
    indices = pa.array(which, type=pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, type=pa.string())).cast(pa.string())
