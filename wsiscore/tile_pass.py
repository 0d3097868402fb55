"""One pass over the tiles of a mosaic that are still to do.

Tiles are read ahead in threads, batches go through the generator, and shards into the mosaic.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from wsiscore.errors import ModelError, SlideError
from wsiscore.map_codes import encode
from wsiscore.models.contract import Generator
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import Shard, TileState
from wsiscore.quality.measures import measure
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain, dab_od_map
from wsiscore.threads import submit, threads
from wsiscore.tiles import Tile

__all__ = ["Clock", "TilePass"]

_BATCHES_AHEAD = 2  # read before they are asked for
_CALLS = 2  # batches that the generator has at once
_SHARDS_AHEAD = 2  # written while the next is computed
_MAX_UNREADABLE = 0.05  # fraction of tiles past which a slide is called damaged

Maps = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Batch = tuple[Shard, list[Tile], bool]
"""The shard, some of its tiles, and whether they are the last of it."""


class Clock:
    """Adds up where the time of a pass went.

    Attributes
    ----------
    seconds
        Name -> seconds by the clock: ``network``, ``wait_for_reading`` and ``wait_for_writing`` are waits of one thread
        for each, so that they add up to the whole.
    tiles
        Tiles that were computed.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.tiles = 0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the seconds that the body takes under a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class _Held(NamedTuple):
    """A shard in memory: its maps, and the measures of its tiles if the mosaic holds them."""

    maps: npt.NDArray[np.generic]
    measures: npt.NDArray[np.float32] | None


class TilePass:
    """One pass over the tiles of a mosaic that are still to do.

    Parameters
    ----------
    slide
        What is read.
    generator
        What turns tiles into maps, set for the slide.
    mosaic
        Writable.
    clock
        Adds up where the time goes.
    part
        Numbers of the shards whose tiles are meant, in the order of `Mosaic.shards`; by default all.
    """

    def __init__(
        self, slide: Slide, generator: Generator, mosaic: Mosaic, clock: Clock, part: Sequence[int] | None = None
    ) -> None:
        self.slide, self.generator, self.mosaic, self.clock = slide, generator, mosaic, clock
        shards = mosaic.shards()
        self.shards = shards if part is None else [shards[number] for number in part]
        self.places = [place for shard in self.shards for place in shard.tiles]
        self.stain = Stain.from_json(mosaic.about["stain"])
        self.states = mosaic.states()  # as they will be
        self.recorded = self.states.copy()  # as they are on disk
        self.retried = {place for place in self.places if self.states[place] == TileState.UNREADABLE}

    def fill(self, batch_size: int, progress: bool) -> bool:
        """Read, infer and write every batch of which a tile is still to do; return whether anything was written.

        A batch holds the same tiles in every run, finished or not, since the last digits of a network's sums may
        depend on the size of the batch: so a resumed run gives the very bytes of an uninterrupted one.
        """
        work = list(self._work(batch_size))
        n_tiles, workers = len(self.places), max(2, min(8, threads()))
        with (
            ThreadPoolExecutor(workers, "wsiscore-tile") as pool,
            ThreadPoolExecutor(self._calls(), "wsiscore-network") as network,
            tqdm(
                total=n_tiles,
                initial=n_tiles - sum(self._to_do(place) for place in self.places),
                desc=self.slide.path.name,
                unit=" tiles",
                disable=None if progress else True,
                leave=False,
            ) as bar,
        ):
            try:
                self._compute(work, pool, network, bar.update)
            except BaseException:
                for each in (network, pool):
                    each.shutdown(wait=True, cancel_futures=True)
                raise
        self._refuse_damaged()
        return bool(work)

    def _to_do(self, place: tuple[int, int]) -> bool:
        return bool(self.states[place] == TileState.TO_DO) or place in self.retried

    def _work(self, batch_size: int) -> Iterator[tuple[Shard, list[list[Tile]]]]:
        """Yield the shards with a tile to do, and their batches with one."""
        readable = self._readable_now()
        for shard in self.shards:
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

    def _calls(self) -> int:
        """Return how many batches the generator has at once: while one is copied or awaited, the next is computed."""
        return 1 if self.generator.device == "mps" else _CALLS

    def _compute(
        self,
        work: Sequence[tuple[Shard, list[list[Tile]]]],
        pool: ThreadPoolExecutor,
        network: ThreadPoolExecutor,
        advance: Callable[[int], Any],
    ) -> None:
        batches = [(shard, batch, batch is all_of[-1]) for shard, all_of in work for batch in all_of]
        writes: deque[tuple[Shard, list[Tile], Future[None]]] = deque()
        held, kept, done = None, deque[Future[None]](), list[Tile]()
        for (shard, tiles, last), pixels, maps in self._infer_ahead(batches, pool, network):
            if held is None:
                held = self._begin(shard)
            for tile, rgb, map_ in zip(tiles, pixels, maps, strict=True):
                kept.append(submit(pool, self._keep, tile, rgb, map_, shard, held))
            done += tiles
            self.clock.tiles += len(tiles)
            advance(len(tiles))
            if last:
                with self.clock("wait_for_writing"):
                    while kept:
                        kept.popleft().result()
                    write = submit(pool, self.mosaic.write_shard, shard, held.maps, held.measures)
                    writes.append((shard, done, write))
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
            return _Held(self.mosaic.stored(at.x, at.y, at.width, at.height), self.mosaic.measures_of(shard))
        return _Held(self.mosaic.empty_shard(shard), self.mosaic.measures_of(shard, empty=True))

    def _infer_ahead(
        self, batches: Sequence[Batch], pool: ThreadPoolExecutor, network: ThreadPoolExecutor
    ) -> Iterator[tuple[Batch, list[Pixels], Maps]]:
        """Yield each batch with its pixels and maps; those after it are already with the generator."""
        asked: deque[tuple[Batch, list[Pixels], Future[Maps]]] = deque()
        for batch, pixels in self._read_ahead(batches, pool):
            asked.append((batch, pixels, submit(network, self._infer, pixels)))
            if len(asked) > self._calls():
                yield self._await(*asked.popleft())
        while asked:
            yield self._await(*asked.popleft())

    def _await(self, batch: Batch, pixels: list[Pixels], maps: Future[Maps]) -> tuple[Batch, list[Pixels], Maps]:
        with self.clock("network"):
            return batch, pixels, maps.result()

    def _infer(self, pixels: list[Pixels]) -> Maps:
        maps = self.generator(np.stack(pixels).transpose(0, 3, 1, 2))
        if not math.isfinite(float(maps.sum())):
            raise ModelError(
                f"{self.generator.spec.family} gives maps that are not finite numbers on {self.slide.path}; "
                "its weights are broken or do not fit it, import or train the model again"
            )
        return maps

    def _read_ahead(self, batches: Sequence[Batch], pool: ThreadPoolExecutor) -> Iterator[tuple[Batch, list[Pixels]]]:
        reads: deque[tuple[Batch, list[Future[Pixels | None]]]] = deque()
        waiting, side = iter(batches), self.mosaic.grid.tile_px
        while True:
            while len(reads) <= _BATCHES_AHEAD and (batch := next(waiting, None)) is not None:
                reads.append((batch, [submit(pool, self._read, tile) for tile in batch[1]]))
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
        cores = [*maps[:, *kept], dab_od_map(rgb, self.stain, self.mosaic.grid.mpp)[kept]]
        for channel, own, at in zip(self.mosaic.channels, cores, target, strict=True):
            at[:] = encode(own, channel) if target.dtype == np.uint8 else own

    def _settle(self, shard: Shard, tiles: list[Tile], write: Future[None]) -> None:
        """Wait until a shard is written, and record the states of the tiles in it."""
        write.result()
        for tile in tiles:
            self.recorded[tile.row, tile.col] = self.states[tile.row, tile.col]
        self.mosaic.mark(self.recorded, shard)

    def _refuse_damaged(self) -> None:
        unreadable, listed = int(np.count_nonzero(self.states == TileState.UNREADABLE)), len(self.mosaic.tiles.tiles)
        if unreadable > _MAX_UNREADABLE * listed:
            raise SlideError(
                f"{self.slide.path}: {unreadable} of {listed} tiles cannot be read; the file is damaged, fetch it again"
            )
