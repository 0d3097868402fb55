"""The maps of one slide: its tiles laid, a model run over them, damage repaired, and cells found in them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely

from wsiscore.cells.rules import CenterRules, Rules, rule_flag
from wsiscore.cells.table import Cells
from wsiscore.engines.choice import Engine, Precision
from wsiscore.errors import DamagedMosaicError, ModelError, MosaicError, RoiError
from wsiscore.inference import infer_tiles
from wsiscore.models.card import read_card
from wsiscore.models.contract import Maps
from wsiscore.models.store import Model, default_model, find_model, load_model
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.job import MOSAIC, TILES, Job
from wsiscore.pipeline.options import InferOptions, ScoreOptions, TileOptions
from wsiscore.pipeline.rois import FOUND_TISSUE, lay_tiles, rois_of, tile_options
from wsiscore.regions import Roi, scored
from wsiscore.tile_pass import Clock
from wsiscore.tiles import TileList

__all__ = [
    "check_held",
    "find_in_maps",
    "model_of",
    "plan_tiles",
    "prepare",
    "rois_held",
    "run_model",
    "split_counted",
    "with_chosen",
]

_MODELS_KEPT = 4  # loaded at a time: a consensus takes turns

_log = logging.getLogger("wsiscore")


def plan_tiles(job: Job, options: TileOptions) -> TileList:
    """Lay the tiles over the slide's regions."""
    with job.record.stage("rois"):
        tiles = lay_tiles(job.slide, options)
    laid = {"tiles": len(tiles.tiles), "tile_px": options.tile_px, "tile_mpp": options.tile_mpp}
    job.record.note("settings", {"roi_source": tiles.roi_source, **laid})
    return tiles


def model_of(options: InferOptions) -> Model:
    """Return the model that the user chose; the last ones are kept."""
    folder = find_model(options.model or default_model())
    return _model(folder, options.device, options.maps, options.norm, options.engine, options.precision)


def prepare(job: Job, options: InferOptions, *, picture: bool | None = None) -> tuple[TileList, Model]:
    """Lay the tiles of a slide if they are not given, and load the model.

    Raises
    ------
    ModelError
        If `picture` is given and differs from whether the model generates a picture.
    """
    card = read_card(find_model(options.model or default_model()))
    spec = card.spec
    if picture is not None and picture != (spec.rules is None):
        raise ModelError(
            f"{card.name} finds cells and generates no picture; leave out --ome-tiff"
            if picture
            else f"{card.name} generates a virtual stain and finds no cells; `wsiscore infer` with it, "
            "and pipe the path that prints into `wsiscore score -`"
        )
    if spec.rules and isinstance(options, ScoreOptions):
        with_chosen(spec.rules, card.name, options.rules)  # so that a wrong one is an error before the work
    tiles = job.tiles or plan_tiles(job, tile_options(options, spec))
    with job.record.stage("load_model"):
        model = model_of(options)
    job.record.note("model", card.provenance())
    job.record.note("settings", {"device": model.device, **model.computed_by, "margin_px": tiles.grid.margin_px})
    _log.info(
        "%s: %d tiles of %d px at %g µm/px, in regions of %s; %s on %s by %s",
        *(job.slide.path.name, len(tiles.tiles), tiles.grid.tile_px, tiles.grid.mpp, tiles.roi_source),
        *(card.name, model.device, " ".join(model.computed_by.values()) or "its own code"),
    )
    return tiles, model


def run_model(job: Job, options: InferOptions, progress: bool, *, picture: bool | None = None) -> Mosaic:
    """Run the model, as far as that is not done yet."""
    tiles, model = prepare(job, options, picture=picture)
    clock = Clock()
    stages = dict(job.record.values["stages"])
    with job.record.stage("infer"):
        mosaic = infer_tiles(
            job.slide,
            tiles,
            model,
            job.folder / MOSAIC,
            batch_size=options.batch_size,
            progress=progress,
            clock=clock,
        )
    job.computed += clock.tiles
    tiles.write(job.folder / TILES)  # not before: a mosaic made in another way keeps its tile list
    if clock.tiles:
        job.record.infer_spent(clock.seconds, clock.tiles)
    elif "infer" in stages:  # it was finished before: the time that took is the one to keep
        job.record.note("stages", {"infer": stages["infer"]})
    return mosaic


def find_in_maps(
    job: Job, mosaic: Mosaic, rules: Rules, options: ScoreOptions, progress: bool, pieces: Sequence[Any] | None = None
) -> tuple[Mosaic, Cells, Rules]:
    """Find the cells, or join `pieces` of them; of a mosaic made from the slide, what is damaged is computed again."""
    with job.record.stage("cells"):
        for _ in mosaic.shards():
            try:
                mosaic.measures()
                return mosaic, *rules.find(mosaic, pieces=None if job.computed else pieces)
            except DamagedMosaicError as error:
                if job.mosaic:
                    raise
                _log.warning("%s", error)
                Mosaic(mosaic.path, writable=True).reset(error.tiles)
            mosaic = run_model(job, options, progress, picture=False)
        return mosaic, *rules.find(mosaic)


def split_counted(job: Job, mosaic: Mosaic, cells: Cells, rules: Rules, options: ScoreOptions) -> tuple[Cells, Cells]:
    """Return the cells that count, and the nuclei that do not, as other than the tumour's."""
    drawn = options.roi is not None or not mosaic.tiles.roi_source.startswith(FOUND_TISSUE)
    count = options.count or ("all" if drawn else "tumour")
    is_other = np.zeros(len(cells), np.bool_)
    if count == "tumour" and isinstance(rules, CenterRules):
        is_other = cells.other >= rules.other  # nan, of a model that does not tell, is not
    job.record.note("settings", {"count": count})
    return cells.select(~is_other), cells.select(is_other)


def with_chosen(own: Rules, model: str, chosen: Mapping[str, float]) -> Rules:
    """Return a model's own rules with those the user chose; MosaicError if one does not apply to it."""
    known = {rule.name for rule in fields(own)}
    if foreign := sorted(set(chosen) - known):
        raise MosaicError(
            f"{rule_flag(foreign[0])} does not apply to the cells of {model}, which have the rules "
            f"{', '.join(rule_flag(name) for name in sorted(known))}; leave it out"
        )
    return replace(own, **chosen)


def rois_held(job: Job, mosaic: Mosaic, options: ScoreOptions) -> Sequence[Roi]:
    """Return the mosaic's own ROIs, or those newly given if the mosaic holds them whole."""
    if job.mosaic is None or options.roi is None:
        return mosaic.tiles.rois
    rois, source = rois_of(job.slide, options.roi, options.roi_classes, options.exclude_classes)
    check_held(mosaic, rois, source)
    job.record.note("settings", {"roi_source": source})
    return rois


def check_held(mosaic: Mosaic, rois: Sequence[Roi], source: str) -> None:
    """Raise a RoiError if a ROI extends beyond the tiles of a mosaic; `source` says where the ROIs are from."""
    held = shapely.union_all([shapely.box(*mosaic.grid.tile(*place).write.bounds_um) for place in mosaic.tiles.tiles])
    for roi in scored(rois):
        beyond = shapely.area(shapely.difference(roi.outline_um, held))
        if beyond > 1e-6 * roi.outline_um.area:
            raise RoiError(
                f"{source}: {roi.name!r} extends {beyond / 1e6:.3f} mm² beyond what {mosaic.path} holds; "
                "score the slide itself with this ROI"
            )


@lru_cache(maxsize=_MODELS_KEPT)
def _model(
    folder: Path,
    device: str,
    maps: Maps,
    norm: Literal["tile", "slide"] | None,
    engine: Engine | Literal["auto"],
    precision: Precision | None,
) -> Model:
    return load_model(folder, device, maps=maps, norm=norm, engine=engine, precision=precision)
