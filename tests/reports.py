"""Scores, cells and pages for the tests of what is written."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.analysis.analyse import analyse
from wsiscore.cells.table import Cells
from wsiscore.regions import Roi
from wsiscore.report.pages.slide import write_report
from wsiscore.report.result import CaseResult, Entry, Result
from wsiscore.report.writers import COHORT_WRITERS
from wsiscore.score import SlideScore, Tally, score_cells
from wsiscore.slide.readers.base import VirtualStain
from wsiscore.slide.slide import Slide

HOSTILE = "a<script>alert(1)</script>&\"'\udce9 ü{{ 7 * 7 }}.svs"
RUN = {
    "wsiscore": "1.2.3",
    "started": "2025-01-01T12:00:00+00:00",
    "slide": {"path": f"/slides/{HOSTILE}", "sha256": "ab" * 32, "mpp": 0.5},
    "model": {"name": "test", "family": "hdab", "version": "7", "weights_sha256": None},
    "settings": {"threshold": 0.5, "radius_um": 3.0, "roi_source": "found tissue", "nested": {"depth": 1}},
    "versions": {"numpy": "2.0"},
    "stages": {"infer": 1.25},
    "warnings": ["2 tiles <could> not be read"],
}
VIRTUAL = VirtualStain("pix<2>pix", "/slides/he.svs", "3", "ab" * 32)


def cells_at(
    x_um: npt.ArrayLike, y_um: npt.ArrayLike, positivity: npt.ArrayLike, dab_od: npt.ArrayLike | None = None
) -> Cells:
    x_um, y_um, positivity = (np.asarray(values, np.float64) for values in (x_um, y_um, positivity))
    dab_od = positivity if dab_od is None else np.asarray(dab_od, np.float64)
    return Cells(x_um, y_um, np.full(len(x_um), 0.75), positivity, dab_od, np.zeros(len(x_um), np.int64))


def scattered(n: int, fraction: float = 0.25, side_um: float = 200.0) -> Cells:
    """Return n cells at random places of a square, of which a fraction is positive."""
    rng = np.random.default_rng(7)
    positivity = np.where(np.arange(n) < round(fraction * n), 0.9, 0.1)
    return cells_at(*rng.uniform(1, side_um - 1, (2, n)), positivity)


def whole_roi(name: str = "all") -> Roi:
    return Roi(name, shapely.box(0, 0, 200, 200))


def result_of(
    slide: Slide,
    cells: Cells,
    *,
    name: str = "a slide",
    rois: Sequence[Roi] | None = None,
    run: Mapping[str, Any] = RUN,
    virtual: VirtualStain | None = None,
) -> Result:
    rois = rois or [Roi("left", shapely.box(0, 0, 100, 200)), Roi("right", shapely.box(100, 0, 200, 200))]
    score = score_cells(cells, rois, slide=name, model="test", virtual=virtual)
    return Result(slide, rois, cells, score, run, analyse(cells))


def report_of(slide: Slide, cells: Cells, path: Path, **values: Any) -> str:
    """Return the report of these cells; `values` are those of `result_of`."""
    write_report(path, result_of(slide, cells, **values))
    return path.read_text(encoding="utf-8")


def index_of(entries: Sequence[Entry], path: Path, cases: Sequence[CaseResult] = ()) -> str:
    """Return the page of a cohort."""
    (writer,) = (each for each in COHORT_WRITERS if each.name == "index.html")
    writer.write(path, entries, cases)
    return path.read_text(encoding="utf-8")


def entries(name: str = "slide") -> list[Entry]:
    def score(positive: int, negative: int) -> SlideScore:
        return SlideScore(name, "test", Tally(positive, negative, 1.0))

    return [
        Entry(f"{name} 1", score(300, 700), folder=name),
        Entry(f"{name} 2", score(200, 800)),
        Entry(f"{name} 3", score(0, 0)),
    ]


def without_own_script(document: str) -> str:
    """Return a page without its data and the script that its policy allows by its hash; no other may run."""
    data = re.compile(r'<script type="application/json"[^>]*>([^<]*)</script>')
    assert all(json.loads(each) for each in data.findall(document))
    document = data.sub("", document)
    policy = re.search(r"script-src ([^\"]*)", document)
    if policy is None:
        return document
    (code,) = re.findall(r"<script>(.*?)</script>", document, re.S)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy[1] == f"'sha256-{digest}'"
    return document.replace(f"<script>{code}</script>", "")


def words(document: str) -> str:
    """Return what a reader sees, on one line."""
    return " ".join(
        html.unescape(re.sub(r"<style>.*?</style>|<script.*?</script>|<[^>]*>", " ", document, flags=re.S)).split()
    )
