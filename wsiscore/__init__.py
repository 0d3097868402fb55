"""From an immunohistochemistry slide to a Ki67 index that can be trusted and checked.

The public names are loaded when they are first used, so that ``import wsiscore`` takes no time::

    from wsiscore import Slide, find_cells, find_tissue, infer, load_model, score_cells

    slide = Slide("slide.svs")
    rois = find_tissue(slide)
    mosaic = infer(slide, rois, load_model("trained/model"), "slide.ome.zarr")
    print(score_cells(find_cells(mosaic), rois).total.ki67_index)
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # as in `typing`, which takes a while to import
if TYPE_CHECKING:
    from typing import Any

    from wsiscore.cells.find import find_cells
    from wsiscore.cells.table import Cells
    from wsiscore.errors import WsiscoreError
    from wsiscore.inference import infer
    from wsiscore.models.store import load_model
    from wsiscore.mosaic import Mosaic
    from wsiscore.regions import Region, Roi
    from wsiscore.roi.annotations import read_rois
    from wsiscore.roi.tissue import find_tissue
    from wsiscore.score import SlideScore, Tally, score_cells
    from wsiscore.slide.slide import Slide

__all__ = [
    "Cells",
    "Mosaic",
    "Region",
    "Roi",
    "Slide",
    "SlideScore",
    "Tally",
    "WsiscoreError",
    "find_cells",
    "find_tissue",
    "infer",
    "load_model",
    "read_rois",
    "score_cells",
]

_HOMES = {
    "Cells": "cells.table",
    "Mosaic": "mosaic",
    "Region": "regions",
    "Roi": "regions",
    "Slide": "slide.slide",
    "SlideScore": "score",
    "Tally": "score",
    "WsiscoreError": "errors",
    "find_cells": "cells.find",
    "find_tissue": "roi.tissue",
    "infer": "inference",
    "load_model": "models.store",
    "read_rois": "roi.annotations",
    "score_cells": "score",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
