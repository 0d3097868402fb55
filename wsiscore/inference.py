"""A model over a slide: its mosaic is opened or started, measured on a sample, and filled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsiscore.errors import DamagedMosaicError, ModelError, MosaicError, OutputError, ResolutionError, SlideError
from wsiscore.files import locked
from wsiscore.models.contract import Generator, SlideAdaptive
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

__all__ = ["ARITHMETIC", "DAB_CHANNEL", "infer", "infer_tiles"]

ARITHMETIC = 3
"""Version of the computation from pixels to maps; a change of it makes every mosaic stale."""
DAB_CHANNEL = "dab_od"
"""Map that every mosaic of cells carries besides the generator's: DAB optical density around each pixel."""

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
    seconds: dict[str, float] | None = None,
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
    seconds
        Filled with where the time went: ``network``, and the waits for reading and writing.

    Raises
    ------
    ModelError
        If the model cannot take tiles of this size.
    MosaicError
        If the tiles are at another mpp than the model's.
    ResolutionError
        If the slide's pixels are more than twice as wide as the model's.
    """
    spec, grid = model.spec, tiles.grid
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
    clock = Clock({} if seconds is None else seconds)
    batch_size = batch_size or max(1, _BATCH_PX // grid.tile_px**2)
    mosaic, generator = _open_mosaic(slide, tiles, model, path, batch_size, clock)
    try:
        for _ in mosaic.shards():  # each may turn out to be damaged, and is then computed again
            try:
                if TilePass(slide, generator, mosaic, clock).fill(batch_size, progress) or not mosaic.complete:
                    with clock("pyramid"):
                        mosaic.finish()
                break
            except DamagedMosaicError as error:
                _log.warning("%s", error)
                mosaic.reset(error.tiles)
    except OSError as error:
        if isinstance(error, OutputError | SlideError):
            raise
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}); what is finished is kept, run it again"
        ) from error
    return mosaic


def _open_mosaic(
    slide: Slide, tiles: TileList, model: Model, path: Path, batch_size: int, clock: Clock
) -> tuple[Mosaic, Generator]:
    """Open or start the mosaic, and return it with the generator set for the slide.

    What is measured on a sample of the slide is measured once, and kept in the mosaic.
    """
    spec, generator = model.spec, model.generator
    identity = Identity(slide.sha256, model.identity, batch_size, model.device.split(":")[0], ARITHMETIC)
    channels = (*spec.channels, DAB_CHANNEL) if spec.rules else spec.channels
    about: dict[str, Any] = {
        "slide_size_px": [slide.width_px, slide.height_px],
        "model": model.provenance,
        "output": spec.output,
        **({"virtual": asdict(slide.virtual)} if slide.virtual else {}),
        "rules": spec.rules.to_json() if spec.rules else {},
    }
    mosaic = Mosaic.resume(path, tiles, channels, identity, about)
    if mosaic is not None:
        found = mosaic.about["found"]
        return mosaic, generator.with_settings(found) if isinstance(generator, SlideAdaptive) and found else generator
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
