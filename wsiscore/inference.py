"""A generator over a slide: tiles read ahead in threads, batches through the network, cores into the mosaic."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from wsiscore.errors import ModelError, MosaicError, OutputError, SlideError
from wsiscore.models.contract import Generator, SlideAdaptive
from wsiscore.mosaic import Mosaic, TileState
from wsiscore.regions import Roi
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain, dab_od_map, pink_share
from wsiscore.tiles import Tile, TileList

__all__ = ["DAB_CHANNEL", "infer", "infer_tiles"]

DAB_CHANNEL = "dab_od"
"""Map that every mosaic of cells carries besides the generator's: DAB optical density around each pixel."""

_BATCH_PX = 16 * 256**2  # pixels of a default batch: large enough to fill a device, small beside its memory
_BATCHES_AHEAD = 2  # read before they are asked for
_SAMPLE_TILES = 16  # read first, to learn the slide's stains
_MAX_UNREADABLE = 0.05  # share of tiles past which a slide is called damaged

Maps = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def infer(
    slide: Slide,
    rois: Sequence[Roi],
    generator: Generator,
    path: Path | str,
    *,
    tile_px: int | None = None,
    progress: bool = False,
) -> Mosaic:
    """Run a generator over the ROIs of a slide.

    Parameters
    ----------
    slide
        What is read.
    rois
        Where; every tile that one of them touches is read.
    generator
        What turns tiles into maps.
    path
        The ``.ome.zarr`` folder to write, or to go on with after an interruption.
    tile_px
        Side of a tile in pixels of the generator's mpp; by default the generator's own.
    progress
        Whether to show tiles per second on a terminal.

    Returns
    -------
    Mosaic
        Complete, with its pyramid. The same bytes whether it was interrupted or not.

    Raises
    ------
    MosaicError
        If `path` holds a mosaic made in another way.
    SlideError
        If more than one tile in twenty cannot be read.
    OutputError
        If the mosaic cannot be written.
    """
    spec = generator.spec
    tiles = TileList.plan(slide, rois, mpp=spec.mpp, tile_px=tile_px or spec.tile_px, margin_px=spec.margin_px)
    return infer_tiles(slide, tiles, generator, path, progress=progress)


def infer_tiles(
    slide: Slide,
    tiles: TileList,
    generator: Generator,
    path: Path | str,
    *,
    model: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    seconds: dict[str, float] | None = None,
) -> Mosaic:
    """Run a generator over listed tiles.

    Parameters
    ----------
    slide, generator, path, progress
        As in `infer`, as are the result and the errors it shares.
    tiles
        The grid and the tiles, at the generator's mpp.
    model
        JSON-ready provenance of the generator, kept in the mosaic; another model there is an error.
    batch_size
        Tiles a batch; by default as many as make 16 tiles of 256 px.
    seconds
        Filled with where the time went: ``network``, and the waits for reading and writing.

    Raises
    ------
    ModelError
        If the generator cannot take tiles of this size.
    MosaicError
        If the tiles are at another mpp than the generator's, or `path` holds a mosaic made in another way.
    """
    spec, grid = generator.spec, tiles.grid
    if grid.tile_px % spec.multiple_px:
        raise ModelError(
            f"{spec.family} reads tiles whose side is a multiple of {spec.multiple_px} px, got {grid.tile_px}"
        )
    if abs(grid.mpp / spec.mpp - 1) > 1e-3:
        raise MosaicError(
            f"the tiles were laid at {grid.mpp} µm/px and {spec.family} reads {spec.mpp}; "
            f"lay them with `wsiscore tile --at {spec.mpp}`"
        )
    clock = _Clock({} if seconds is None else seconds)
    with clock("sample"):
        sample = _sample(slide, tiles)
        stain = Stain.estimate(sample) if len(sample) else Stain.default()
        if isinstance(generator, SlideAdaptive) and len(sample):
            generator = generator.for_slide(sample.transpose(0, 3, 1, 2))
    about = {
        "slide_size_px": [slide.width_px, slide.height_px],
        "model": dict(model or {"family": spec.family}),
        "output": spec.output,
        **({"virtual": asdict(slide.virtual)} if slide.virtual else {}),
        "rules": spec.rules.to_json() if spec.rules else {},
        "stain": stain.to_json(),
        "pink_share": round(pink_share(sample, stain.white), 4),
        "found": generator.settings if isinstance(generator, SlideAdaptive) else {},
    }
    channels = (*spec.channels, DAB_CHANNEL) if spec.rules else spec.channels
    mosaic = Mosaic.create(Path(path), tiles, channels, spec.dtype, about)
    batch_size = batch_size or max(1, _BATCH_PX // grid.tile_px**2)
    run = _Run(slide, generator, mosaic, stain, clock)
    try:
        if not mosaic.complete:
            run.fill(batch_size, progress)
            with clock("pyramid"):
                mosaic.finish()
    except OSError as error:
        if isinstance(error, OutputError | SlideError):
            raise
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}); what is finished is kept, run it again"
        ) from error
    return mosaic


class _Run:
    """One pass over the tiles that are still to do."""

    def __init__(self, slide: Slide, generator: Generator, mosaic: Mosaic, stain: Stain, clock: _Clock) -> None:
        self.slide, self.generator, self.mosaic, self.stain, self.clock = slide, generator, mosaic, stain, clock
        self.states = mosaic.states()

    def fill(self, batch_size: int, progress: bool) -> None:
        """Read, infer and write every batch of which a tile is still to do.

        A batch holds the same tiles in every run, finished or not, since the last digits of a network's sums may
        depend on the size of the batch: so a resumed run gives the very bytes of an uninterrupted one.
        """
        grid, listed = self.mosaic.grid, self.mosaic.tiles.tiles
        batches = [listed[start : start + batch_size] for start in range(0, len(listed), batch_size)]
        to_do = [batch for batch in batches if any(self.states[place] == TileState.TO_DO for place in batch)]
        with (
            ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), "wsiscore-tile") as pool,
            tqdm(
                total=len(listed),
                initial=int(np.count_nonzero(self.states)),
                desc=self.slide.path.name,
                unit=" tiles",
                disable=None if progress else True,
                leave=False,
            ) as bar,
        ):
            writes: deque[tuple[list[Tile], list[Future[None]]]] = deque()
            try:
                for tiles, pixels in self._read_ahead(
                    [[grid.tile(*place) for place in batch] for batch in to_do], pool
                ):
                    with self.clock("network"):
                        maps = self.generator(np.stack(pixels).transpose(0, 3, 1, 2))
                    writes.append((tiles, self._submit_writes(tiles, pixels, maps, pool)))
                    if len(writes) > _BATCHES_AHEAD:
                        bar.update(self._settle(*writes.popleft()))
                while writes:
                    bar.update(self._settle(*writes.popleft()))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._refuse_damaged()

    def _read_ahead(
        self, batches: Sequence[list[Tile]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Tile], list[Pixels]]]:
        reads: deque[tuple[list[Tile], list[Future[Pixels | None]]]] = deque()
        waiting = iter(batches)
        while True:
            while len(reads) <= _BATCHES_AHEAD and (batch := next(waiting, None)) is not None:
                reads.append((batch, [pool.submit(self._read, tile) for tile in batch]))
            if not reads:
                return
            tiles, futures = reads.popleft()
            with self.clock("wait_for_reading"):
                read = [future.result() for future in futures]
            side = self.mosaic.grid.tile_px
            for tile, pixels in zip(tiles, read, strict=True):
                if pixels is None:
                    self.states[tile.row, tile.col] = TileState.UNREADABLE
            yield tiles, [np.full((side, side, 3), 255, np.uint8) if pixels is None else pixels for pixels in read]

    def _read(self, tile: Tile) -> Pixels | None:
        try:
            return np.asarray(self.slide.read(tile.read))
        except SlideError:
            return None

    def _submit_writes(
        self, tiles: list[Tile], pixels: list[Pixels], maps: Maps, pool: ThreadPoolExecutor
    ) -> list[Future[None]]:
        return [
            pool.submit(self._write, tile, rgb, map_)
            for tile, rgb, map_ in zip(tiles, pixels, maps, strict=True)
            if self.states[tile.row, tile.col] == TileState.TO_DO
        ]

    def _write(self, tile: Tile, rgb: Pixels, maps: Maps) -> None:
        margin, core = self.mosaic.grid.margin_px, tile.write
        kept = np.s_[margin : margin + core.height, margin : margin + core.width]
        if self.generator.spec.rules is None:
            self.mosaic.write(tile, np.rint(maps[:, *kept] * 255).astype(np.uint8))
            return
        dab = dab_od_map(rgb, self.stain, self.mosaic.grid.mpp)
        self.mosaic.write(tile, np.concatenate([maps[:, *kept], dab[None, *kept]]).astype(np.float16))

    def _settle(self, tiles: list[Tile], writes: list[Future[None]]) -> int:
        with self.clock("wait_for_writing"):
            for write in writes:
                write.result()
        new = [tile for tile in tiles if self.states[tile.row, tile.col] != TileState.WRITTEN]
        for tile in new:
            if self.states[tile.row, tile.col] == TileState.TO_DO:
                self.states[tile.row, tile.col] = TileState.WRITTEN
        self.mosaic.mark(self.states, new)
        return len(new)

    def _refuse_damaged(self) -> None:
        unreadable, listed = int(np.count_nonzero(self.states == TileState.UNREADABLE)), len(self.mosaic.tiles.tiles)
        if unreadable > _MAX_UNREADABLE * listed:
            raise SlideError(
                f"{self.slide.path}: {unreadable} of {listed} tiles cannot be read; the file is damaged, fetch it again"
            )


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


def _sample(slide: Slide, tiles: TileList) -> Pixels:
    """Read a few tiles spread evenly over the list: (N, H, W, 3), N possibly 0."""
    listed, side, read = tiles.tiles, tiles.grid.tile_px, []
    n = min(_SAMPLE_TILES, len(listed))
    for i in range(n):
        try:
            read.append(slide.read(tiles.grid.tile(*listed[i * len(listed) // n]).read))
        except SlideError:
            continue
    return np.stack(read) if read else np.empty((0, side, side, 3), np.uint8)
