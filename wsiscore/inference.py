"""A model over a slide: its mosaic is opened or started, measured on a sample, and filled."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsiscore.errors import DamagedMosaicError, ModelError, MosaicError, OutputError, ResolutionError, SlideError
from wsiscore.files import locked, writing
from wsiscore.map_codes import DAB_CHANNEL
from wsiscore.models.contract import Generator, GeneratorSpec, SlideAdaptive
from wsiscore.models.store import Model
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import Identity
from wsiscore.quality.ground import ground_od
from wsiscore.quality.measures import MEASURES
from wsiscore.regions import Roi
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain, pink_fraction
from wsiscore.tile_pass import Clock, TilePass
from wsiscore.tiles import TileList, sample_windows

__all__ = ["ARITHMETIC", "infer", "infer_part", "infer_tiles", "open_mosaic"]

ARITHMETIC = 4
"""Version of the computation from pixels to maps; a change of it makes every mosaic stale."""

_log = logging.getLogger("wsiscore")

_BATCH_PX = 16 * 256**2  # pixels of a default batch: large enough to fill a device, small beside its memory
_MOST_ENLARGED = 2.001


def infer(
    slide: Slide,
    rois: Sequence[Roi],
    model: Model,
    path: Path | str,
    *,
    tile_px: int | None = None,
    progress: bool = False,
) -> Mosaic:
    """Run a model over the regions of a slide.

    Parameters
    ----------
    slide
        What is read.
    rois
        Where; every tile that one of them touches is read.
    model
        What turns tiles into maps.
    path
        The ``.ome.zarr`` folder to write, or to continue after an interruption.
    tile_px
        Side of a tile in pixels of the model's mpp; by default the model's own.
    progress
        Whether to show tiles per second on a terminal.

    Returns
    -------
    Mosaic
        Complete, with its pyramid. The same bytes whether it was interrupted or not.

    Raises
    ------
    MosaicError
        If `path` holds a mosaic of another slide, model or setting.
    ModelError
        If the model gives something other than finite numbers.
    SlideError
        If more than one tile in twenty cannot be read.
    OutputError
        If the mosaic cannot be written.
    """
    spec, path = model.spec, Path(path)
    tiles = TileList.plan(slide, rois, mpp=spec.mpp, tile_px=tile_px or spec.tile_px, margin_px=spec.margin_px)
    with locked(path.absolute().parent, path.name):
        return infer_tiles(slide, tiles, model, path, progress=progress)


def infer_tiles(
    slide: Slide,
    tiles: TileList,
    model: Model,
    path: Path,
    *,
    batch_size: int | None = None,
    progress: bool = False,
    clock: Clock | None = None,
) -> Mosaic:
    """Run a model over listed tiles; the caller holds the lock of the folder that `path` is in.

    Tiles that could not be read are tried again.

    Parameters
    ----------
    slide, model, path, progress
        As in `infer`, as are the result and the errors.
    tiles
        The grid and the tiles, at the model's mpp.
    batch_size
        Tiles a batch; by default as many as make 16 tiles of 256 px.
    clock
        Filled with where the time went.

    Raises
    ------
    ModelError
        If the model cannot take tiles of this size.
    MosaicError
        If the tiles are at another mpp than the model's.
    ResolutionError
        If the slide's pixels are more than twice as wide as the model's.
    """
    clock = clock or Clock()
    batch_size = batch_size or _default_batch(tiles)
    mosaic, generator = open_mosaic(slide, tiles, model, path, batch_size=batch_size, clock=clock)
    try:
        for _ in mosaic.shards():  # each may turn out to be damaged, and is then computed again
            try:
                filled = TilePass(slide, generator, mosaic, clock).fill(batch_size, progress)
                with clock("pyramid"):
                    if filled or not mosaic.complete or not mosaic.has_levels():
                        mosaic.finish()
                break
            except DamagedMosaicError as error:
                _log.warning("%s", error)
                mosaic.reset(error.tiles)
        _refuse_changed(slide, mosaic)
    except OSError as error:
        if isinstance(error, OutputError | SlideError):
            raise
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}); what is finished is kept, run it again"
        ) from error
    return mosaic


def infer_part(slide: Slide, model: Model, path: Path, part: Sequence[int], *, batch_size: int | None = None) -> None:
    """Run a model over some shards of a mosaic that `open_mosaic` has begun; other processes may run over others.

    No lock is needed: a shard, its states and its measures are files that one process writes. The levels for viewers
    are left to `infer_tiles`, which does also what a part has not done.

    Parameters
    ----------
    slide, model, path, batch_size
        As in `infer_tiles`, as are the errors.
    part
        Numbers of the shards, in the order of `Mosaic.shards`.

    Raises
    ------
    MosaicError
        If the mosaic was begun with another model, batch size or kind of device.
    """
    begun = Mosaic.open(path)
    sha256 = str(begun.about.get("identity", {}).get("slide_sha256"))
    batch_size = batch_size or _default_batch(begun.tiles)
    mosaic = Mosaic.join(path, *_wanted(slide, model, batch_size, sha256))
    with writing(path):
        TilePass(slide, _fitted(model.generator, mosaic), mosaic, Clock(), part).fill(batch_size, progress=False)


def open_mosaic(
    slide: Slide,
    tiles: TileList,
    model: Model,
    path: Path,
    *,
    batch_size: int | None = None,
    clock: Clock | None = None,
) -> tuple[Mosaic, Generator]:
    """Continue the mosaic at `path` or begin it, and return it with the generator set for the slide.

    What is measured on a sample of the slide is measured once, and kept in the mosaic. The parameters and the errors
    are those of `infer_tiles`; `clock` gets the time of the sample.
    """
    _refuse_unfit(slide, tiles, model.spec)
    clock, spec, generator = clock or Clock(), model.spec, model.generator
    channels, identity, about = _wanted(slide, model, batch_size or _default_batch(tiles), slide.sha256)
    mosaic = Mosaic.resume(path, tiles, channels, identity, about)
    if mosaic is not None:
        return mosaic, _fitted(generator, mosaic)
    with clock("sample"):
        sample, weights = sample_windows(slide, tiles.rois, tiles.grid.mpp, spec.multiple_px)
        stain = Stain.estimate(sample) if len(sample) else Stain.default()
        if isinstance(generator, SlideAdaptive) and len(sample):
            generator = generator.for_slide(sample.transpose(0, 3, 1, 2), weights)
    measured = {
        "dab_ground_od": ground_od(generator, spec.channels, spec.mpp, stain, sample, weights) if spec.rules else 0.0,
        "polarity": model.card.polarity,
        "index_errors": model.card.index_errors,
        "index_errors_by_image": model.card.index_errors_by_image,
        "stain": stain.to_json(),
        "pink_share": round(pink_fraction(sample, stain.white), 4),
        "found": generator.settings if isinstance(generator, SlideAdaptive) and len(sample) else {},
        **({"measures": list(MEASURES)} if spec.rules else {}),
    }
    return Mosaic.create(path, tiles, channels, spec.dtype, identity, about, measured), generator


def _refuse_changed(slide: Slide, mosaic: Mosaic) -> None:
    """Raise a SlideError, and remove the mosaic, if its tiles may be of two slides."""
    try:
        slide.refuse_changed()
    except SlideError:
        shutil.rmtree(mosaic.path)
        raise


def _default_batch(tiles: TileList) -> int:
    return max(1, _BATCH_PX // tiles.grid.tile_px**2)


def _wanted(
    slide: Slide, model: Model, batch_size: int, slide_sha256: str
) -> tuple[Sequence[str], Identity, dict[str, Any]]:
    """Return the maps, the identity and the further metadata of a mosaic."""
    spec = model.spec
    identity = Identity(slide_sha256, model.identity, batch_size, model.device.split(":")[0], ARITHMETIC)
    about: dict[str, Any] = {
        "slide_size_px": [slide.width_px, slide.height_px],
        "model": model.provenance,
        "output": spec.output,
        **({"virtual": asdict(slide.virtual)} if slide.virtual else {}),
        "rules": spec.rules.to_json() if spec.rules else {},
    }
    return (*spec.channels, DAB_CHANNEL) if spec.rules else spec.channels, identity, about


def _fitted(generator: Generator, mosaic: Mosaic) -> Generator:
    found = mosaic.about["found"]
    return generator.with_settings(found) if isinstance(generator, SlideAdaptive) and found else generator


def _refuse_unfit(slide: Slide, tiles: TileList, spec: GeneratorSpec) -> None:
    grid = tiles.grid
    if grid.tile_px % spec.multiple_px:
        raise ModelError(
            f"{spec.family} reads tiles whose side is a multiple of {spec.multiple_px} px, got {grid.tile_px}"
        )
    if abs(grid.mpp / spec.mpp - 1) > 1e-3:
        raise MosaicError(
            f"the tiles were laid at {grid.mpp} µm/px and {spec.family} reads {spec.mpp}; "
            f"lay them with `wsiscore tile --at {spec.mpp}`"
        )
    if slide.mpp > _MOST_ENLARGED * grid.mpp:
        raise ResolutionError(
            f"{slide.path} has {slide.mpp:.4g} µm/px and {spec.family} reads {spec.mpp:g}; a slide is enlarged at most "
            "2×, so check --mpp, or scan at a finer resolution"
        )
