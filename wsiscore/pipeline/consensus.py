"""Consensus: further models over the regions of a slide, each with its maps in a folder of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from wsiscore.cells.find import rules_of
from wsiscore.cells.table import Cells
from wsiscore.errors import MosaicError
from wsiscore.files import folder_name, locked, remove_parts
from wsiscore.models.card import read_card
from wsiscore.models.store import find_model
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.job import MOSAIC, Job
from wsiscore.pipeline.maps import check_held, find_in_maps, run_model, split_counted
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.provenance import Record, run_of
from wsiscore.regions import Roi, scored
from wsiscore.tiles import TileList

__all__ = ["MODELS", "other_cells", "other_mosaics"]

MODELS = "models"
"""Folder of the further models in that of a slide; each has a folder there, as if the slide were scored by it alone."""
_COMPARED = "compared_with"

_log = logging.getLogger("wsiscore")


def other_cells(
    job: Job, first: Mosaic, rois: Sequence[Roi], options: ScoreOptions, progress: bool
) -> dict[str, Cells]:
    """Return the counted cells of the further models by name, in the order given.

    Each model runs over the regions of the first one, on its own grid and by its own rules. Where a mosaic is scored
    again and no model is named, those that it was compared with are compared again from their mosaics.

    Parameters
    ----------
    job
        The slide.
    first
        Mosaic of the model that is reported.
    rois
        Where cells count.
    options
        Of which `also` names the models.
    progress
        Whether to show progress on a terminal.
    """
    if job.mosaic and not options.model:
        found = dict(_compared_before(job, job.mosaic, rois, options, progress))
    else:
        found = {
            read_card(find_model(model)).name: _run(job, first, rois, model, options, progress)
            for model in options.also
        }
    job.record.note("settings", {_COMPARED: list(found)})
    return found


def other_mosaics(folder: Path, models: Iterable[str]) -> Iterator[Mosaic]:
    """Yield the mosaics of further models, by their names, in a slide's folder."""
    for name in models:
        yield Mosaic.open(folder / MODELS / folder_name(name) / MOSAIC)


def _run(job: Job, first: Mosaic, rois: Sequence[Roi], model: str, options: ScoreOptions, progress: bool) -> Cells:
    """Run a further model over the regions of the first one, as far as that is not done, and return its cells."""
    card = read_card(find_model(model))
    folder = job.folder / MODELS / folder_name(card.name)
    with locked(folder.parent, folder.name):
        remove_parts(folder)
        record = Record(folder, job.slide.path.absolute())
        record.note("slide", {**job.record.values["slide"], "sha256": job.slide.sha256})
        tiles = TileList.plan(
            job.slide,
            first.tiles.rois,
            mpp=card.spec.mpp,
            tile_px=card.spec.tile_px,
            margin_px=card.spec.margin_px,
            roi_source=first.tiles.roi_source,
        )
        own = replace(options, model=model, also=(), rules={}, tile_px=None, norm=None, maps="needed")
        own = replace(own, engine="auto", precision=None)
        found = _cells(Job(job.slide, folder, record, tiles), rois, own, progress)
        record.finish()
    return found


def _compared_before(
    job: Job, given: Mosaic, rois: Sequence[Roi], options: ScoreOptions, progress: bool
) -> Iterator[tuple[str, Cells]]:
    """Yield the models that a mosaic was compared with, by name, and their cells, from their mosaics beside it."""
    for name in map(str, run_of(given.path.parent).get("settings", {}).get(_COMPARED) or ()):
        folder = given.path.parent / MODELS / folder_name(name)
        if not (folder / MOSAIC).is_dir():
            _log.warning("%s is gone, so that the index is no longer compared with that of %s", folder / MOSAIC, name)
            continue
        record = Record(folder, job.slide.path.absolute())
        other = Job(job.slide, folder, record, mosaic=Mosaic.open(folder / MOSAIC))
        yield name, _cells(other, rois, replace(options, rules={}), progress)


def _cells(job: Job, rois: Sequence[Roi], options: ScoreOptions, progress: bool) -> Cells:
    mosaic = job.mosaic or run_model(job, options, progress, picture=False)
    if missing := mosaic.missing():
        raise MosaicError(f"{mosaic.path} lacks {missing} tiles; score the slide itself to finish it")
    check_held(mosaic, rois, "the regions")
    rules = rules_of(mosaic)
    mosaic, cells, applied = find_in_maps(job, mosaic, rules, options, progress)
    job.record.note("settings", applied.to_json())
    return split_counted(job, mosaic, cells.in_rois(scored(rois)), rules, options)[0]
