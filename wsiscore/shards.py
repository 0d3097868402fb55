"""The files of a mosaic: each holds a square of tiles, and is written in one step.

The file of the maps comes last of those of its square: where it is, so are the levels that are written with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import zarr

from wsiscore.errors import MosaicError
from wsiscore.ome_zarr import Shard
from wsiscore.pyramid import levels, reductions, with_shards, write_levels
from wsiscore.quality.stored import CHUNK_ERRORS
from wsiscore.regions import Region
from wsiscore.tiles import TileGrid

__all__ = ["Place", "Shards", "array_of", "group_of"]

_METADATA_ERRORS = (*CHUNK_ERRORS, KeyError, TypeError, AttributeError)  # what Zarr raises of a zarr.json

Array = npt.NDArray[np.generic]
Place = tuple[int, int]
"""(row, col) of a shard."""


def group_of(path: Path, mode: Literal["r", "r+"]) -> zarr.Group:
    """Open the group of a mosaic; MosaicError if it is missing, or its metadata are damaged."""
    try:
        return zarr.open_group(path, mode=mode, zarr_format=3)
    except _METADATA_ERRORS as error:
        raise MosaicError(f"{path} is not a mosaic of wsiscore ({error}); run `wsiscore infer`") from error


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return an array of a mosaic; MosaicError if its metadata are damaged, or something else has its name."""
    try:
        array = group[name]
    except _METADATA_ERRORS as error:
        raise MosaicError(f"{group.store_path}/{name} is damaged ({error}); run `wsiscore infer` again") from error
    if not isinstance(array, zarr.Array):
        raise MosaicError(f"{group.store_path}/{name} is a {type(array).__name__}, wanted an array; infer again")
    return array


class Shards:
    """The files of the maps and of their levels.

    Parameters
    ----------
    path
        The ``.ome.zarr`` folder.
    group
        The same, open.
    grid
        Of the tiles.

    Attributes
    ----------
    tiles
        How many tiles lie side by side in a shard.
    """

    def __init__(self, path: Path, group: zarr.Group, grid: TileGrid) -> None:
        self._path, self._group, self._grid = path, group, grid
        self._maps = array_of(group, "0")
        self.dtype = self._maps.dtype
        self.side_px = (self._maps.shards or self._maps.chunks)[-1]  # mosaics of the first format have no shards
        self.tiles = self.side_px // grid.core_px

    def of(self, tiles: Sequence[tuple[int, int]]) -> list[Shard]:
        """Return the shards that hold tiles, (row, col), row by row."""
        squares: dict[Place, list[tuple[int, int]]] = {}
        for row, col in tiles:
            squares.setdefault((row // self.tiles, col // self.tiles), []).append((row, col))
        return [Shard(self._region(*place), tuple(squares[place])) for place in sorted(squares)]

    def empty(self, shard: Shard) -> Array:
        """Return what a shard holds before anything is written: (C, h, w) of zeros, or white in a picture."""
        shape = (self._maps.shape[0], shard.region.height, shard.region.width)
        return np.full(shape, self._maps.fill_value, self.dtype)

    def write(self, shard: Shard, maps: Array) -> None:
        """Write (C, h, w) of the size of a shard's region, as stored, with its part of the next levels."""
        at, place = shard.region, shard.place(self.tiles)
        above = with_shards(self._grid) if self._maps.shards else 0
        for level, part in enumerate(reductions(maps, above), 1):
            self._write(level, place, at.x >> level, at.y >> level, part)
        self._write(0, place, at.x, at.y, maps)

    def _write(self, level: int, place: Place, x: int, y: int, maps: Array) -> None:
        self._file(place, level).unlink(missing_ok=True)  # Zarr reads one at the edge first
        target = array_of(self._group, str(level)).with_config({"write_empty_chunks": True})
        target[:, y : y + maps.shape[1], x : x + maps.shape[2]] = cast(Any, maps)

    def read(self, x0: int, y0: int, x1: int, y1: int) -> Array:
        """Return the maps in a rectangle as stored; one of `CHUNK_ERRORS` if a file is damaged."""
        return np.asarray(self._maps[:, y0:y1, x0:x1])

    def there(self, place: Place) -> bool:
        """Return whether the file of a shard exists and is not empty: Zarr reads an empty one as zeros."""
        file = self._file(place)
        return file.is_file() and file.stat().st_size > 0

    def touched(self, x0: int, y0: int, x1: int, y1: int) -> Iterator[Place]:
        """Yield the shards that a rectangle touches."""
        for row in range(y0 // self.side_px, (y1 - 1) // self.side_px + 1):
            yield from ((row, col) for col in range(x0 // self.side_px, (x1 - 1) // self.side_px + 1))

    def broken(self, places: Iterator[Place]) -> list[Place]:
        """Return those that cannot be read."""
        return [place for place in places if self._is_broken(self._region(*place))]

    def finish(self, written: Collection[Place]) -> None:
        """Write the levels that are not written with the shards, of those shards that are written."""
        last = with_shards(self._grid)
        below, *above = (array_of(self._group, str(level)) for level in range(last, len(levels(self._grid))))
        write_levels(below, above, written, 2 ** (last + 1))

    def _is_broken(self, at: Region) -> bool:
        try:
            self.read(at.x, at.y, at.x + at.width, at.y + at.height)
        except CHUNK_ERRORS:
            return True
        return False

    def _region(self, row: int, col: int) -> Region:
        grid, side = self._grid, self.side_px
        x, y = col * side, row * side
        return Region(x, y, min(side, grid.width_px - x), min(side, grid.height_px - y), grid.mpp)

    def _file(self, place: Place, level: int = 0) -> Path:
        return self._path / str(level) / "c" / "0" / str(place[0]) / str(place[1])
