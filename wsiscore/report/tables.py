"""A score as rows and as JSON, and the cells as a table."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from wsiscore.cells.table import Cells
from wsiscore.files import replacing
from wsiscore.regions import Roi
from wsiscore.score import SlideScore, Tally, call

__all__ = ["HEADER", "error_row", "row", "score_json", "write_cells_table", "write_score", "write_scores_csv"]

HEADER = ("slide", "model", "positive", "negative", "ki67_index", "low95", "high95", "area_mm2", "call")
"""Names of the fields of a row, in order."""


def score_json(score: SlideScore) -> dict[str, Any]:
    """Return a score as what JSON can hold: numbers unrounded, None for what is undefined.

    The keys are those of `HEADER` and ``virtual``, the fields of `VirtualStain` or None for a stained slide,
    ``cutoff``, ``cells_per_mm2`` and ``by_roi``, which gives each ROI's name the same numbers and its own call.
    """
    return {
        "slide": score.slide,
        "model": score.model,
        "virtual": asdict(score.virtual) if score.virtual else None,
        **_numbers(score.total),
        "call": score.call,
        "cutoff": score.cutoff,
        "by_roi": {
            name: {**_numbers(tally), "call": call(tally, score.cutoff)} for name, tally in score.by_roi.items()
        },
    }


def row(score: SlideScore) -> list[str]:
    """Return a score as the fields of `HEADER`: percent to one decimal, mm² to three, ``nan`` if undefined.

    Where the stain is virtual the model is ``<model> on virtual <model that painted>``, so that no table mixes it
    with stained slides unseen.
    """
    total = score.total
    model = f"{score.model} on virtual {score.virtual.model}" if score.virtual else score.model
    low, high = total.interval_95
    return [
        _one_line(score.slide),
        _one_line(model),
        str(total.n_positive),
        str(total.n_negative),
        *(f"{value:.1f}" for value in (total.ki67_index, low, high)),
        f"{total.area_mm2:.3f}",
        score.call,
    ]


def error_row(slide: str, model: str, reason: str) -> list[str]:
    """Return the row of a slide that could not be scored: no numbers, and the reason as its call."""
    return [_one_line(slide), _one_line(model), *["nan"] * 6, f"error: {_one_line(reason)}"]


def write_score(path: Path, score: SlideScore) -> None:
    """Write `score_json` to a file, indented.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = json.dumps(score_json(score), indent=2, ensure_ascii=True, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="ascii")


def write_scores_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows of `HEADER` as a comma-separated file with a header line.

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
        writer.writerows(rows)


def write_cells_table(path: Path, cells: Cells, rois: Sequence[Roi]) -> None:
    """Write one row a cell: ``x_um y_um class confidence positivity dab_od roi``.

    Positions are micrometres from the slide's top left, the class is "positive" or "negative", and the ROI is given
    by its name. The suffix decides between Parquet (``.parquet``) and comma-separated text (``.csv``).

    Raises
    ------
    ValueError
        If the suffix is another one.
    OutputError
        If the file cannot be written.
    """
    if path.suffix not in {".parquet", ".csv"}:
        raise ValueError(f"a table of cells is .parquet or .csv, got {path.name}")
    table = pa.table(
        {
            "x_um": cells.x_um,
            "y_um": cells.y_um,
            "class": _words(cells.positive.astype(np.int32), ["negative", "positive"]),
            "confidence": cells.confidence,
            "positivity": cells.positivity,
            "dab_od": cells.dab_od,
            "roi": _words(cells.roi, [_one_line(roi.name) for roi in rois]),
        }
    )
    with replacing(path) as part:
        if path.suffix == ".csv":
            pa.csv.write_csv(table, part)
        else:
            pa.parquet.write_table(table, part)


def _words(which: np.ndarray[Any, Any], words: list[str]) -> pa.Array:
    indices = pa.array(which, type=pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, type=pa.string())).cast(pa.string())


def _numbers(tally: Tally) -> dict[str, int | float | None]:
    low, high = tally.interval_95
    return {
        "positive": tally.n_positive,
        "negative": tally.n_negative,
        "ki67_index": _defined(tally.ki67_index),
        "low95": _defined(low),
        "high95": _defined(high),
        "area_mm2": tally.area_mm2,
        "cells_per_mm2": _defined(tally.cells_per_mm2),
    }


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _one_line(text: str) -> str:
    r"""Write tabs and line ends as ``\t`` and ``\n``, and what is no character as its escape."""
    text = text.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
