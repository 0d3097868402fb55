"""The files of a mosaic: each holds a square of tiles, and is written in one step.

The file of the maps comes last of those of its square: where it is, so are the levels that are written with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import zarr

from wsiscore.errors import MosaicError
from wsiscore.ome_zarr import Shard, lay_out_level
from wsiscore.pyramid import levels, reductions, shard_px, with_shards, write_levels
from wsiscore.quality.stored import CHUNK_ERRORS
from wsiscore.regions import Region
from wsiscore.tiles import TileGrid

__all__ = ["Place", "Shards", "array_of", "group_of"]

_METADATA_ERRORS = (
    *CHUNK_ERRORS,
    ArithmeticError,
    KeyError,
    TypeError,
    AttributeError,
)  # what Zarr raises of a zarr.json
_DTYPES = ("float16", "uint8")

Array = npt.NDArray[np.generic]
Place = tuple[int, int]
"""(row, col) of a shard."""


def group_of(path: Path, mode: Literal["r", "r+"]) -> zarr.Group:
    """Open the group of a mosaic; MosaicError if it is missing, or its metadata are damaged."""
    try:
        return zarr.open_group(path, mode=mode, zarr_format=3)
    except _METADATA_ERRORS as error:
        raise MosaicError(f"{path} is not a mosaic of wsiscore ({error}); run `wsiscore infer`") from error


def array_of(group: zarr.Group, name: str, shape: tuple[int, ...]) -> zarr.Array[Any]:
    """Return an array of a mosaic; MosaicError if its metadata are damaged, or something else has its name."""
    try:
        array = group[name]
    except _METADATA_ERRORS as error:
        raise MosaicError(f"{group.store_path}/{name} is damaged ({error}); run `wsiscore infer` again") from error
    if not isinstance(array, zarr.Array):
        raise MosaicError(f"{group.store_path}/{name} is a {type(array).__name__}, wanted an array; infer again")
    if array.shape != shape:
        raise MosaicError(f"{group.store_path}/{name} has the shape {array.shape}, wanted {shape}; infer again")
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
    n_channels
        Number of maps.

    Attributes
    ----------
    tiles
        How many tiles lie side by side in a shard.
    """

    def __init__(self, path: Path, group: zarr.Group, grid: TileGrid, n_channels: int) -> None:
        self._path, self._group, self._grid, self._n_channels = path, group, grid, n_channels
        self._maps = self._level(0)
        self.dtype = self._maps.dtype
        whole = self._maps.shards or self._maps.chunks  # mosaics of the first format have no shards
        self.side_px = side = whole[-1]
        if whole != (n_channels, side, side) or side % grid.core_px or self.dtype not in _DTYPES:
            raise MosaicError(f"{path}/0 holds {self.dtype} in shards of {whole}, which are not ours; infer again")
        self.tiles = self.side_px // grid.core_px

    def of(self, tiles: Sequence[tuple[int, int]]) -> list[Shard]:
        """Return the shards that hold tiles, (row, col), row by row."""
        squares: dict[Place, list[tuple[int, int]]] = {}
        for row, col in tiles:
            squares.setdefault((row // self.tiles, col // self.tiles), []).append((row, col))
        return [Shard(self.region(place), tuple(squares[place])) for place in sorted(squares)]

    def tiles_of(self, place: Place) -> tuple[slice, slice]:
        """Return the (rows, cols) of the tiles of a shard."""
        row, col = place[0] * self.tiles, place[1] * self.tiles
        return slice(row, row + self.tiles), slice(col, col + self.tiles)

    def empty(self, shard: Shard) -> Array:
        """Return what a shard holds before anything is written: (C, h, w) of zeros, or white in a picture."""
        shape = (self._maps.shape[0], shard.region.height, shard.region.width)
        return np.full(shape, self._maps.fill_value, self.dtype)

    def write(self, shard: Shard, maps: Array) -> None:
        """Write (C, h, w) of the size of a shard's region, as stored, with its part of the next levels."""
        at, place = shard.region, shard.place(self.tiles)
        self.write_levels(place, maps)
        self._write(0, place, at.x, at.y, maps)

    def write_levels(self, place: Place, maps: Array) -> None:
        """Write what `write` writes, but for the maps themselves."""
        at, above = self.region(place), with_shards(self._grid) if self._maps.shards else 0
        for level, part in enumerate(reductions(maps, above), 1):
            self._write(level, place, at.x >> level, at.y >> level, part)

    def _write(self, level: int, place: Place, x: int, y: int, maps: Array) -> None:
        self._file(place, level).unlink(missing_ok=True)  # Zarr reads one at the edge first
        target = self._level(level).with_config({"write_empty_chunks": True})
        target[:, y : y + maps.shape[1], x : x + maps.shape[2]] = cast(Any, maps)

    def read(self, x0: int, y0: int, x1: int, y1: int) -> Array:
        """Return the maps in a rectangle as stored; one of `CHUNK_ERRORS` if a file is damaged."""
        return np.asarray(self._maps[:, y0:y1, x0:x1])

    def there(self, place: Place) -> bool:
        """Return whether the file of a shard exists and is not empty: Zarr reads an empty one as zeros."""
        return self._there(place, 0)

    def _there(self, place: Place, level: int) -> bool:
        file = self._file(place, level)
        return file.is_file() and file.stat().st_size > 0

    def touched(self, x0: int, y0: int, x1: int, y1: int) -> Iterator[Place]:
        """Yield the shards that a rectangle touches."""
        for row in range(y0 // self.side_px, (y1 - 1) // self.side_px + 1):
            yield from ((row, col) for col in range(x0 // self.side_px, (x1 - 1) // self.side_px + 1))

    def broken(self, places: Iterator[Place]) -> list[Place]:
        """Return those that cannot be read."""
        return [place for place in places if self._is_broken(place, 0)]

    def broken_levels(self, written: Collection[Place], most: int | None = None) -> list[str]:
        """Return the files of the levels above the first, up to `most`, that are missing or cannot be read."""
        names, last = [], with_shards(self._grid)
        for level in self._levels(most):
            try:
                self._level(level)
            except MosaicError:
                names.append(f"{level}/zarr.json")
                continue
            shift = 0 if level <= last else level
            for place in sorted({(row >> shift, col >> shift) for row, col in written}):
                if not self._there(place, level) or self._is_broken(place, level):
                    names.append(f"{level}/c/0/{place[0]}/{place[1]}")
        return names

    def finish(self, written: Collection[Place], read: Callable[[int, int, int, int], Array]) -> None:
        """Write the levels that are not written with the shards, and those that are where a file of them is broken.

        Parameters
        ----------
        written
            The shards that are written.
        read
            Returns the maps as stored, given x, y, width, height.
        """
        last = with_shards(self._grid)
        for level in self._levels():
            try:
                self._level(level)
            except MosaicError:
                lay_out_level(self._group, self._grid, level, self._n_channels, str(self.dtype), self._maps.fill_value)
        if self.broken_levels(written, last):
            for place in sorted(written):
                at = self.region(place)
                self.write_levels(place, read(at.x, at.y, at.width, at.height))
        below, *above = (self._level(level) for level in range(last, len(levels(self._grid))))
        for level, (row, col) in product(range(last + 1, len(levels(self._grid))), written):
            self._file((row >> level, col >> level), level).unlink(missing_ok=True)  # Zarr reads one at the edge first
        write_levels(below, above, written, 2 ** (last + 1))

    def _levels(self, most: int | None = None) -> range:
        """Return the levels above the first, up to `most`; none of mosaics without shards, which are not continued."""
        count = len(levels(self._grid)) - 1
        return range(1, 1 + min(count, count if most is None else most)) if self._maps.shards else range(0)

    def _level(self, level: int) -> zarr.Array[Any]:
        return array_of(self._group, str(level), (self._n_channels, *levels(self._grid)[level]))

    def _is_broken(self, place: Place, level: int) -> bool:
        side = shard_px(self._grid, level)
        y, x = place[0] * side, place[1] * side
        try:
            _ = self._level(level)[:, y : y + side, x : x + side]
        except CHUNK_ERRORS:
            return True
        return False

    def region(self, place: Place) -> Region:
        """Return the region of a shard, cut at the slide's edge."""
        grid, side = self._grid, self.side_px
        x, y = place[1] * side, place[0] * side
        return Region(x, y, min(side, grid.width_px - x), min(side, grid.height_px - y), grid.mpp)

    def _file(self, place: Place, level: int = 0) -> Path:
        return self._path / str(level) / "c" / "0" / str(place[0]) / str(place[1])
