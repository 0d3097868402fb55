"""The maps of one slide as one OME-Zarr 0.5 image: a tile's core is a chunk, and a chunk has one writer.

On disk it is a Zarr 3 group: ``0`` holds the maps at full size as (channel, y, x), ``1``, ``2``, … the pyramid
for viewers, and ``done`` one byte a tile: 0 to do, 1 written, 2 not readable. A chunk file that is missing means
nothing, since Zarr drops empty ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import shapely
import zarr
from zarr.codecs import ZstdCodec

from wsiscore.errors import MosaicError, OutputError
from wsiscore.regions import Region
from wsiscore.tiles import Tile, TileGrid, TileList

__all__ = ["Mosaic", "TileState"]

_FORMAT = "wsiscore-mosaic-1"
_SMALLEST_LEVEL_PX = 512  # the pyramid ends when a level fits in this
_COLORS = {"positive": "FF4040", "negative": "4080FF", "red": "FF0000", "green": "00FF00", "blue": "0000FF"}
"""Of a map in viewers, by the last word of its name."""


class TileState(IntEnum):
    """What the ``done`` array says of a tile."""

    TO_DO = 0
    WRITTEN = 1
    UNREADABLE = 2


class Mosaic:
    """The maps of one slide, chunk for chunk on disk.

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
        If the folder holds no mosaic of wsiscore.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = Path(path)
        try:
            self._group = zarr.open_group(self.path, mode="r+" if writable else "r", zarr_format=3)
            about = cast(dict[str, Any], self._group.attrs["wsiscore"])
            if about["format"] != _FORMAT:
                raise MosaicError(f"{path} has format {about['format']!r}, this version reads {_FORMAT!r}; infer again")
            self.about: dict[str, Any] = about
            self.tiles = TileList.from_json(about["tiles"], str(path))
            self.channels: tuple[str, ...] = tuple(about["channels"])
            self._level_0 = self._array("0")
            self._done = self._array("done")
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, MosaicError):
                raise
            raise MosaicError(
                f"{path} is not a mosaic of wsiscore ({error}); make one with `wsiscore infer`"
            ) from error

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a mosaic for reading; MosaicError if the folder holds none."""
        return cls(path)

    def __reduce__(self) -> tuple[type[Mosaic], tuple[Path]]:
        return Mosaic, (self.path,)

    @classmethod
    def create(cls, path: Path, tiles: TileList, channels: Sequence[str], dtype: str, about: Mapping[str, Any]) -> Self:
        """Start an empty mosaic, or open the one that is there if it was started in just this way.

        A finished one that holds more maps than are wanted serves as well.

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
        about
            JSON-ready: all that decides the values, above all the model and its weights' hash. A mosaic that was
            started with anything else in it is stale.

        Raises
        ------
        MosaicError
            If another mosaic, or something else, is in the way.
        OutputError
            If the folder cannot be written.
        """
        meta = {"format": _FORMAT, "channels": list(channels), "tiles": tiles.to_json(), **about}
        meta = json.loads(json.dumps(meta))  # as it will be read back, tuples as lists
        if path.exists():
            found = cls(path, writable=True)
            _refuse_stale(found, meta)
            if not found.complete:
                for part in path.rglob("*.partial"):  # what a killed run was writing
                    part.unlink(missing_ok=True)
            return found
        scratch = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _lay_out(scratch, tiles, channels, dtype, meta)
            scratch.rename(path)  # so that a mosaic is there with all its metadata or not at all
        except OSError as error:
            raise OutputError(
                f"cannot write {path} ({error.strerror or error}); choose another folder with -o"
            ) from error
        return cls(path, writable=True)

    @property
    def grid(self) -> TileGrid:
        """The grid; its cores are the chunks."""
        return self.tiles.grid

    def states(self) -> npt.NDArray[np.uint8]:
        """Return the (rows, cols) array of `TileState`."""
        return np.asarray(self._done[:], dtype=np.uint8)

    def missing(self) -> int:
        """Return how many listed tiles are still to do."""
        states = self.states()
        return sum(states[tile] == TileState.TO_DO for tile in self.tiles.tiles)

    def write(self, tile: Tile, maps: npt.NDArray[np.generic]) -> None:
        """Write a tile's core: (C, core, core) or smaller at the slide's edge, of the mosaic's dtype."""
        core = tile.write
        self._level_0[:, core.y : core.y + core.height, core.x : core.x + core.width] = maps

    def mark(self, states: npt.NDArray[np.uint8], tiles: Sequence[Tile]) -> None:
        """Record the states of these tiles, out of the whole (rows, cols) array; after `write`, from one thread."""
        for row in sorted({tile.row for tile in tiles}):  # a row is a chunk
            self._done[row, :] = states[row]

    @property
    def complete(self) -> bool:
        """Whether all tiles and the pyramid are written."""
        return bool(self._group.attrs.get("complete", False))

    def read(
        self, x: int, y: int, width: int, height: int, channels: Sequence[str] | None = None
    ) -> npt.NDArray[np.generic]:
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
        """
        window = (slice(max(y, 0), max(y + height, 0)), slice(max(x, 0), max(x + width, 0)))
        maps = np.asarray(self._level_0[:, *window])
        return maps if channels is None else maps[[self.channels.index(name) for name in channels]]

    def blocks(self, side_px: int) -> Iterator[Region]:
        """Yield the squares of this side, cut at the mosaic's edges, in which something was written."""
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
        """Average the written chunks into the levels for viewers, touching only those, and call it complete."""
        held = self.states() == TileState.WRITTEN
        source = self._level_0
        for level in range(1, len(_levels(self.grid))):
            target = self._array(str(level))
            held = np.pad(held, [(0, n % 2) for n in held.shape])
            held = held[0::2, 0::2] | held[1::2, 0::2] | held[0::2, 1::2] | held[1::2, 1::2]
            side = self.grid.core_px
            for row, col in zip(*np.nonzero(held), strict=True):
                y, x = int(row) * side, int(col) * side
                block = np.asarray(source[:, 2 * y : 2 * (y + side), 2 * x : 2 * (x + side)])
                target[:, y : y + side, x : x + side] = _halve(block)
            source = target
        self._group.attrs["complete"] = True

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise MosaicError(f"{self.path}/{name} is a {type(array).__name__}, wanted an array; infer again")
        return array


def _refuse_stale(found: Mosaic, meta: Mapping[str, Any]) -> None:
    """Raise a MosaicError unless a mosaic was started with `meta`, or is finished and holds its maps and more."""
    changed = sorted(k for k in {*meta, *found.about} if meta.get(k) != found.about.get(k))
    if found.about.get("output") == "image":  # earlier versions wrote rules here, though a picture has none
        changed = [k for k in changed if k != "rules"]
    mend = "delete it or choose another folder with -o"
    if changed == ["channels"]:
        wanted = meta["channels"]
        if lacking := [name for name in wanted if name not in found.channels]:
            raise MosaicError(f"{found.path} was made without the maps {', '.join(lacking)}; {mend}")
        if [name for name in found.channels if name in wanted] == wanted:
            if found.complete:
                return
            raise MosaicError(f"{found.path} is unfinished and holds more maps; finish it with --maps all, or {mend}")
    if changed:
        raise MosaicError(f"{found.path} was started with other settings ({', '.join(changed)}); {mend}")


def _levels(grid: TileGrid) -> list[tuple[int, int]]:
    """Return (height, width) of each level; each halves the one before, rounding up."""
    levels = [(grid.height_px, grid.width_px)]
    while max(levels[-1]) > _SMALLEST_LEVEL_PX:
        levels.append((-(-levels[-1][0] // 2), -(-levels[-1][1] // 2)))
    return levels


def _lay_out(path: Path, tiles: TileList, channels: Sequence[str], dtype: str, meta: Mapping[str, Any]) -> None:
    grid, names = tiles.grid, [str(level) for level in range(len(_levels(tiles.grid)))]
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for name, (height, width) in zip(names, _levels(grid), strict=True):
        group.create_array(
            name,
            shape=(len(channels), height, width),
            chunks=(len(channels), grid.core_px, grid.core_px),
            dtype=dtype,
            fill_value=255 if dtype == "uint8" else 0,  # a picture is white where nothing was read
            compressors=ZstdCodec(level=1),
            dimension_names=("c", "y", "x"),
            chunk_key_encoding={"name": "default", "separator": "/"},
        )
    group.create_array("done", shape=(grid.rows, grid.cols), chunks=(1, grid.cols), dtype="uint8")
    group.attrs.update({"ome": dict(_ome(tiles, channels, dtype, names)), "wsiscore": dict(meta), "complete": False})


def _ome(tiles: TileList, channels: Sequence[str], dtype: str, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the OME-Zarr 0.5 metadata; positions are those of pixel centres, the slide's first pixel at 0."""
    datasets = []
    for level, name in enumerate(names):
        scale = tiles.grid.mpp * 2**level
        shift = (scale - tiles.slide_mpp) / 2
        transforms = [
            {"type": "scale", "scale": [1.0, scale, scale]},
            {"type": "translation", "translation": [0.0, shift, shift]},
        ]
        datasets.append({"path": name, "coordinateTransformations": transforms})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    top = 255 if dtype == "uint8" else 1
    window = {"min": 0, "max": top, "start": 0, "end": top}
    yield "version", "0.5"
    yield "multiscales", [{"name": tiles.slide.stem, "axes": axes, "datasets": datasets}]
    yield (
        "omero",
        {
            "channels": [
                {"label": name, "color": _COLORS.get(name.split("_")[-1], "FFFFFF"), "active": True, "window": window}
                for name in channels
            ]
        },
    )


def _halve(block: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Average 2 × 2 pixels of (C, H, W); an odd last row or column is averaged with itself."""
    _, height, width = block.shape
    whole = np.pad(block, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge").astype(np.float32)
    mean = (whole[:, 0::2, 0::2] + whole[:, 1::2, 0::2] + whole[:, 0::2, 1::2] + whole[:, 1::2, 1::2]) / 4
    return np.rint(mean).astype(np.uint8) if block.dtype == np.uint8 else mean.astype(block.dtype)
