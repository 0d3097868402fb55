"""What a slide costs on this machine: processor and clock seconds, and disk, by a line through two measured slides.

The slides are a rendered field repeated over squares of two sizes. Each is scored as a slide of a user is, from the
file to the report, so that the line holds whatever a run does on this machine with this model.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsiscore.models.card import read_card
from wsiscore.models.store import default_model, find_model
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import infer_slide, score_slide
from wsiscore.regions import Roi
from wsiscore.roi.geojson import outlines_geojson
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import render_field
from wsiscore.synthetic.svs import write_svs

__all__ = ["Cost", "measure_cost"]

SIDES_UM = (256, 1024)
"""Sides of the two slides, in micrometres: 0.07 and 1.05 mm²."""

_OF_A_SLIDE: Mapping[str, Any] = {
    **{"roi": None, "roi_classes": (), "exclude_classes": (), "slide": None, "mpp": None},
    **{"name": "", "cells": None, "author": ""},
}
"""Options that belong to the user's slides, as they are without a choice."""
_FIELD_PX = 512
_DIFFICULTY = 0.15  # of the field's appearance: a clean stain


@dataclass(frozen=True, slots=True)
class Cost:
    """What a slide costs: a part that each slide has, and one that grows with the area that is read.

    Parameters
    ----------
    model
        Name of the model.
    slide_mpp
        Micrometres per pixel of the slides it was measured on.
    seconds_a_slide, seconds_per_mm2
        By the clock; as busy as the machine was.
    processor_seconds_per_mm2
        Processor time of all threads.
    mb_per_mm2
        Disk, in 10⁶ bytes, with maps, cells and pictures.
    """

    model: str
    slide_mpp: float
    seconds_a_slide: float
    seconds_per_mm2: float
    processor_seconds_per_mm2: float
    mb_per_mm2: float

    def seconds(self, area_mm2: float, slides: int = 1) -> float:
        """Return the seconds by the clock for slides, one after the other, with this area of tissue in all."""
        return self.seconds_a_slide * slides + self.seconds_per_mm2 * area_mm2

    def megabytes(self, area_mm2: float) -> float:
        """Return the disk that the results of this area take, in 10⁶ bytes."""
        return self.mb_per_mm2 * area_mm2


def measure_cost(options: ScoreOptions | None = None, slide_mpp: float = 0.25) -> Cost:
    """Score a small and a larger rendered slide in a temporary folder, and return the line through what they cost.

    Takes about as long as 1.2 mm² and the start of the model.

    Parameters
    ----------
    options
        Of the run that is planned; its model, device, tiles and maps count.
    slide_mpp
        Micrometres per pixel of its slides.

    Raises
    ------
    WsiscoreError
        If the model cannot be loaded, or the temporary folder not be written.
    """
    options = options or ScoreOptions()
    card = read_card(find_model(options.model or default_model()))
    with tempfile.TemporaryDirectory(prefix="wsiscore-cost-") as folder:
        small, large = (_write_slide(Path(folder), side, slide_mpp) for side in SIDES_UM)
        run = replace(options, out=Path(folder) / "warm", **_OF_A_SLIDE)
        _seconds_of(small, run, finds_cells=card.spec.rules is not None)  # loads the model, and all that is imported
        run = replace(run, out=Path(folder) / "out")
        least = _seconds_of(small, run, finds_cells=card.spec.rules is not None)
        most = _seconds_of(large, run, finds_cells=card.spec.rules is not None)
        bytes_of = [_bytes(Path(folder) / "out" / path.stem) for path in (small, large)]
    areas = [side**2 / 1e6 for side in SIDES_UM]
    span = areas[1] - areas[0]
    clock, processor = ((most[i] - least[i]) / span for i in range(2))
    return Cost(
        card.name,
        slide_mpp,
        max(0.0, least[0] - clock * areas[0]),
        max(0.0, clock),
        max(0.0, processor),
        (bytes_of[1] - bytes_of[0]) / span / 1e6,
    )


def _write_slide(folder: Path, side_um: int, mpp: float) -> Path:
    """Write a square slide of a repeated field, with its whole area as its region."""
    rng = np.random.default_rng(0)
    appearance = replace(Appearance.random(rng, _DIFFICULTY), density_mm2=6000.0, artefacts=0.0, jpeg=0)
    field = render_field(rng, _FIELD_PX, _FIELD_PX, mpp, appearance=appearance, index=20).rgb
    side_px = round(side_um / mpp)
    wide = np.tile(field, (1, -(-side_px // _FIELD_PX), 1))[:, :side_px]
    path = folder / f"slide-{side_um}.svs"
    write_svs(path, lambda top, bottom: wide[np.arange(top, bottom) % _FIELD_PX], side_px, side_px, mpp)
    whole = Roi("all", shapely.box(0, 0, side_um, side_um))
    path.with_suffix(".geojson").write_text(json.dumps(outlines_geojson([whole], mpp)), encoding="utf-8")
    return path


def _seconds_of(path: Path, options: ScoreOptions, *, finds_cells: bool) -> tuple[float, float]:
    """Return the seconds that a slide takes, by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    if finds_cells:
        score_slide(path, options)
    else:
        infer_slide(path, options)
    return time.perf_counter() - clock, time.process_time() - processor


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
