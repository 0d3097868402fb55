"""The steps of one slide: tiles, mosaic, cells, score, report.

A slide has one folder, ``OUT/<stem>/``. Each step leaves its file there and continues from what an earlier step left:
a tile list, or a mosaic, finished or not. What a folder holds of another slide is never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsiscore.analysis.analyse import Analysis, analyse
from wsiscore.analysis.consensus import compare_cells, disagree
from wsiscore.cells.find import rules_of
from wsiscore.cells.rules import CenterRules, rule_fields
from wsiscore.errors import MosaicError
from wsiscore.export.exporters import remove_exports
from wsiscore.files import write_png
from wsiscore.models.card import read_card
from wsiscore.models.store import find_model
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState
from wsiscore.pipeline.consensus import other_cells, other_mosaics
from wsiscore.pipeline.failures import ERROR, ERROR_LOG, failed
from wsiscore.pipeline.issue import EARLIER, corrected, earlier_reports, keep_earlier, refuse_issued
from wsiscore.pipeline.job import TILES, Job, open_job
from wsiscore.pipeline.maps import find_in_maps, plan_tiles, rois_held, run_model, split_counted, with_chosen
from wsiscore.pipeline.options import InferOptions, ScoreOptions, TileOptions
from wsiscore.pipeline.provenance import RUN
from wsiscore.pipeline.rois import FOUND_TISSUE
from wsiscore.quality.assess import Quality, assess
from wsiscore.regions import Roi, scored
from wsiscore.report.result import Entry, Result
from wsiscore.report.writers import WRITERS, Writer
from wsiscore.score import MIN_CELLS, SlideScore, score_cells, with_flags
from wsiscore.slide.ome_tiff import write_ome_tiff
from wsiscore.slide.slide import Slide
from wsiscore.stain import MOST_PINK
from wsiscore.threads import in_threads
from wsiscore.tiles import TileList

__all__ = ["infer_slide", "score_slide", "tile_slide", "try_score"]


_log = logging.getLogger("wsiscore")


def tile_slide(path: Path, options: TileOptions) -> Path:
    """Lay tiles over a slide's regions, as `TileList.plan` does, and return the path of the ``tiles.json`` written."""
    with open_job(path, options) as job:
        tiles = plan_tiles(job, options)
        tiles.write(job.folder / TILES)
        if options.save_png:
            with job.record.stage("tiles"):
                _save_png(job.slide, tiles, job.folder / "tiles")
        return job.folder / TILES


def infer_slide(path: Path, options: InferOptions, *, progress: bool = False) -> Mosaic:
    """Run the model over a slide or a tile list, as far as that is not done yet.

    Parameters
    ----------
    path
        A slide or a ``tiles.json``.
    options
        The user's choices.
    progress
        Whether to show progress on a terminal.

    Returns
    -------
    The complete mosaic, in the slide's folder.

    Raises
    ------
    WsiscoreError
        A leaf of it, for whatever is wrong with the slide, the regions, the model or the folder.
    """
    with open_job(path, options) as job:
        mosaic = run_model(job, options, progress, picture=options.ome_tiff or None)
        if options.ome_tiff:
            with job.record.stage("ome_tiff"):
                write_ome_tiff(job.folder / f"{job.folder.name}-virtual.ome.tif", mosaic.path)
        return mosaic


def score_slide(
    path: Path, options: ScoreOptions, *, progress: bool = False, pieces: Sequence[Any] | None = None
) -> SlideScore:
    """Score a slide, a tile list or a mosaic, and write the results.

    Parameters
    ----------
    path
        A slide, a ``tiles.json`` or a ``mosaic.ome.zarr``.
    options
        The user's choices.
    progress
        Whether to show progress on a terminal.
    pieces
        What `Rules.pieces` has found already in all blocks of the slide's complete mosaic, by these options.

    Raises
    ------
    WsiscoreError
        A leaf of it, for whatever is wrong with the slide, the regions, the model or the folder.
    """
    with open_job(path, options) as job:
        refuse_issued(job, options)
        mosaic = job.mosaic or run_model(job, options, progress, picture=False)
        model = str(mosaic.about["model"].get("name", "unnamed"))
        if job.mosaic and options.model and not _made_by(mosaic, options.model):
            raise MosaicError(f"{path} was made by {model}, not {options.model}; to use that, score the slide itself")
        if missing := mosaic.missing():
            raise MosaicError(f"{path} lacks {missing} tiles; run the same `wsiscore infer` again to finish it")
        rules = with_chosen(rules_of(mosaic), model, options.rules)
        rois = rois_held(job, mosaic, options)
        job.record.note("slide", {"sha256": _unchanged(job, mosaic)})
        mosaic, cells, applied = find_in_maps(job, mosaic, rules, options, progress, pieces)
        cells, others = split_counted(job, mosaic, cells.in_rois(scored(rois)), rules, options)
        cells, others, issue = corrected(job, cells, others, scored(rois), options)
        edited = bool(issue and issue.edits and issue.edits.total)
        known = not job.slide.virtual and rules == rules_of(mosaic)  # as the card's errors were found
        by_image = mosaic.about.get("index_errors_by_image", {}) if known else {}
        score = score_cells(
            cells,
            rois,
            slide=job.folder.name,
            model=model,
            cutoff=options.cutoff,
            unread_um=mosaic.unreadable_um(),
            virtual=job.slide.virtual,
            index_errors=[error for errors in by_image.values() for error in errors],
        )
        with job.record.stage("analysis"):
            analysis = analyse(cells, applied if isinstance(applied, CenterRules) and not edited else None)
        by_model = other_cells(job, mosaic, rois, options, progress)
        score = replace(
            score,
            n_other=len(others),
            others=tuple(compare_cells(name, cells, own) for name, own in by_model.items()),
            path=str(job.slide.path.absolute()),
            sha256=job.slide.sha256,
            case=job.record.values["facts"].get("case", ""),
            issue=issue,
        )
        quality = _quality(mosaic, scored(rois))
        flags = _analysis_flags(analysis, score) if score.total.n >= MIN_CELLS else []
        flags += ["cells_edited"] * edited
        score = with_flags(score, [*flags, *_quality_flags(job, mosaic, quality, options)])
        _warn(job.slide.path.name, mosaic, quality)
        job.record.note("model", mosaic.about["model"])
        job.record.note("model", {"index_errors": mosaic.about.get("index_errors", {}) if known else {}})
        job.record.drop("settings", rule_fields())  # of an earlier run: rules at their default are not written
        job.record.note("settings", {"cutoff": options.cutoff, **applied.to_json()})
        known_of = (job.slide, scored(rois), cells, score, job.record.values, analysis, quality, options.csv, others)
        cut_out = [roi for roi in rois if roi.excluded]
        _write_results(Result(*known_of, excluded=cut_out, by_model=by_model), job)
        for name in (ERROR, ERROR_LOG):  # of an earlier run
            (job.folder / name).unlink(missing_ok=True)
        if options.keep == "cells":
            for made in (mosaic, *other_mosaics(job.folder, by_model)):
                made.drop_maps()
        return score


def try_score(
    path: Path, options: ScoreOptions, *, progress: bool = False, pieces: Sequence[Any] | None = None
) -> Entry:
    """Score a slide as `score_slide` does; what goes wrong with it becomes the reason in its entry."""
    try:
        score = score_slide(path.absolute(), options, progress=progress, pieces=pieces)
    except Exception as error:  # noqa: BLE001 - one slide must not end the run; its traceback is in a log
        return failed(path, options, error)
    return Entry(score.slide, score, folder=score.slide)


def _analysis_flags(analysis: Analysis, score: SlideScore) -> list[str]:
    models = ["models_disagree"] if disagree(score.indices.values(), score.cutoff) else []
    return [*analysis.flags(score.cutoff), *models]


def _unchanged(job: Job, mosaic: Mosaic) -> str:
    """Return the hash of the slide; MosaicError if the mosaic was made from another file."""
    known = mosaic.about.get("identity", {}).get("slide_sha256", job.slide.sha256)
    if known != job.slide.sha256:
        raise MosaicError(
            f"{mosaic.path} was made from another file than {job.slide.path} is now; "
            "score the slide itself, into another folder"
        )
    return job.slide.sha256


def _made_by(mosaic: Mosaic, model: str) -> bool:
    return bool(read_card(find_model(model)).provenance() == mosaic.about["model"])


def _quality(mosaic: Mosaic, rois: Sequence[Roi]) -> Quality | None:
    """Assess the quality of a slide; None if its mosaic holds no measures, as that of an earlier version."""
    measures = mosaic.measures()
    if measures is None:
        return None
    return assess(measures, mosaic.grid, rois, mosaic.states() == TileState.UNREADABLE)


def _quality_flags(job: Job, mosaic: Mosaic, quality: Quality | None, options: ScoreOptions) -> list[str]:
    flags = [] if quality is None else [*quality.flags]
    if quality is None and mosaic.unreadable_um() is not None:
        flags.append("tiles_missing")
    if mosaic.tiles.roi_source == FOUND_TISSUE and not (job.mosaic and options.roi):
        flags.append("found_tissue")
    return flags


def _warn(name: str, mosaic: Mosaic, quality: Quality | None) -> None:
    """Log what makes the result of a slide doubtful."""
    for finding in quality.findings if quality else ():
        if finding.flag != "tiles_missing":  # said below
            _log.warning("%s: %s: %s. %s", name, finding.flag, finding.found, finding.advice)
    if quality is None:
        _log.warning(
            "%s: its mosaic was made by an earlier version and has no measures of quality, so that blur, pen, folds "
            "and stain are not checked; for that, score the slide itself into another folder",
            name,
        )
    if quality is None and (pink := mosaic.about.get("pink_share", 0)) > MOST_PINK:
        _log.warning(
            "%s: %.0f %% of the stained pixels are pinker than hematoxylin and DAB can be; "
            "if this is an H&E slide, its index is not valid",
            name,
            100 * pink,
        )
    if mosaic.about.get("polarity") == "unchecked":
        _log.warning(
            "%s: which class of the model is the stained one is unchecked; the index may be 100 %% minus this",
            name,
        )
    if unread := int((mosaic.states() == TileState.UNREADABLE).sum()):
        _log.warning("%s: %d tiles could not be read; counts and area leave them out", name, unread)


def _write_results(result: Result, job: Job) -> None:
    """Write the files of a slide, side by side; what shows the run record is written once that is done."""
    keep_earlier(job.folder, result.score.issue)
    remove_exports(job.folder)
    beside = tuple(name for name in (RUN, TILES) if (job.folder / name).exists())
    beside += tuple(f"{EARLIER}/{number}/report.html" for number in earlier_reports(job.folder))
    result = replace(result, beside=beside)

    def write(writer: Writer) -> None:
        with job.record.stage(f"write: {writer.name}"):
            writer.write(job.folder / writer.name, result)

    for writer in WRITERS:
        if not writer.when(result):
            (job.folder / writer.name).unlink(missing_ok=True)  # of an earlier run, and of other cells
    wanted = [writer for writer in WRITERS if writer.when(result)]
    with job.record.stage("write"):
        in_threads(write, [writer for writer in wanted if not writer.needs_run])
    job.record.finish()
    for writer in wanted:
        if writer.needs_run:
            write(writer)


def _save_png(slide: Slide, tiles: TileList, folder: Path) -> None:
    for row, col in tiles.tiles:
        write_png(folder / f"{row:04d}_{col:04d}.png", slide.read(tiles.grid.tile(row, col).read))
