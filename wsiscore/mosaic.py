"""The maps of one slide as one OME-Zarr 0.5 image.

On disk it is a Zarr 3 group: ``0`` holds the maps at full size as (channel, y, x), ``1``, ``2``, … the pyramid for
viewers, ``done`` one byte a tile: 0 to do, 1 written, 2 not readable, and of a mosaic of cells ``quality`` the measures
of each tile as (row, col, measure). A tile's core is a chunk; a square of tiles is a shard, one file that is written in
one step; its states and its measures are files of their own, so that several processes may each write other shards.
Chunks carry a CRC-32C checksum. A missing shard of a written tile is an error, like a wrong checksum.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import shapely
import zarr

from wsiscore.errors import DamagedMosaicError, MosaicError
from wsiscore.files import writing
from wsiscore.ome_zarr import (
    Identity,
    Shard,
    TileState,
    lay_out,
    levels,
    metadata,
    refuse_other,
    shard_region,
    shard_tiles,
    shards_of,
    write_levels,
)
from wsiscore.quality.stored import QUALITY, TileMeasures
from wsiscore.regions import Region
from wsiscore.tiles import TileGrid, TileList

__all__ = ["Mosaic"]

_FORMAT = "wsiscore-mosaic-2"
_FORMATS_READ = ("wsiscore-mosaic-1", _FORMAT)  # the first had one file a chunk, and no checksums
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
            self._group = zarr.open_group(self.path, mode="r+" if writable else "r", zarr_format=3)
            about = cast(dict[str, Any], self._group.attrs["wsiscore"])
            if about["format"] not in _FORMATS_READ:
                raise MosaicError(f"{path} has format {about['format']!r}, this version reads {_FORMAT!r}; infer again")
            self.about: dict[str, Any] = about
            self.tiles = TileList.from_json(about["tiles"], str(path))
            self.channels: tuple[str, ...] = tuple(about["channels"])
            self._level_0 = self._array("0")
            self._done = self._array("done")
            self._quality = TileMeasures(self._array(QUALITY)) if about.get("measures") else None
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
            meta = metadata(_FORMAT, tiles, channels, identity, about)
            lay_out(scratch, tiles, channels, dtype, {**meta, **measured}, measured="measures" in measured)
            scratch.rename(path)  # so that a mosaic is there with all its metadata or not at all
        return cls(path, writable=True)

    @classmethod
    def resume(
        cls, path: Path, tiles: TileList, channels: Sequence[str], identity: Identity, about: Mapping[str, Any]
    ) -> Self | None:
        """Open the mosaic at `path` for writing, if it was started in just this way; None if there is none.

        One of other regions on the same grid keeps its finished tiles and lists the new ones too; a finished one that
        holds more maps than wanted will do. What a killed process left of a layout is removed, and so is an unfinished
        or partly unreadable mosaic of another file at the slide's path.

        Parameters
        ----------
        path, tiles, channels, identity, about
            As in `create`.

        Raises
        ------
        MosaicError, OutputError
            If another mosaic, or something else, is in the way; if the folder cannot be written.
        """
        meta = metadata(_FORMAT, tiles, channels, identity, about)
        with writing(path):
            if not path.exists():
                return None
            found = cls._own(path)
            if found is None or found._is_worthless(identity):
                shutil.rmtree(path)
                return None
            refuse_other(found.path, found.about, meta, complete=found.complete)
            for part in path.rglob("*.partial"):  # what a killed process was writing
                part.unlink(missing_ok=True)
            if found.about["tiles"] != meta["tiles"]:  # the slide was moved, or has other regions
                found._list(tiles, channels)
        return found

    @classmethod
    def join(cls, path: Path, channels: Sequence[str], identity: Identity, about: Mapping[str, Any]) -> Self:
        """Open a mosaic of which other processes write other shards; MosaicError if it was started in another way."""
        found = cls(path, writable=True)
        refuse_other(path, found.about, metadata(_FORMAT, found.tiles, channels, identity, about), complete=False)
        if found._done.chunks[0] != shard_tiles(found.grid):
            raise MosaicError(f"{path} is of an earlier version; finish it without --cluster")
        return found

    @classmethod
    def _own(cls, path: Path) -> Self | None:
        """Return the mosaic at `path`; None for a part of a layout, without the metadata that completes it."""
        try:
            return cls(path, writable=True)
        except MosaicError:
            if not path.is_dir() or not {child.name for child in path.iterdir()} <= _OWN_NAMES:
                raise
            return None

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
        except (OSError, ValueError) as error:
            raise MosaicError(f"{self.path}/done is damaged ({error}); delete {self.path} and infer again") from error

    def missing(self) -> int:
        """Return how many listed tiles are still to do."""
        states = self.states()
        return sum(states[tile] == TileState.TO_DO for tile in self.tiles.tiles)

    def shards(self) -> list[Shard]:
        """Return the shards that hold listed tiles, row by row."""
        return shards_of(self.tiles)

    def _shard_file(self, row: int, col: int) -> Path:
        return self.path.joinpath("0", "c", "0", str(row), str(col))

    def empty_shard(self, shard: Shard) -> Array:
        """Return what a shard holds before anything is written: (C, h, w) of zeros, or white in a picture."""
        shape = (len(self.channels), shard.region.height, shard.region.width)
        return np.full(shape, self._level_0.fill_value, self._level_0.dtype)

    def measures_of(self, shard: Shard, *, empty: bool = False) -> npt.NDArray[np.float32] | None:
        """Return the measures of a shard's tiles as far as they are written, (rows, cols, measures).

        They are nan where nothing is written, everywhere if `empty`, and None if the mosaic has none.
        """
        return self._quality.of(shard.place(self._quality.side), empty=empty) if self._quality else None

    def measures(self) -> npt.NDArray[np.float32] | None:
        """Return the measures of all tiles, (rows, cols, measures) as `wsiscore.quality.measures.MEASURES`.

        They are nan where no tile was read, and None if the mosaic has none: it was made by an earlier version.

        Raises
        ------
        DamagedMosaicError
            If those of a written tile are missing or have the wrong checksum.
        """
        if self._quality is None:
            return None
        values, broken = self._quality.read()
        if not broken:
            lost = np.argwhere((self.states() == TileState.WRITTEN) & np.isnan(values[..., 0])) // self._quality.side
            broken = sorted({(row, col) for row, col in lost.tolist()})
        if broken:
            raise self._damaged(broken, "the measures of tiles cannot be read", f"{QUALITY}/c", "/0")
        return values

    def write_shard(self, shard: Shard, maps: Array, measures: npt.NDArray[np.float32] | None = None) -> None:
        """Write all of a shard in one step.

        Parameters
        ----------
        shard
            One of `shards`.
        maps
            (C, h, w) of the mosaic's dtype, of the size of the shard's region.
        measures
            Of its tiles, as `measures_of`; written before the maps.
        """
        if self._quality is not None and measures is not None:
            self._quality.write(shard.place(self._quality.side), measures)
        at = shard.region
        self._shard_file(*shard.place(shard_tiles(self.grid))).unlink(
            missing_ok=True
        )  # Zarr reads one at the edge first
        target = self._level_0.with_config({"write_empty_chunks": True})
        target[:, at.y : at.y + at.height, at.x : at.x + at.width] = maps

    def mark(self, states: npt.NDArray[np.uint8], shard: Shard | None = None) -> None:
        """Record from (rows, cols) states those of a shard, after `write_shard`, or of all; from one thread."""
        n = shard_tiles(self.grid)
        row, col = shard.place(n) if shard else (0, 0)
        own = np.s_[row * n : (row + 1) * n, col * n : (col + 1) * n] if shard else np.s_[:, :]
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

    def read(self, x: int, y: int, width: int, height: int, channels: Sequence[str] | None = None) -> Array:
        """Read a rectangle, in pixels of the grid's mpp.

        Parameters
        ----------
        x, y, width, height
            Where; cut at the mosaic's edges.
        channels
            Names of the maps to read, in order; by default all.

        Returns
        -------
        (C, h, w) of the mosaic's dtype; 0, or white in a picture, where nothing was written.

        Raises
        ------
        DamagedMosaicError
            If a chunk of a written tile is missing or has the wrong checksum.
        """
        x0, y0, x1, y1 = max(x, 0), max(y, 0), max(x + width, 0), max(y + height, 0)
        self._refuse_missing(x0, y0, min(x1, self.grid.width_px), min(y1, self.grid.height_px))
        try:
            maps = np.asarray(self._level_0[:, y0:y1, x0:x1])
        except Exception as error:
            broken = [place for place in self._shards_of(x0, y0, x1, y1) if self._is_broken(place)]
            raise self._damaged(broken, str(error)) from error
        return maps if channels is None else maps[[self.channels.index(name) for name in channels]]

    def _refuse_missing(self, x0: int, y0: int, x1: int, y1: int) -> None:
        if self.about["format"] != _FORMAT or x0 >= x1 or y0 >= y1:
            return
        n = shard_tiles(self.grid)
        for row, col in self._shards_of(x0, y0, x1, y1):
            own = np.s_[row * n : (row + 1) * n, col * n : (col + 1) * n]
            if not self._shard_file(row, col).is_file() and (self.states(own) == TileState.WRITTEN).any():
                raise self._damaged([(row, col)], "the file is missing")

    def _shards_of(self, x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
        """Return the (row, col) of the shards that a rectangle meets."""
        side = shard_tiles(self.grid) * self.grid.core_px
        rows, cols = (range(start // side, (stop - 1) // side + 1) for start, stop in ((y0, y1), (x0, x1)))
        return [(row, col) for row in rows for col in cols]

    def _is_broken(self, place: tuple[int, int]) -> bool:
        at = shard_region(self.grid, *place)
        try:
            _ = self._level_0[:, at.y : at.y + at.height, at.x : at.x + at.width]
        except Exception:  # noqa: BLE001 - as in `read`
            return True
        return False

    def _damaged(
        self, shards: Sequence[tuple[int, int]], why: str, before: str = "0/c/0", after: str = ""
    ) -> DamagedMosaicError:
        n, states = shard_tiles(self.grid), self.states()
        inside = [
            (row, col) for row, col in self.tiles.tiles if (row // n, col // n) in set(shards) and states[row, col]
        ]
        names = ", ".join(f"{before}/{row}/{col}{after}" for row, col in shards)
        text = f"{self.path} is damaged at {names} ({why}); score the slide itself, which computes it again"
        return DamagedMosaicError(text, inside)

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
        """Average the written shards into the levels for viewers, touching only those, and call it complete."""
        n = shard_tiles(self.grid)
        held = {(row // n, col // n) for row, col in np.argwhere(self.states() == TileState.WRITTEN).tolist()}
        arrays = [self._array(str(level)) for level in range(1, len(levels(self.grid)))]
        write_levels(arrays, held, n * self.grid.core_px, lambda x, y, side: self.read(x, y, side, side))
        self._group.attrs["complete"] = True

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise MosaicError(f"{self.path}/{name} is a {type(array).__name__}, wanted an array; infer again")
        return array
