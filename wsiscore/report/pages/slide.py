"""The report of one slide: a single HTML file that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from wsiscore.analysis.flags import flag_sentence, join_flags, split_flags
from wsiscore.cells.table import Cells
from wsiscore.report.local_index import MIN_LOCAL, bounds_um, choose_squares, count_squares, map_side_um, quartiles
from wsiscore.report.pages.analysis import analysis_values, counted_fields
from wsiscore.report.pages.charts import histogram, interval_bar
from wsiscore.report.pages.consensus import consensus_section
from wsiscore.report.pages.pictures import INDEX_COLOURS, field_pair, index_map, slide_picture
from wsiscore.report.pages.quality import quality_section
from wsiscore.report.pages.rendering import write_page
from wsiscore.report.pages.viewer import Shown, embedded, script
from wsiscore.report.reissue import reissue_command
from wsiscore.report.result import Result
from wsiscore.report.statistics import Place, readable, statistics_in
from wsiscore.report.thumbnail import read_thumbnail
from wsiscore.score import MIN_CELLS, SlideScore, Tally

__all__ = ["whole_percent", "write_report"]

_FIELDS = 10
_FIELD_UM = 100.0
_FIELD_MPP = 0.25  # finest resolution of a field in the gallery
_MAP_MARGIN = 0.02  # of the longer side of the regions


def write_report(path: Path, result: Result, files: Iterable[tuple[str, str]] = ()) -> None:
    """Write the report of one slide.

    Parameters
    ----------
    path
        The file to write.
    result
        What it shows.
    files
        Names of the files beside it, to link to, and what each holds.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    score, run, edits = result.score, result.run, result.score.edits
    write_page(
        path,
        "slide.html.j2",
        title=f"Ki67 index of {score.slide}",
        score=score,
        made=" · ".join(filter(None, (f"wsiscore {run.get('wsiscore', '')}".strip(), _minute(run.get("started", ""))))),
        cutoff=f"{score.cutoff:g} %",
        min_cells=MIN_CELLS,
        found=edits and Tally(edits.found_positive, edits.found_negative),
        earlier=any("/" in name for name in result.beside),
        **_summary(score, run),
        **analysis_values(result),
        consensus=consensus_section(result),
        **_regions(score),
        **_pictures(result, path.parent),
        quality=quality_section(result),
        **_method(run),
        provenance=_provenance(run),
        files=[{"name": name, "title": title} for name, title in files],
    )


def whole_percent(value: float, cutoff: float) -> str:
    """Return a percentage to the whole percent, finer only where rounding would carry it across the cutoff."""
    if not math.isfinite(value):
        return "–"
    shown = (f"{value:.{decimals}f}" for decimals in range(7))
    return f"{next((s for s in shown if (float(s) >= cutoff) == (value >= cutoff)), repr(value))} %"


def _summary(score: SlideScore, run: Mapping[str, Any]) -> dict[str, Any]:
    total = score.total
    return {
        "index": whole_percent(total.ki67_index, score.cutoff),
        "interval_95": readable(*total.interval_95, decimals=1, unit="%"),
        "cells": readable(total.n),
        "decision": score.decision,
        "left_out": _left_out_words(score),
        "flags": [(word, flag_sentence(word)) for word in split_flags(join_flags(score.flags))],
        "counts": [(each.label, each.on_page(score, total, unit=True)) for each in statistics_in(Place.SUMMARY)],
        "warnings": [str(warning) for warning in run.get("warnings", ())],
        "index_errors": run.get("model", {}).get("index_errors"),
    }


def _minute(iso: str) -> str:
    """Return a time in UTC to the minute, as people read it."""
    return f"{iso[:10]} {iso[11:16]} UTC" if iso.endswith("+00:00") else iso


def _regions(score: SlideScore) -> dict[str, Any]:
    columns = statistics_in(Place.REGIONS)
    return {
        "region_headings": [column.column_heading for column in columns],
        "regions": [
            {
                "name": name,
                "fields": [column.on_page(score, tally) for column in columns],
                "bar": interval_bar(tally, score.cutoff),
            }
            for name, tally in (*score.by_roi.items(), ("All regions", score.total))
        ],
    }


def _pictures(result: Result, folder: Path) -> dict[str, Any]:
    slide, cells = result.slide, result.cells
    whole = (0.0, 0.0, slide.width_px * slide.mpp, slide.height_px * slide.mpp)
    found = len(cells) > 0
    fields, settings = counted_fields(result.analysis.protocols), result.run.get("settings", {})
    command = reissue_command(result.run, folder.absolute().name)
    shown = Shown(slide, result.rois, cells, result.others, fields, settings, folder.absolute().name, command)
    return {
        "viewer": embedded(shown),
        "viewer_script": script(),
        "slide_picture": slide_picture(read_thumbnail(slide, whole, max_px=1000), result.rois),
        "local": _local_index(result) if found else None,
        "gallery": _gallery(result) if found else None,
        "histograms": _histograms(cells, settings) if found else None,
    }


def _local_index(result: Result) -> dict[str, Any]:
    slide, rois, cells = result.slide, result.rois, result.cells
    left, top, right, bottom = bounds_um(rois)
    margin = _MAP_MARGIN * max(right - left, bottom - top)
    right, bottom = min(right + margin, slide.width_px * slide.mpp), min(bottom + margin, slide.height_px * slide.mpp)
    view = (max(left - margin, 0), max(top - margin, 0), right, bottom)
    side_um = map_side_um(cells, rois)
    squares = count_squares(cells, rois, side_um)
    return {
        "side_um": side_um,
        "quartiles": quartiles(squares),
        "map": index_map(
            read_thumbnail(slide, view, max_px=1000), rois, squares, counted_fields(result.analysis.protocols)
        ),
        "colours": INDEX_COLOURS,
        "min_cells": MIN_LOCAL,
    }


def _gallery(result: Result) -> dict[str, Any]:
    slide, rois, cells = result.slide, result.rois, result.cells
    width_um, height_um = slide.width_px * slide.mpp, slide.height_px * slide.mpp
    chosen = choose_squares(count_squares(cells, rois, _FIELD_UM), _FIELDS)
    fields = []
    for rank, square in enumerate(chosen, 1):
        left, top, right, bottom = square.bounds_um
        seen = (left, top, min(right, width_um), min(bottom, height_um))
        picture = read_thumbnail(slide, seen, max_px=1000, mpp=_FIELD_MPP)
        pictures = field_pair(picture, rois, cells.select(square.holds(cells)), f"field-{rank}")
        fields.append(
            {
                "tally": square.tally,
                "hottest": rank == len(chosen) > 1,
                "x_mm": left / 1000,
                "y_mm": top / 1000,
                "pictures": pictures,
            }
        )
    return {
        "side_um": _FIELD_UM,
        "min_cells": MIN_LOCAL if chosen[0].tally.n >= MIN_LOCAL else None,
        "groups": _FIELDS if len(chosen) == _FIELDS else None,
        "fields": fields,
    }


def _histograms(cells: Cells, settings: Mapping[str, Any]) -> dict[str, Markup | None]:
    known, limit = np.isfinite(cells.dab_od), settings.get("positive_od")
    od = histogram(cells.dab_od[known], cells.positive[known], (0.0, 1.6), limit) if known.any() else None
    measured, half = np.isfinite(cells.positivity), 0.5 if limit is None else None
    positivity = histogram(cells.positivity[measured], cells.positive[measured], (0.0, 1.0), half)
    return {"positivity": positivity if measured.any() else None, "dab_od": od}


def _left_out_words(score: SlideScore) -> str:
    """Return what was left out of counts and area."""
    parts = [f"{name} {readable(area, decimals=3, unit='mm²')}" for name, area in score.excluded.items()]
    if "tiles_missing" in score.flags:
        parts.append("tiles that could not be read")
    if score.n_other:
        parts.append(f"{score.n_other:,} nuclei other than the tumour's")
    return ", ".join(parts) or "nothing"


def _method(run: Mapping[str, Any]) -> dict[str, Any]:
    model, settings, facts = run.get("model", {}), run.get("settings", {}), run.get("facts", {})
    antibody = [facts[key] for key in ("clone", "platform") if facts.get(key)]
    return {
        "model": {"family": model.get("family"), "version": model.get("version")},
        "settings": {"smooth_um": None, "positive_od": None, "sure": 1, **settings},
        "given": [
            ("Case", facts.get("case", "not given")),
            ("Specimen", facts.get("specimen", "not given")),
            ("Antibody clone and platform", ", ".join(antibody) or "not given"),
            ("Origin of the regions", settings.get("roi_source", "not given")),
            ("Weights, SHA-256", model.get("weights_sha256") or "none: the model has no weights"),
        ],
    }


def _provenance(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    stages = [(name, f"{seconds:.1f} s") for name, seconds in run.get("stages", {}).items()]
    if "process_peak_memory_mb" in run:
        stages.append(("peak memory of the process", f"{run['process_peak_memory_mb']} MB"))
    groups = [
        ("Slide file", _flat(run.get("slide", {}))),
        ("Settings", _flat(run.get("settings", {}))),
        ("Versions", _flat(run.get("versions", {}))),
        ("Time by stage, and memory", stages),
    ]
    return [(title, items) for title, items in groups if items]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as one level of ``name.name``."""
    flat: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", "not given" if value is None else str(value)))
    return flat
