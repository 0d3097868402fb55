"""The page of a case: the index of its slides together, and each slide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wsiscore.report.pages.charts import interval_bars
from wsiscore.report.pages.rendering import write_page
from wsiscore.report.pages.slide import whole_percent
from wsiscore.report.result import CaseResult, Entry
from wsiscore.report.statistics import Place, readable, statistics_in
from wsiscore.score import SlideScore

__all__ = ["write_case"]


def write_case(path: Path, case: CaseResult, report: str) -> None:
    """Write the page of a case, in ``cases/<case>/`` beside the slides' folders.

    Parameters
    ----------
    path
        The file to write.
    case
        What it shows.
    report
        Name of the report in a slide's folder.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    score, titles = case.score, {"specimen": "Specimen", "clone": "Antibody clone", "platform": "Platform"}
    write_page(
        path,
        "case.html.j2",
        title=f"Ki67 index of case {case.case}",
        case=case,
        index=whole_percent(score.total.ki67_index, score.cutoff) if score else "–",
        bar=interval_bars(score, labels=True) if score else "",
        counts=[
            (each.label, each.on_page(score, score.total, unit=True))
            for each in statistics_in(Place.SUMMARY)
            if each.name in {"positive", "negative", "cells", "area_mm2", "cells_per_mm2"}
        ]
        if score
        else [],
        intervals=_intervals(score) if score else [],
        about=[(title, case.facts.get(key) or "not given") for key, title in titles.items()],
        slides=[_slide(entry, report, case) for entry in case.slides],
    )


def _intervals(score: SlideScore) -> list[tuple[str, str]]:
    found = score.sampling
    pairs = [("Counting, 95 %", readable(*score.total.interval_95, decimals=1, unit="%"))]
    if found is None:
        return [*pairs, ("Sampling", "not known: too few blocks of tissue or fields")]
    blocks = f"{found.blocks} of {found.block_um:g} µm" if math.isfinite(found.block_um) else f"{found.blocks} fields"
    effective = readable(score.total.n / found.design_effect)
    return [
        *pairs,
        ("Sampling, 95 %", readable(*score.sampling_95, decimals=1, unit="%")),
        ("Design effect", f"{found.design_effect:.1f}, as if {effective} cells were counted"),
        ("Blocks", blocks),
    ]


def _slide(entry: Entry, report: str, case: CaseResult) -> dict[str, Any]:
    folder = quote(entry.folder.encode("utf-8", "surrogateescape"))
    shown: dict[str, Any] = {"name": entry.slide, "link": f"../../{folder}/{report}" if folder and entry.score else ""}
    if (score := entry.score) is None:
        return shown | {"error": entry.error}
    if case.counted and entry.slide not in case.counted:
        return shown | {"error": score.decision.reason}
    return shown | {
        "error": "",
        "index": readable(score.total.ki67_index, decimals=1, unit="%"),
        "cells": readable(score.total.n),
        "area": readable(score.total.area_mm2, decimals=3),
        "bar": interval_bars(score),
        "call": score.call,
    }
