"""How a mosaic is stored: its arrays, the OME-Zarr 0.5 metadata, and the identity that decides its values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, cast

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from wsiscore.attributes import FORMAT
from wsiscore.errors import MosaicError
from wsiscore.pyramid import chunk_px, levels, shard_px, shard_tiles
from wsiscore.quality.stored import TileMeasures
from wsiscore.regions import Region
from wsiscore.tiles import TileGrid, TileList

__all__ = [
    "CHANNEL_COLOURS",
    "Identity",
    "Shard",
    "TileState",
    "lay_out",
    "lay_out_level",
    "metadata",
    "refuse_other",
]

CHANNEL_COLOURS = {"positive": "FF4040", "negative": "4080FF", "red": "FF0000", "green": "00FF00", "blue": "0000FF"}
"""Of a map in viewers, by the last word of its name."""


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


def lay_out(
    path: Path, tiles: TileList, channels: Sequence[str], dtype: str, meta: Mapping[str, Any], *, measured: bool = False
) -> None:
    """Write an empty mosaic: its arrays, the OME-Zarr 0.5 metadata, and its own.

    Parameters
    ----------
    path
        The folder, which must be new; it is removed again if it cannot be written whole.
    tiles, channels, dtype
        As in `wsiscore.mosaic.Mosaic.create`.
    meta
        JSON-ready; stored as the attribute ``wsiscore``.
    measured
        Whether to add the array of measures of quality.
    """
    try:
        _lay_out(path, tiles, channels, dtype, meta, measured)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _lay_out(
    path: Path, tiles: TileList, channels: Sequence[str], dtype: str, meta: Mapping[str, Any], measured: bool
) -> None:
    grid, names = tiles.grid, [str(level) for level in range(len(levels(tiles.grid)))]
    group = zarr.open_group(path, mode="w", zarr_format=3)
    empty = 255 if meta.get("output") == "image" else 0  # a picture is white where nothing was read
    for level in range(len(names)):
        lay_out_level(group, grid, level, len(channels), dtype, empty)
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


def lay_out_level(group: zarr.Group, grid: TileGrid, level: int, n_channels: int, dtype: str, fill_value: Any) -> None:
    """Add the empty array of a level to a mosaic, instead of what has its name there."""
    height, width = levels(grid)[level]
    chunk, shard = chunk_px(grid, level), shard_px(grid, level)
    group.create_array(
        str(level),
        shape=(n_channels, height, width),
        chunks=(n_channels, chunk, chunk),
        shards=(n_channels, shard, shard),
        dtype=dtype,
        fill_value=fill_value,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=("c", "y", "x"),
        chunk_key_encoding={"name": "default", "separator": "/"},
        overwrite=True,
    )


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
                {
                    "label": name,
                    "color": CHANNEL_COLOURS.get(name.split("_")[-1], "FFFFFF"),
                    "active": True,
                    "window": window,
                }
                for name in channels
            ]
        },
    )


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


def metadata(tiles: TileList, channels: Sequence[str], identity: Identity, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a mosaic as they are read back from JSON, with tuples as lists.

    Parameters
    ----------
    tiles, channels, identity, about
        As in `wsiscore.mosaic.Mosaic.create`.
    """
    meta = {"channels": list(channels), "tiles": tiles.to_json(), "identity": asdict(identity), **about}
    meta["format"] = FORMAT
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
