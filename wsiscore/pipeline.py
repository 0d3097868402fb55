"""The whole way of one slide: tiles, mosaic, cells, score, report.

A slide has one folder, ``OUT/<stem>/``. Each step leaves its file there and takes up what an earlier step left: a
tile list, a mosaic begun or finished. What a folder holds of another slide is never touched.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import shapely

from wsiscore.cells import Cells, find_cells
from wsiscore.errors import ModelError, MosaicError, OutputError, RoiError, SlideError, WsiscoreError
from wsiscore.generators import CellRules, Generator, Maps
from wsiscore.inference import infer_tiles
from wsiscore.models import default_model, find_model, index_errors, load_model, read_card
from wsiscore.mosaic import Mosaic, TileState
from wsiscore.ome_tiff import write_ome_tiff
from wsiscore.provenance import Record, slide_of
from wsiscore.regions import Roi
from wsiscore.report import Entry, write_cells, write_cells_table, write_overlay, write_report, write_score
from wsiscore.rois import rois_of
from wsiscore.score import CUTOFF, SlideScore, score_cells
from wsiscore.slide import Slide
from wsiscore.sources import is_virtual
from wsiscore.stain import MOST_PINK
from wsiscore.tiles import TileList
from wsiscore.writing import replacing

__all__ = [
    "MOSAIC",
    "OUT",
    "TILES",
    "Settings",
    "infer_slide",
    "out_of",
    "score_slide",
    "tile_slide",
    "try_score",
]

OUT = Path("wsiscore-out")
TILES = "tiles.json"
MOSAIC = "mosaic.ome.zarr"

_log = logging.getLogger("wsiscore")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user may choose; the same for every slide of a run.

    Parameters
    ----------
    out
        Folder of the results; by default ``wsiscore-out``, or where a given tile list or mosaic lies.
    roi
        Annotation file; by default one beside the slide, else tissue is found.
    roi_classes
        Classes or names to keep of it; by default all.
    mpp
        Micrometres per pixel of the slide, where its file does not say.
    model
        Name or folder of a model; by default the one that ships as such.
    tile_px
        Side of a tile; by default the model's.
    device
        ``auto``, ``cuda``, ``mps`` or ``cpu``.
    batch_size
        Tiles a batch; by default by the size of the tiles.
    cutoff
        Percent at and above which an index is high.
    maps
        Which of the model's maps are computed and kept: ``needed`` ones, or ``all``.
    threshold, radius_um, least_area_um2
        As in `CellRules`; by default the model's.
    csv
        Whether the cells are written as CSV instead of Parquet.
    """

    out: Path | None = None
    roi: Path | None = None
    roi_classes: tuple[str, ...] = ()
    mpp: float | None = None
    model: str | None = None
    tile_px: int | None = None
    device: str = "auto"
    batch_size: int | None = None
    maps: Maps = "needed"
    cutoff: float = CUTOFF
    threshold: float | None = None
    radius_um: float | None = None
    least_area_um2: float | None = None
    csv: bool = False


def tile_slide(
    path: Path,
    settings: Settings,
    *,
    mpp: float = 0.5,
    tile_px: int = 512,
    margin_px: int = 32,
    min_coverage: float = 0.0,
    save_png: bool = False,
) -> Path:
    """Lay tiles over a slide's ROIs, as `TileList.plan` does, and return the path of the ``tiles.json`` written.

    With `save_png` the tiles as read, margins included, are written beside it as ``tiles/<row>_<col>.png``.
    """
    with _job(path, settings) as job:
        tiles = _plan(job, settings, mpp=mpp, tile_px=tile_px, margin_px=margin_px, min_coverage=min_coverage)
        tiles.write(job.folder / TILES)
        if save_png:
            with job.record.stage("tiles"):
                _save_png(job.slide, tiles, job.folder / "tiles")
        return job.folder / TILES


def infer_slide(path: Path, settings: Settings, *, ome_tiff: bool = False, progress: bool = False) -> Mosaic:
    """Run the model over a slide or a tile list, as far as that is not done yet.

    With `ome_tiff` the picture that a model paints is also written beside its mosaic, as ``<stem>-virtual.ome.tif``.
    """
    with _job(path, settings) as job:
        mosaic = _infer(job, settings, progress, picture=ome_tiff or None)
        if ome_tiff:
            with job.record.stage("ome_tiff"):
                write_ome_tiff(job.folder / f"{job.folder.name}-virtual.ome.tif", mosaic.path)
        return mosaic


def score_slide(path: Path, settings: Settings, *, progress: bool = False) -> SlideScore:
    """Score a slide, a tile list or a mosaic, and write all there is to see of it.

    Parameters
    ----------
    path
        A slide, a ``tiles.json`` or a ``mosaic.ome.zarr``.
    settings
        The user's choices.
    progress
        Whether to show progress on a terminal.

    Raises
    ------
    WsiscoreError
        Some leaf of it, for whatever is wrong with the slide, the ROIs, the model or the folder.
    """
    with _job(path, settings) as job:
        mosaic = job.mosaic or _infer(job, settings, progress, picture=False)
        model = str(mosaic.about["model"].get("name", "unnamed"))
        if job.mosaic and settings.model not in (None, model):
            raise MosaicError(f"{path} was made by {model}, not {settings.model}; to use that, score the slide itself")
        rules = _rules(mosaic.about["rules"], model, settings)
        rois = _rescored_rois(job, mosaic, settings)
        found: dict[str, float] = {}
        with job.record.stage("cells"):
            cells = find_cells(mosaic, rois, rules=rules, found=found)
        unread = mosaic.unreadable_um()
        score = score_cells(
            cells,
            rois,
            slide=job.folder.name,
            model=model,
            cutoff=settings.cutoff,
            unread_um=unread,
            virtual=job.slide.virtual,
        )
        if (pink := mosaic.about.get("pink_share", 0)) > MOST_PINK:
            _log.warning(
                "%s: %.0f %% of the stained pixels are pinker than hematoxylin and DAB can be; "
                "if this is an H&E slide, its index means nothing",
                job.slide.path.name,
                100 * pink,
            )
        if unread is not None:
            n = int((mosaic.states() == TileState.UNREADABLE).sum())
            _log.warning("%s: %d tiles could not be read; counts and area leave them out", job.slide.path.name, n)
        errors = {} if job.slide.virtual else index_errors(settings.model or model, mosaic.about["model"], rules)
        job.record.note("model", {**mosaic.about["model"], "index_errors": errors})
        job.record.note("settings", {"cutoff": settings.cutoff, **rules.of(mosaic.about["output"]), **found})
        _write_results(job, rois, cells, score, csv=settings.csv)
        return score


def try_score(path: Path, settings: Settings, *, progress: bool = False) -> Entry:
    """Score a slide as `score_slide` does; what goes wrong with it becomes the reason in its entry."""
    try:
        score = score_slide(path, settings, progress=progress)
    except WsiscoreError as error:
        return Entry(stem_of(path), None, " ".join(str(error).split()), model=settings.model or default_model())
    return Entry(score.slide, score, folder=score.slide)


def out_of(path: Path, settings: Settings) -> Path:
    """Return the folder of the results: the one asked for, or where a given tile list or mosaic lies, or `OUT`."""
    return settings.out or (path.parent.parent if path.name in (TILES, MOSAIC) else OUT)


def stem_of(path: Path) -> str:
    """Return what a slide is called: its file's stem; of a tile list or mosaic, its folder."""
    if path.name == MOSAIC:
        return path.parent.name + ("-virtual" if is_virtual(path) else "")
    return path.parent.name if path.name == TILES else path.stem


@dataclass(slots=True)
class _Job:
    """One slide on its way."""

    slide: Slide
    folder: Path
    record: Record
    tiles: TileList | None = None
    mosaic: Mosaic | None = None


@contextmanager
def _job(path: Path, settings: Settings) -> Iterator[_Job]:
    """Open what was given, claim the slide's folder, and keep its record; the record is finished at the end."""
    tiles, mosaic, source, mpp = None, None, path, settings.mpp
    if path.suffix == ".json" and path.is_file():
        tiles = TileList.read(path)
    elif (path / "done").is_dir() and not is_virtual(path):
        mosaic = Mosaic.open(path)
        tiles = mosaic.tiles
    if tiles is not None:
        source, mpp = tiles.slide, tiles.slide_mpp
        if settings.mpp not in (None, mpp):
            raise MosaicError(f"{path} was laid with the slide at {mpp} µm/px; to use --mpp, start from the slide")
        if not source.exists():
            raise SlideError(
                f"{path} is of the slide {source}, which is not there; put it back or start from the slide"
            )
    with Slide(source, mpp) as slide:
        folder = _claim(out_of(path, settings), stem_of(path), source.absolute())
        with Record(folder, source.absolute()) as record:
            record.note("slide", _about(slide))
            yield _Job(slide, folder, record, tiles, mosaic)
            record.finish()


def _claim(out: Path, stem: str, slide: Path) -> Path:
    """Make and return the slide's folder: ``out/stem``, or with a few digits more if another slide has that."""
    digits = hashlib.sha256(str(slide).encode()).hexdigest()[:6]
    for folder in (out / stem, out / f"{stem}-{digits}"):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if slide_of(folder) == slide:
                return folder
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror}; choose another folder with -o") from error
        else:
            return folder
    raise OutputError(f"{folder} holds something else; move it away or choose another folder with -o")


def _about(slide: Slide) -> dict[str, Any]:
    return {
        "format": slide.format,
        "mpp": slide.mpp,
        "mpp_source": slide.properties["mpp_source"],
        "width_px": slide.width_px,
        "height_px": slide.height_px,
        **({"virtual": asdict(slide.virtual)} if slide.virtual else {}),
    }


def _plan(
    job: _Job, settings: Settings, *, mpp: float, tile_px: int, margin_px: int, min_coverage: float = 0.0
) -> TileList:
    """Lay the tiles over the slide's ROIs."""
    with job.record.stage("rois"):
        rois, source = rois_of(job.slide, settings.roi, settings.roi_classes)
        tiles = TileList.plan(
            job.slide,
            rois,
            mpp=mpp,
            tile_px=tile_px,
            margin_px=margin_px,
            min_coverage=min_coverage,
            roi_source=source,
        )
    job.record.note("settings", {"roi_source": source, "tiles": len(tiles.tiles), "tile_px": tile_px, "tile_mpp": mpp})
    return tiles


@lru_cache(maxsize=1)
def _generator(folder: Path, device: str, maps: Maps) -> Generator:
    return load_model(folder, device, maps=maps)


def _infer(job: _Job, settings: Settings, progress: bool, *, picture: bool | None = None) -> Mosaic:
    folder = find_model(settings.model or default_model())
    card = read_card(folder)
    spec = card.spec
    if picture is not None and picture != (spec.output == "image"):
        raise ModelError(
            f"{card.name} finds cells and paints no picture; leave out --ome-tiff"
            if picture
            else f"{card.name} paints a virtual stain and finds no cells; `wsiscore infer` with it, "
            "and pipe the path that prints into `wsiscore score -`"
        )
    _rules(spec.rules.of(spec.output), card.name, settings)  # so that a wrong one is said before the work
    if job.tiles is not None and (settings.roi or settings.tile_px):
        raise MosaicError(
            "a tile list has its ROIs and its tile size already; give --roi and --size to `wsiscore tile`"
        )
    tiles = job.tiles or _plan(
        job, settings, mpp=spec.mpp, tile_px=settings.tile_px or spec.tile_px, margin_px=spec.margin_px
    )
    with job.record.stage("load_model"):
        generator = _generator(folder, settings.device, settings.maps)
    job.record.note("model", card.provenance())
    device = str(getattr(generator, "device", "cpu"))
    job.record.note("settings", {"device": device, "margin_px": tiles.grid.margin_px})
    seconds: dict[str, float] = {}
    stages = dict(job.record.values["stages"])
    with job.record.stage("infer"):
        mosaic = infer_tiles(
            job.slide,
            tiles,
            generator,
            job.folder / MOSAIC,
            model=card.provenance(),
            batch_size=settings.batch_size,
            progress=progress,
            seconds=seconds,
        )
    tiles.write(job.folder / TILES)  # not before: a mosaic made in another way keeps its tile list
    if "network" in seconds:
        job.record.note("stages", {f"infer: {name}": round(value, 3) for name, value in seconds.items()})
    elif "infer" in stages:  # it was finished before: the time that took is the one to keep
        job.record.note("stages", {"infer": stages["infer"]})
    return mosaic


def _rules(own: Mapping[str, float | None], model: str, settings: Settings) -> CellRules:
    """Return a model's own rules with those the user chose; MosaicError if one means nothing to it."""
    names = ("threshold", "radius_um", "least_area_um2")
    chosen = {name: value for name in names if (value := getattr(settings, name)) is not None}
    if foreign := sorted(set(chosen) - set(own)):
        option = "--radius" if foreign[0] == "radius_um" else "--least-area"
        raise MosaicError(f"{option} means nothing to the cells of {model}, which heed {', '.join(own)}; leave it out")
    return CellRules(**{**own, **chosen})


def _rescored_rois(job: _Job, mosaic: Mosaic, settings: Settings) -> Sequence[Roi]:
    """Return the mosaic's own ROIs, or those newly given if the mosaic holds them whole."""
    if job.mosaic is None or settings.roi is None:
        return mosaic.tiles.rois
    rois, source = rois_of(job.slide, settings.roi, settings.roi_classes)
    held = shapely.union_all([shapely.box(*mosaic.grid.tile(*place).write.bounds_um) for place in mosaic.tiles.tiles])
    for roi in rois:
        beyond = shapely.area(shapely.difference(roi.outline_um, held))
        if beyond > 1e-6 * roi.outline_um.area:
            raise RoiError(
                f"{source}: {roi.name!r} reaches {beyond / 1e6:.3f} mm² beyond what {mosaic.path} holds; "
                "score the slide itself with this ROI, into another folder"
            )
    job.record.note("settings", {"roi_source": source})
    return rois


def _write_results(job: _Job, rois: Sequence[Roi], cells: Cells, score: SlideScore, *, csv: bool) -> None:
    """Write the numbers first, then what is drawn from them, and the report last."""
    slide, folder, record = job.slide, job.folder, job.record
    with record.stage("write"):
        write_cells_table(folder / ("cells.csv" if csv else "cells.parquet"), cells, rois)
        write_score(folder / "score.json", score)
        write_cells(folder / "cells.geojson", cells, mpp=slide.mpp)
    with record.stage("overlay"):
        write_overlay(folder / "overlay.jpg", slide, rois, cells)
    with record.stage("report"):
        write_report(folder / "report.html", slide=slide, rois=rois, cells=cells, score=score, run=record.finish())


def _save_png(slide: Slide, tiles: TileList, folder: Path) -> None:
    for row, col in tiles.tiles:
        pixels = slide.read(tiles.grid.tile(row, col).read)
        with replacing(folder / f"{row:04d}_{col:04d}.png") as part:
            done, png = cv2.imencode(".png", pixels[..., ::-1])
            if not done:
                raise OutputError(f"{folder}: a tile could not be encoded as PNG")
            part.write_bytes(png.tobytes())
