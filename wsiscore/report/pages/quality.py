"""The quality of a slide on its page: what was found, and maps of the measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.quality.assess import Quality
from wsiscore.report.local_index import bounds_um
from wsiscore.report.pages.pictures import tile_map
from wsiscore.report.result import Result
from wsiscore.report.thumbnail import read_thumbnail

__all__ = ["quality_section"]

_MAPS: Final = (  # measure, flag, what it shows, and the values at the ends of the colours
    ("focus", "blur", "Focus: detail of 1 µm against that of 2 to 4 µm, log10.", -1.6, -0.2),
    ("stain", None, "Strength of the stain: optical density of the darkest nuclei.", 0.0, 1.6),
    ("pink", None, "Pink to violet, fraction of the tile.", 0.0, 0.6),
    ("pen", "pen", "Ink of a pen, fraction of the tile.", 0.0, 0.3),
    ("fold", "fold", "Dark without a gap, as in a fold, fraction of the tile.", 0.0, 0.5),
)
_ALWAYS: Final = ("focus", "stain")  # the other maps are shown where something was found
_FLAG_OF: Final = {"pink": "not_h_dab", "pen": "pen", "fold": "fold"}
_AFFECTED: Final = (196, 22, 28)  # red
_LEAST_TISSUE: Final = 0.05  # tiles with less have no colour

Colours = npt.NDArray[np.uint8]


def quality_section(result: Result) -> dict[str, Any] | None:
    """Return what the template shows of a slide's quality; None if it is not known."""
    if result.quality is None:
        return None
    return {
        "findings": result.quality.findings,
        "area_mm2": result.quality.area_mm2,
        "maps": list(_maps(result, result.quality)),
    }


def _maps(result: Result, quality: Quality) -> Iterator[dict[str, Any]]:
    grid = quality.grid
    picture = read_thumbnail(result.slide, bounds_um(result.rois), max_px=700)
    areas = {finding.flag: finding.area_mm2 for finding in quality.findings}
    first = True
    for measure, flag, title, low, high in _MAPS:
        if measure not in _ALWAYS and _FLAG_OF[measure] not in areas:
            continue
        colours = _colours(quality, measure, flag if flag in areas else None, low, high)
        side_um = grid.core_px * grid.mpp
        yield {
            "title": title,
            "picture": tile_map(picture, result.rois, colours, side_um, f"Map: {title}", first=first),
            "low": f"{low:g}",
            "high": f"{high:g}",
            "affected": areas.get(flag) if flag else None,
        }
        first = False


def _colours(quality: Quality, measure: str, flag: str | None, low: float, high: float) -> Colours:
    """Return RGBA of each tile: viridis from low to high, red beyond the limit, clear without tissue."""
    values = quality.tiles[measure]
    shown = np.isfinite(values) & (quality.tiles["tissue"] >= _LEAST_TISSUE)
    scaled = np.clip((np.where(shown, values, low) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    colours = np.zeros((*values.shape, 4), np.uint8)
    colours[..., :3] = cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    if flag is not None:
        colours[quality.affected[flag], :3] = _AFFECTED
    colours[..., 3] = np.where(shown, 255, 0)
    return colours
