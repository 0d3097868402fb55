"""The maps of one slide as one OME-Zarr 0.5 image.

On disk it is a Zarr 3 group: ``0`` holds the maps at full size as (channel, y, x), those of cells as the codes of
`wsiscore.map_codes`; ``1``, ``2``, … are the pyramid for viewers, ``done`` is one byte a tile: 0 to do, 1 written, 2
not readable, and of a mosaic of cells ``quality`` holds the measures of each tile as (row, col, measure). A tile's core
is a chunk; a square of tiles is a shard, one file that is written in one step; its levels, states and measures are
files of their own, so that several processes may each write other shards. Chunks carry a CRC-32C checksum. A missing
shard of a written tile is an error, like a wrong checksum.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import shapely
import zarr

from wsiscore.attributes import FORMATS_READ, check_attributes
from wsiscore.errors import DamagedMosaicError, MosaicError
from wsiscore.files import writing
from wsiscore.map_codes import decode
from wsiscore.ome_zarr import Identity, Shard, TileState, lay_out, metadata, refuse_other
from wsiscore.quality.measures import MEASURES
from wsiscore.quality.stored import CHUNK_ERRORS, QUALITY, TileMeasures
from wsiscore.regions import Region
from wsiscore.shards import Place, Shards, array_of, group_of
from wsiscore.tiles import TileGrid, TileList

__all__ = ["Mosaic"]

_log = logging.getLogger("wsiscore")

_OWN_NAMES = {"zarr.json", "done", QUALITY, *map(str, range(32))}

Array = npt.NDArray[np.generic]


class Mosaic:
    """The maps of one slide on disk.

    Use `Mosaic.create` or `Mosaic.open`. Pickles as its path and re-opens where it arrives.

    Parameters
    ----------
    path
        The ``.ome.zarr`` folder.
    writable
        Whether tiles may be written.

    Raises
    ------
    MosaicError
        If the folder is not a mosaic of wsiscore.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = Path(path)
        try:
            self._group = group_of(self.path, "r+" if writable else "r")
            self.about = about = cast(dict[str, Any], self._group.attrs["wsiscore"])
            check_attributes(self.path, about)
            self.tiles = TileList.from_json(about["tiles"], str(path))
            self.channels: tuple[str, ...] = tuple(about["channels"])
            of_tiles = self.grid.rows, self.grid.cols
            self._shards = Shards(self.path, self._group, self.grid, len(self.channels))
            self._done = array_of(self._group, "done", of_tiles)
            self._coded = self._shards.dtype == np.uint8 and about["output"] != "image"
            self._quality = None
            if about.get("measures"):
                self._quality = TileMeasures(array_of(self._group, QUALITY, (*of_tiles, len(MEASURES))))
        except MosaicError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise MosaicError(f"{path} is not a mosaic of wsiscore ({error}); run `wsiscore infer`") from error

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a mosaic for reading; MosaicError if the folder holds none."""
        return cls(path)

    def __reduce__(self) -> tuple[type[Mosaic], tuple[Path]]:
        return Mosaic, (self.path,)

    @classmethod
    def create(
        cls,
        path: Path,
        tiles: TileList,
        channels: Sequence[str],
        dtype: str,
        identity: Identity,
        about: Mapping[str, Any],
        measured: Mapping[str, Any],
    ) -> Self:
        """Start an empty mosaic where there is none.

        Parameters
        ----------
        path
            The folder to write; its parent is made.
        tiles
            What will be read; the grid's cores are the chunks.
        channels
            Names of the maps wanted, in order.
        dtype
            ``float16`` or ``uint8``.
        identity
            All that decides the values.
        about
            JSON-ready: further metadata that must be the same for the mosaic to be continued.
        measured
            JSON-ready: what was measured on the slide. With ``measures``, their names, it gets the array of them.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        scratch = path.with_name(path.name + ".new")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            meta = metadata(tiles, channels, identity, about)
            lay_out(scratch, tiles, channels, dtype, {**meta, **measured}, measured="measures" in measured)
            scratch.rename(path)  # so that a mosaic is there with all its metadata or not at all
        return cls(path, writable=True)

    @classmethod
    def resume(
        cls, path: Path, tiles: TileList, channels: Sequence[str], identity: Identity, about: Mapping[str, Any]
    ) -> Self | None:
        """Open the mosaic at `path` for writing, if it was started in just this way; None if there is none.

        One of other regions on the same grid keeps its finished tiles and lists the new ones too; a finished one that
        holds more maps than wanted will do. One whose metadata or states are damaged is removed with a warning; without
        one, an unfinished or partly unreadable one of another file at the slide's path, or without maps (`drop_maps`).

        Parameters
        ----------
        path, tiles, channels, identity, about
            As in `create`.

        Raises
        ------
        MosaicError, OutputError
            If another mosaic, or something else, is in the way; if the folder cannot be written.
        """
        meta = metadata(tiles, channels, identity, about)
        with writing(path):
            if not path.exists():
                return None
            found = cls._own(path)
            if found is None or found._is_worthless(identity):
                shutil.rmtree(path)
                return None
            refuse_other(found.path, found.about, meta, complete=found.complete)
            if not found.has_maps:
                _log.warning("%s holds no maps, since --keep cells removed them; they are computed again", path)
                shutil.rmtree(path)
                return None
            for part in path.rglob("*.partial"):  # what a killed process was writing
                part.unlink(missing_ok=True)
            if found.about["tiles"] != meta["tiles"]:  # the slide was moved, or has other regions
                found._list(tiles, channels)
        return found

    @classmethod
    def join(cls, path: Path, channels: Sequence[str], identity: Identity, about: Mapping[str, Any]) -> Self:
        """Open a mosaic of which other processes write other shards; MosaicError if it was started in another way."""
        found = cls(path, writable=True)
        refuse_other(path, found.about, metadata(found.tiles, channels, identity, about), complete=False)
        return found

    @classmethod
    def _own(cls, path: Path) -> Self | None:
        """Return the mosaic at `path`; None if it is too damaged to be continued."""
        try:
            found = cls(path, writable=True)
            found.states()
        except MosaicError as error:
            if error.__cause__ is None or not path.is_dir() or {child.name for child in path.iterdir()} - _OWN_NAMES:
                raise  # of another version, or not ours
            _log.warning("%s is damaged (%s) and is computed again", path, error.__cause__)
            return None
        return found

    def _list(self, tiles: TileList, channels: Sequence[str]) -> None:
        """List the tiles of other regions; those that are done stay."""
        states = self.states()
        done = {place for place in self.tiles.tiles if states[place] != TileState.TO_DO}
        if set(tiles.tiles) - done:
            if list(channels) != list(self.channels):
                raise MosaicError(f"{self.path} holds more maps; add its regions with --maps all, or choose another -o")
            self._group.attrs["complete"] = False
        self.tiles = replace(tiles, tiles=tuple(sorted(done | set(tiles.tiles))))
        self.about["tiles"] = self.tiles.to_json()
        self._group.attrs["wsiscore"] = self.about

    def _is_worthless(self, identity: Identity) -> bool:
        """Return whether it is of another file than the slide is now, and not a whole result of that."""
        known: Mapping[str, Any] = self.about.get("identity", {})
        whole = self.complete and bool((self.states() != TileState.UNREADABLE).all())
        return known.get("slide_sha256") != identity.slide_sha256 and not whole

    @property
    def grid(self) -> TileGrid:
        """The grid; its cores are the chunks."""
        return self.tiles.grid

    def states(self, tiles: tuple[slice, slice] = np.s_[:, :]) -> npt.NDArray[np.uint8]:
        """Return the (rows, cols) array of `TileState`, or that of some tiles."""
        try:
            return np.asarray(self._done[tiles], dtype=np.uint8)
        except CHUNK_ERRORS as error:
            raise MosaicError(f"{self.path}/done is damaged ({error}); delete {self.path} and infer again") from error

    def missing(self) -> int:
        """Return how many listed tiles are still to do."""
        states = self.states()
        return sum(states[tile] == TileState.TO_DO for tile in self.tiles.tiles)

    def shards(self) -> list[Shard]:
        """Return the shards that hold listed tiles, row by row."""
        return self._shards.of(self.tiles.tiles)

    def empty_shard(self, shard: Shard) -> Array:
        """Return what a shard holds before anything is written: (C, h, w) of zeros, or white in a picture."""
        return self._shards.empty(shard)

    def measures_of(self, shard: Shard, *, empty: bool = False) -> npt.NDArray[np.float32] | None:
        """Return the measures of a shard's tiles, (rows, cols, measures): nan where none is written, all if `empty`."""
        if self._quality is None:
            return None
        place = shard.place(self._quality.side)
        try:
            return self._quality.of(place, empty=empty)
        except CHUNK_ERRORS as error:
            raise self._damaged([place], str(error), f"{QUALITY}/c", "/0") from error

    def measures(self) -> npt.NDArray[np.float32] | None:
        """Return the measures of all tiles, (rows, cols, measures) as `wsiscore.quality.measures.MEASURES`.

        They are nan where no tile was read, and None if the mosaic has none: it was made by an earlier version.

        Raises
        ------
        DamagedMosaicError
            If those of a written tile are missing or have the wrong checksum.
        """
        values, broken = self._quality.read(self.states() == TileState.WRITTEN) if self._quality else (None, [])
        if broken:
            raise self._damaged(broken, "the measures of tiles cannot be read", f"{QUALITY}/c", "/0")
        return values

    def write_shard(self, shard: Shard, maps: Array, measures: npt.NDArray[np.float32] | None = None) -> None:
        """Write all of a shard, its file of the maps last and in one step.

        Parameters
        ----------
        shard
            One of `shards`.
        maps
            (C, h, w) as `stored` gives them, of the size of the shard's region.
        measures
            Of its tiles, as `measures_of`; written before the maps.
        """
        if self._quality is not None and measures is not None:
            self._quality.write(shard.place(self._quality.side), measures)
        self._shards.write(shard, maps)

    def mark(self, states: npt.NDArray[np.uint8], shard: Shard | None = None) -> None:
        """Record from (rows, cols) states those of a shard, after `write_shard`, or of all; from one thread."""
        own = self._shards.tiles_of(shard.place(self._shards.tiles)) if shard else np.s_[:, :]
        self._done[own] = states[own]

    def reset(self, tiles: Sequence[tuple[int, int]]) -> None:
        """Mark tiles, (row, col), as to do again; the mosaic must be writable."""
        states = self.states()
        for tile in tiles:
            states[tile] = TileState.TO_DO
        self.mark(states)
        self._group.attrs["complete"] = False

    @property
    def complete(self) -> bool:
        """Whether all tiles and the pyramid are written."""
        return bool(self._group.attrs.get("complete", False))

    @property
    def has_maps(self) -> bool:
        """Whether the maps are there: `drop_maps` removes them."""
        return bool(self._group.attrs.get("has_maps", True))

    def drop_maps(self) -> None:
        """Delete the maps, but not the list of tiles, their states and measures; OutputError if that cannot be."""
        with writing(self.path):
            group = zarr.open_group(self.path, mode="r+", zarr_format=3)
            group.attrs["has_maps"] = False
            for level in self.path.glob("[0-9]*/c"):
                shutil.rmtree(level)

    def read(self, x: int, y: int, width: int, height: int, channels: Sequence[str] | None = None) -> Array:
        """Read the values of the maps in a rectangle, in pixels of the grid's mpp.

        Parameters
        ----------
        x, y, width, height
            Where; cut at the mosaic's edges.
        channels
            Names of the maps to read, in order; by default all.

        Returns
        -------
        (C, h, w), uint8 of a picture and float32 or float16 of maps of cells; 0, or white in a picture, where nothing
        was written.

        Raises
        ------
        DamagedMosaicError
            If a chunk of a written tile is missing or has the wrong checksum.
        """
        names = self.channels if channels is None else channels
        maps = self.stored(x, y, width, height)
        if channels is not None:
            maps = maps[[self.channels.index(name) for name in names]]
        return self.values(maps, names)

    def values(self, stored: Array, channels: Sequence[str]) -> Array:
        """Return the values of maps, (C, ...), that are stored; `channels` are their names."""
        return decode(cast(Any, stored), channels) if self._coded else stored

    def stored(self, x: int, y: int, width: int, height: int) -> Array:
        """Read all maps as they are stored, otherwise as `read`."""
        x0, y0, x1, y1 = max(x, 0), max(y, 0), max(x + width, 0), max(y + height, 0)
        if not self.has_maps:
            raise MosaicError(f"{self.path} holds no maps, since --keep cells removed them; score the slide itself")
        within = x0, y0, min(x1, self.grid.width_px), min(y1, self.grid.height_px)
        self._refuse_missing(*within)
        try:
            return self._shards.read(x0, y0, x1, y1)
        except CHUNK_ERRORS as error:
            if broken := self._shards.broken(self._shards.touched(*within)):
                raise self._damaged(broken, str(error)) from error
            raise

    def _refuse_missing(self, x0: int, y0: int, x1: int, y1: int) -> None:
        if self.about["format"] == FORMATS_READ[0] or x0 >= x1 or y0 >= y1:
            return
        for place in self._shards.touched(x0, y0, x1, y1):
            if not self._shards.there(place) and (self.states(self._shards.tiles_of(place)) == TileState.WRITTEN).any():
                raise self._damaged([place], "the file is missing or empty")

    def _damaged(self, shards: Sequence[Place], why: str, before: str = "0/c/0", after: str = "") -> DamagedMosaicError:
        n, states, places = self._shards.tiles, self.states(), set(shards)
        inside = [(row, col) for row, col in self.tiles.tiles if (row // n, col // n) in places and states[row, col]]
        names = [f"{before}/{row}/{col}{after}" for row, col in shards]
        return DamagedMosaicError(self._text_of_damage(names, why), inside)

    def _text_of_damage(self, names: Sequence[str], why: str) -> str:
        return f"{self.path} is damaged at {', '.join(names)} ({why}); score the slide itself, which computes it again"

    def blocks(self, side_px: int) -> Iterator[Region]:
        """Yield the squares of `side_px` pixels of the grid's mpp on a side in which something was written."""
        grid, held = self.grid, self.states() == TileState.WRITTEN
        for y in range(0, grid.height_px, side_px):
            for x in range(0, grid.width_px, side_px):
                width, height = min(side_px, grid.width_px - x), min(side_px, grid.height_px - y)
                rows = slice(y // grid.core_px, (y + height - 1) // grid.core_px + 1)
                cols = slice(x // grid.core_px, (x + width - 1) // grid.core_px + 1)
                if held[rows, cols].any():
                    yield Region(x, y, width, height, grid.mpp)

    def unreadable_um(self) -> shapely.Geometry | None:
        """Return the union of the cores that could not be read, in micrometres, or None."""
        places = np.argwhere(self.states() == TileState.UNREADABLE).tolist()
        cores = [shapely.box(*self.grid.tile(row, col).write.bounds_um) for row, col in places]
        return shapely.union_all(cores) if cores else None

    def finish(self) -> None:
        """Average the coarser levels for viewers, touching only what was written, and call the mosaic complete."""
        self._shards.finish(self._written(), self.stored)
        self._group.attrs["complete"] = True

    def has_levels(self) -> bool:
        """Return whether all files of the coarser levels can be read; log which cannot."""
        if broken := self._shards.broken_levels(self._written()):
            _log.warning("%s", self._text_of_damage(broken, "levels for viewers"))
        return not broken

    def _written(self) -> set[Place]:
        """Return the shards in which a tile is written."""
        n = self._shards.tiles
        return {(row // n, col // n) for row, col in np.argwhere(self.states() == TileState.WRITTEN).tolist()}
