"""A model over a slide: tiles read ahead in threads, batches through the generator, shards into the mosaic."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from wsiscore.errors import DamagedMosaicError, ModelError, MosaicError, OutputError, ResolutionError, SlideError
from wsiscore.files import locked
from wsiscore.models.contract import Generator, SlideAdaptive
from wsiscore.models.store import Model
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import Identity, Shard, TileState
from wsiscore.quality.ground import ground_od
from wsiscore.quality.measures import MEASURES, measure
from wsiscore.regions import Roi
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain, dab_od_map, pink_fraction
from wsiscore.tiles import Tile, TileList, sample_windows

__all__ = ["ARITHMETIC", "DAB_CHANNEL", "infer", "infer_tiles"]

ARITHMETIC = 3
"""Version of the computation from pixels to maps; a change of it makes every mosaic stale."""
DAB_CHANNEL = "dab_od"
"""Map that every mosaic of cells carries besides the generator's: DAB optical density around each pixel."""

_log = logging.getLogger("wsiscore")

_BATCH_PX = 16 * 256**2  # pixels of a default batch: large enough to fill a device, small beside its memory
_BATCHES_AHEAD = 2  # read before they are asked for
_SHARDS_AHEAD = 2  # written while the next is computed
_MOST_ENLARGED = 2.001
_MAX_UNREADABLE = 0.05  # fraction of tiles past which a slide is called damaged

Maps = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Result = TypeVar("Result")


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
    clock = _Clock({} if seconds is None else seconds)
    batch_size = batch_size or max(1, _BATCH_PX // grid.tile_px**2)
    mosaic, generator = _open_mosaic(slide, tiles, model, path, batch_size, clock)
    try:
        for _ in mosaic.shards():  # each may turn out to be damaged, and is then computed again
            try:
                if _Run(slide, generator, mosaic, clock).fill(batch_size, progress) or not mosaic.complete:
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
    slide: Slide, tiles: TileList, model: Model, path: Path, batch_size: int, clock: _Clock
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


class _Held(NamedTuple):
    """A shard in memory: its maps, and the measures of its tiles if the mosaic holds them."""

    maps: npt.NDArray[np.generic]
    measures: npt.NDArray[np.float32] | None


class _Run:
    """One pass over the tiles that are still to do."""

    def __init__(self, slide: Slide, generator: Generator, mosaic: Mosaic, clock: _Clock) -> None:
        self.slide, self.generator, self.mosaic, self.clock = slide, generator, mosaic, clock
        self.stain = Stain.from_json(mosaic.about["stain"])
        self.states = mosaic.states()  # as they will be
        self.recorded = self.states.copy()  # as they are on disk
        self.retried = {place for place in mosaic.tiles.tiles if self.states[place] == TileState.UNREADABLE}

    def fill(self, batch_size: int, progress: bool) -> bool:
        """Read, infer and write every batch of which a tile is still to do; return whether anything was written.

        A batch holds the same tiles in every run, finished or not, since the last digits of a network's sums may
        depend on the size of the batch: so a resumed run gives the very bytes of an uninterrupted one.
        """
        work = list(self._work(batch_size))
        n_tiles, workers = len(self.mosaic.tiles.tiles), max(2, min(8, os.cpu_count() or 2))
        with (
            ThreadPoolExecutor(workers, "wsiscore-tile") as pool,
            tqdm(
                total=n_tiles,
                initial=n_tiles - sum(self._to_do(place) for place in self.mosaic.tiles.tiles),
                desc=self.slide.path.name,
                unit=" tiles",
                disable=None if progress else True,
                leave=False,
            ) as bar,
        ):
            try:
                self._compute(work, pool, bar.update)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._refuse_damaged()
        return bool(work)

    def _to_do(self, place: tuple[int, int]) -> bool:
        return bool(self.states[place] == TileState.TO_DO) or place in self.retried

    def _work(self, batch_size: int) -> Iterator[tuple[Shard, list[list[Tile]]]]:
        """Yield the shards with a tile to do, and their batches with one."""
        readable = self._readable_now()
        for shard in self.mosaic.shards():
            places = [shard.tiles[start : start + batch_size] for start in range(0, len(shard.tiles), batch_size)]
            wanted = [
                batch
                for batch in places
                if any(self.states[place] == TileState.TO_DO or place in readable for place in batch)
            ]
            if wanted:
                yield shard, [[self.mosaic.grid.tile(*place) for place in batch] for batch in wanted]

    def _readable_now(self) -> set[tuple[int, int]]:
        """Try the tiles again that could not be read, and return those that can be."""
        return {place for place in self.retried if self._read(self.mosaic.grid.tile(*place)) is not None}

    def _compute(
        self, work: Sequence[tuple[Shard, list[list[Tile]]]], pool: ThreadPoolExecutor, advance: Callable[[int], Any]
    ) -> None:
        batches = [(shard, batch, batch is all_of[-1]) for shard, all_of in work for batch in all_of]
        writes: deque[tuple[list[Tile], Future[None]]] = deque()
        held, kept, done = None, deque[Future[None]](), list[Tile]()
        for (shard, tiles, last), pixels in self._read_ahead(batches, pool):
            if held is None:
                held = self._begin(shard)
            with self.clock("network"):
                maps = self.generator(np.stack(pixels).transpose(0, 3, 1, 2))
            if not math.isfinite(float(maps.sum())):
                raise ModelError(
                    f"{self.generator.spec.family} gives maps that are not finite numbers on {self.slide.path}; "
                    "its weights are broken or do not fit it, import or train the model again"
                )
            for tile, rgb, map_ in zip(tiles, pixels, maps, strict=True):
                kept.append(_submit(pool, self._keep, tile, rgb, map_, shard, held))
            done += tiles
            advance(len(tiles))
            if last:
                with self.clock("wait_for_writing"):
                    while kept:
                        kept.popleft().result()
                    writes.append((done, _submit(pool, self.mosaic.write_shard, shard, held.maps, held.measures)))
                    while len(writes) >= _SHARDS_AHEAD:
                        self._settle(*writes.popleft())
                held, done = None, []
        with self.clock("wait_for_writing"):
            while writes:
                self._settle(*writes.popleft())

    def _begin(self, shard: Shard) -> _Held:
        """Return a shard as far as it is written."""
        if any(self.recorded[place] == TileState.WRITTEN for place in shard.tiles):
            at = shard.region
            return _Held(self.mosaic.read(at.x, at.y, at.width, at.height), self.mosaic.measures_of(shard))
        return _Held(self.mosaic.empty_shard(shard), self.mosaic.measures_of(shard, empty=True))

    def _read_ahead(
        self, batches: Sequence[tuple[Shard, list[Tile], bool]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[tuple[Shard, list[Tile], bool], list[Pixels]]]:
        reads: deque[tuple[tuple[Shard, list[Tile], bool], list[Future[Pixels | None]]]] = deque()
        waiting, side = iter(batches), self.mosaic.grid.tile_px
        while True:
            while len(reads) <= _BATCHES_AHEAD and (batch := next(waiting, None)) is not None:
                reads.append((batch, [_submit(pool, self._read, tile) for tile in batch[1]]))
            if not reads:
                return
            batch, futures = reads.popleft()
            with self.clock("wait_for_reading"):
                read = [future.result() for future in futures]
            for tile, pixels in zip(batch[1], read, strict=True):
                readable = pixels is not None
                self.states[tile.row, tile.col] = TileState.WRITTEN if readable else TileState.UNREADABLE
            yield batch, [np.full((side, side, 3), 255, np.uint8) if pixels is None else pixels for pixels in read]

    def _read(self, tile: Tile) -> Pixels | None:
        try:
            return np.asarray(self.slide.read(tile.read))
        except SlideError:
            return None

    def _keep(self, tile: Tile, rgb: Pixels, maps: Maps, shard: Shard, held: _Held) -> None:
        """Put the core of a tile into the maps of its shard, and its measures, if the tile could be read."""
        if self.states[tile.row, tile.col] == TileState.UNREADABLE:
            return
        margin, core = self.mosaic.grid.margin_px, tile.write
        kept = np.s_[margin : margin + core.height, margin : margin + core.width]
        x, y = core.x - shard.region.x, core.y - shard.region.y
        target = held.maps[:, y : y + core.height, x : x + core.width]
        if self.generator.spec.rules is None:
            target[:] = np.rint(maps[:, *kept] * 255).astype(np.uint8)
            return
        if held.measures is not None:
            first_row, first_col = (at // self.mosaic.grid.core_px for at in (shard.region.y, shard.region.x))
            values = measure(np.ascontiguousarray(rgb[kept]), self.stain, self.mosaic.grid.mpp)
            held.measures[tile.row - first_row, tile.col - first_col] = values
        target[:-1] = maps[:, *kept]
        target[-1] = dab_od_map(rgb, self.stain, self.mosaic.grid.mpp)[kept]

    def _settle(self, tiles: list[Tile], write: Future[None]) -> None:
        """Wait until a shard is written, and record the states of the tiles in it."""
        write.result()
        for tile in tiles:
            self.recorded[tile.row, tile.col] = self.states[tile.row, tile.col]
        self.mosaic.mark(self.recorded)

    def _refuse_damaged(self) -> None:
        unreadable, listed = int(np.count_nonzero(self.states == TileState.UNREADABLE)), len(self.mosaic.tiles.tiles)
        if unreadable > _MAX_UNREADABLE * listed:
            raise SlideError(
                f"{self.slide.path}: {unreadable} of {listed} tiles cannot be read; the file is damaged, fetch it again"
            )


def _submit(pool: ThreadPoolExecutor, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Submit a call that sees the context variables of this one: warnings of a slide stay with the slide."""
    return pool.submit(contextvars.copy_context().run, function, *arguments)


class _Clock:
    """Adds up seconds under names."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
