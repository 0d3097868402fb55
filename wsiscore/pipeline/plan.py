"""What a run is going to do, found without writing anything: the slides, their regions and tiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shapely

from wsiscore.errors import WsiscoreError
from wsiscore.files import one_line
from wsiscore.models.card import read_card
from wsiscore.models.store import default_model, find_model
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.bottleneck import time_text
from wsiscore.pipeline.cost import Cost
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.rois import lay_tiles, tile_options
from wsiscore.regions import scored
from wsiscore.slide.readers.omezarr import is_virtual
from wsiscore.slide.slide import Slide
from wsiscore.tiles import TileList

__all__ = ["Plan", "cost_text", "existing", "plan_slide"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a slide before it is scored.

    Parameters
    ----------
    path
        What was given: the slide, or a tile list or mosaic of it.
    format, width_px, height_px, mpp
        Of the slide; its size at level 0, and micrometres per pixel there.
    regions
        Where they are from: a file, or "found tissue".
    area_mm2
        Area of the regions, each place once.
    tiles, tile_px
        Number of tiles that the model reads, 0 of a mosaic; side of one, at the model's scale.
    error
        Why the slide cannot be scored; empty if it can.
    """

    path: str
    format: str = ""
    width_px: int = 0
    height_px: int = 0
    mpp: float = 0.0
    regions: str = ""
    area_mm2: float = 0.0
    tiles: int = 0
    tile_px: int = 0
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values, None where nothing is known."""
        return {
            key: value if value != "" and (value or not self.error) else None for key, value in asdict(self).items()
        }


def plan_slide(path: Path, options: ScoreOptions) -> Plan:
    """Return what scoring a slide, a tile list or a mosaic is going to read; what is wrong with it is in its `error`.

    Parameters
    ----------
    path
        A slide, a ``tiles.json`` or a ``mosaic.ome.zarr``.
    options
        As for `wsiscore.pipeline.steps.score_slide`.
    """
    try:
        if (path / "done").is_dir() and not is_virtual(path):
            return _of_tiles(path, Mosaic.open(path).tiles, options, is_done=True)
        if path.suffix == ".json" and path.is_file():
            return _of_tiles(path, TileList.read(path), options)
        with Slide(path, options.mpp) as slide:
            spec = read_card(find_model(options.model or default_model())).spec
            return _of_slide(path, slide, lay_tiles(slide, tile_options(options, spec)))
    except (WsiscoreError, OSError) as error:
        return Plan(one_line(str(path)), error=one_line(" ".join(str(error).split())))


def _of_tiles(path: Path, tiles: TileList, options: ScoreOptions, *, is_done: bool = False) -> Plan:
    with Slide(options.slide or tiles.slide, tiles.slide_mpp) as slide:
        return _of_slide(path, slide, tiles, is_done=is_done)


def _of_slide(path: Path, slide: Slide, tiles: TileList, *, is_done: bool = False) -> Plan:
    regions = shapely.union_all([roi.outline_um for roi in scored(tiles.rois)])
    return Plan(
        *(one_line(str(path)), slide.format, slide.width_px, slide.height_px, slide.mpp, tiles.roi_source),
        *(round(regions.area / 1e6, 6), 0 if is_done else len(tiles.tiles), tiles.grid.tile_px),
    )


def cost_text(plans: Iterable[Plan], cost: Cost | None) -> str:
    """Return what slides are going to cost, one after the other, in words; `cost` may be None if no model is to run."""
    plans = list(plans)
    new = [plan for plan in plans if plan.tiles]
    area, failed = sum(plan.area_mm2 for plan in new), sum(bool(plan.error) for plan in plans)
    words = [f"{len(plans)} slides" if len(plans) != 1 else "1 slide", f"{area:.3g} mm²"]
    words += [f"{failed} cannot be scored"] if failed else []
    if cost is None:
        return f"{', '.join(words)}; no model is to run"
    seconds, megabytes = cost.seconds(area, len(new)), cost.megabytes(area)
    return f"{', '.join(words)}; about {time_text(seconds)} and {megabytes:.3g} MB with {cost.model} on this machine"


def existing(folder: Path) -> Path:
    """Return a path, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
