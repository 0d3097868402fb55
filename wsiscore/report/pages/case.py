"""The page of a case: the index of its slides together, and each slide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wsiscore.analysis.flags import flag_sentence
from wsiscore.report.pages.analysis import interval_rows
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
        intervals=interval_rows(score) if score else [],
        flags=[(word, flag_sentence(word)) for word in score.flags] if score else [],
        counts=[
            (each.label, each.on_page(score, score.total, unit=True))
            for each in statistics_in(Place.SUMMARY)
            if each.name in {"positive", "negative", "cells", "area_mm2", "cells_per_mm2"}
        ]
        if score
        else [],
        certain=_certain(score) if score else [],
        about=[(title, case.facts.get(key) or "not given") for key, title in titles.items()],
        slides=[_slide(entry, report, case) for entry in case.slides],
    )


def _certain(score: SlideScore) -> list[tuple[str, str]]:
    found = score.sampling
    if found is None:
        return []
    blocks = f"{found.blocks} of {found.block_um:g} µm" if math.isfinite(found.block_um) else f"{found.blocks} fields"
    effective = readable(score.total.n / found.design_effect)
    return [("Design effect", f"{found.design_effect:.1f}, as if {effective} cells were counted"), ("Blocks", blocks)]


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
