"""How a mosaic is stored: levels, shards, the OME-Zarr 0.5 metadata, and the identity that decides its values."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from wsiscore.errors import MosaicError
from wsiscore.quality.stored import TileMeasures
from wsiscore.regions import Region
from wsiscore.tiles import TileGrid, TileList

__all__ = [
    "Identity",
    "Shard",
    "TileState",
    "lay_out",
    "levels",
    "metadata",
    "refuse_other",
    "shard_region",
    "shard_tiles",
    "shards_of",
    "write_levels",
]

_SMALLEST_LEVEL_PX = 512  # the pyramid ends when a level fits in this
_SHARD_PX = 1792  # about the side of a shard
_COLORS = {"positive": "FF4040", "negative": "4080FF", "red": "FF0000", "green": "00FF00", "blue": "0000FF"}
"""Of a map in viewers, by the last word of its name."""

Array = npt.NDArray[np.generic]


class TileState(IntEnum):
    """What the ``done`` array says of a tile."""

    TO_DO = 0
    WRITTEN = 1
    UNREADABLE = 2


class Shard(NamedTuple):
    """A square of tiles that is one file.

    Parameters
    ----------
    region
        In pixels of the grid's mpp, cut at the slide's edge.
    tiles
        (row, col) of the listed tiles in it, in reading order.
    """

    region: Region
    tiles: tuple[tuple[int, int], ...]

    def place(self, side: int) -> tuple[int, int]:
        """Return its (row, col) among the shards, each of `side` tiles squared."""
        row, col = self.tiles[0]
        return row // side, col // side


def shard_tiles(grid: TileGrid) -> int:
    """Return how many tiles are side by side in a shard."""
    return max(1, round(_SHARD_PX / grid.core_px))


def shard_region(grid: TileGrid, row: int, col: int) -> Region:
    """Return where a shard lies, cut at the slide's edge."""
    side = shard_tiles(grid) * grid.core_px
    x, y = col * side, row * side
    return Region(x, y, min(side, grid.width_px - x), min(side, grid.height_px - y), grid.mpp)


def shards_of(tiles: TileList) -> list[Shard]:
    """Return the shards that hold listed tiles, row by row."""
    side = shard_tiles(tiles.grid)
    squares: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, col in tiles.tiles:
        squares.setdefault((row // side, col // side), []).append((row, col))
    return [Shard(shard_region(tiles.grid, *place), tuple(squares[place])) for place in sorted(squares)]


def levels(grid: TileGrid) -> list[tuple[int, int]]:
    """Return (height, width) of each level; each is half the one before, rounded up."""
    levels = [(grid.height_px, grid.width_px)]
    while max(levels[-1]) > _SMALLEST_LEVEL_PX:
        levels.append((-(-levels[-1][0] // 2), -(-levels[-1][1] // 2)))
    return levels


def lay_out(
    path: Path, tiles: TileList, channels: Sequence[str], dtype: str, meta: Mapping[str, Any], *, measured: bool = False
) -> None:
    """Write an empty mosaic: its arrays, the OME-Zarr 0.5 metadata, and its own.

    Parameters
    ----------
    path
        The folder, which must be new.
    tiles, channels, dtype
        As in `wsiscore.mosaic.Mosaic.create`.
    meta
        JSON-ready; stored as the attribute ``wsiscore``.
    measured
        Whether to add the array of measures of quality.
    """
    grid, names = tiles.grid, [str(level) for level in range(len(levels(tiles.grid)))]
    group = zarr.open_group(path, mode="w", zarr_format=3)
    side = shard_tiles(grid) * grid.core_px
    for name, (height, width) in zip(names, levels(grid), strict=True):
        group.create_array(
            name,
            shape=(len(channels), height, width),
            chunks=(len(channels), grid.core_px, grid.core_px),
            shards=(len(channels), side, side),
            dtype=dtype,
            fill_value=255 if dtype == "uint8" else 0,  # a picture is white where nothing was read
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            dimension_names=("c", "y", "x"),
            chunk_key_encoding={"name": "default", "separator": "/"},
        )
    group.create_array(
        "done",
        shape=(grid.rows, grid.cols),
        chunks=(shard_tiles(grid),) * 2,
        dtype="uint8",
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=("row", "col"),
    )
    if measured:
        TileMeasures.lay_out(group, grid, shard_tiles(grid))
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


def write_levels(
    arrays: Sequence[zarr.Array[Any]],
    shards: Collection[tuple[int, int]],
    side: int,
    read: Callable[[int, int, int], Array],
) -> None:
    """Write the levels above the first, each the mean of 2 × 2 pixels of the one below.

    Parameters
    ----------
    arrays
        Of the levels, finest first, without the first.
    shards
        (row, col) of the shards of the first level that are written; others are not touched.
    side
        Of a shard, in pixels of any level.
    read
        ``read(x, y, side)`` returns a square of the first level, cut at its edge.
    """
    for array in arrays:
        target = array.with_config({"write_empty_chunks": True})
        shards = {(row // 2, col // 2) for row, col in shards}
        for row, col in sorted(shards):
            y, x = row * side, col * side
            target[:, y : y + side, x : x + side] = _downsampled(read(2 * x, 2 * y, 2 * side))
        read = _reader(array)


def _reader(array: zarr.Array[Any]) -> Callable[[int, int, int], Array]:
    return lambda x, y, side: np.asarray(array[:, y : y + side, x : x + side])


def _downsampled(block: Array) -> Array:
    """Average 2 × 2 pixels of (C, H, W); an odd last row or column is averaged with itself."""
    _, height, width = block.shape
    whole = np.pad(block, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge").astype(np.float32)
    size = (whole.shape[2] // 2, whole.shape[1] // 2)
    mean = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in whole])
    return np.rint(mean).astype(np.uint8) if block.dtype == np.uint8 else mean.astype(block.dtype)


@dataclass(frozen=True, slots=True)
class Identity:
    """All that decides the values of a mosaic besides its tiles; a mosaic of another identity is never continued.

    Parameters
    ----------
    slide_sha256
        Content of the slide, as `wsiscore.slide.slide.Slide.sha256`.
    model
        Of the model, as `wsiscore.models.store.Model.identity`.
    batch_size
        Tiles a batch: the last digits of a network's sums may depend on it.
    device
        Kind of device: ``cpu``, ``cuda`` or ``mps``.
    arithmetic
        Version of the computation from pixels to maps.
    """

    slide_sha256: str
    model: Mapping[str, Any]
    batch_size: int
    device: str
    arithmetic: int


def metadata(
    layout: str, tiles: TileList, channels: Sequence[str], identity: Identity, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the metadata of a mosaic as they are read back from JSON, with tuples as lists.

    Parameters
    ----------
    layout
        Name of the format on disk.
    tiles, channels, identity, about
        As in `wsiscore.mosaic.Mosaic.create`.
    """
    meta = {"channels": list(channels), "tiles": tiles.to_json(), "identity": asdict(identity), **about}
    meta["format"] = layout
    return cast(dict[str, Any], json.loads(json.dumps(meta)))


def refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, complete: bool) -> None:
    """Raise an error unless a mosaic has the wanted metadata, or is complete and holds the wanted maps and more.

    Parameters
    ----------
    path
        Of the mosaic, for the message.
    found, wanted
        Metadata as of `metadata`; `found` may have further keys.
    complete
        Whether the mosaic is complete.

    Raises
    ------
    MosaicError
        Names what differs.
    """
    changed = sorted(key for key in wanted if _comparable(key, wanted[key]) != _comparable(key, found.get(key)))
    what_to_do = "delete it or choose another folder with -o"
    if changed == ["channels"]:
        if lacking := [name for name in wanted["channels"] if name not in found["channels"]]:
            raise MosaicError(f"{path} was made without the maps {', '.join(lacking)}; {what_to_do}")
        if [name for name in found["channels"] if name in wanted["channels"]] == wanted["channels"]:
            if complete:
                return
            raise MosaicError(f"{path} is unfinished and holds more maps; finish it with --maps all, or {what_to_do}")
    if changed:
        names = sorted({name for key in changed for name in _differing(key, wanted.get(key), found.get(key))})
        raise MosaicError(f"{path} was started with other settings ({', '.join(names)}); {what_to_do}")


def _comparable(key: str, value: Any) -> Any:
    """Return what of a metadata value decides the maps: the resolution and the grid, but not which tiles are listed."""
    if key == "tiles" and isinstance(value, dict):
        return {name: value.get(name) for name in ("slide_mpp", "grid")}
    return value


def _differing(key: str, wanted: Any, found: Any) -> list[str]:
    """Return the names of what differs in one metadata value: the parts of an identity, else its key."""
    if key != "identity" or not isinstance(found, dict):
        return [key]
    return [name for name in wanted if wanted[name] != found.get(name)]
