"""How a mosaic lies on disk: levels, shards and the OME-Zarr 0.5 metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from wsiscore.quality.stored import TileMeasures
from wsiscore.tiles import TileGrid, TileList

__all__ = ["downsampled", "lay_out", "levels", "shard_tiles"]

_SMALLEST_LEVEL_PX = 512  # the pyramid ends when a level fits in this
_SHARD_PX = 1792  # about the side of a shard
_COLORS = {"positive": "FF4040", "negative": "4080FF", "red": "FF0000", "green": "00FF00", "blue": "0000FF"}
"""Of a map in viewers, by the last word of its name."""

Array = npt.NDArray[np.generic]


def shard_tiles(grid: TileGrid) -> int:
    """Return how many tiles are side by side in a shard."""
    return max(1, round(_SHARD_PX / grid.core_px))


def levels(grid: TileGrid) -> list[tuple[int, int]]:
    """Return (height, width) of each level; each is half the one before, rounded up."""
    levels = [(grid.height_px, grid.width_px)]
    while max(levels[-1]) > _SMALLEST_LEVEL_PX:
        levels.append((-(-levels[-1][0] // 2), -(-levels[-1][1] // 2)))
    return levels


def lay_out(
    path: Path, tiles: TileList, channels: Sequence[str], dtype: str, meta: Mapping[str, Any], *, measured: bool
) -> None:
    """Write an empty mosaic to `path`: its arrays, the OME metadata, and `meta` under ``wsiscore``.

    `measured` adds the array of measures of quality.
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
        chunks=(grid.rows, grid.cols),
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


def downsampled(block: Array) -> Array:
    """Average 2 × 2 pixels of (C, H, W); an odd last row or column is averaged with itself."""
    _, height, width = block.shape
    whole = np.pad(block, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge").astype(np.float32)
    size = (whole.shape[2] // 2, whole.shape[1] // 2)
    mean = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in whole])
    return np.rint(mean).astype(np.uint8) if block.dtype == np.uint8 else mean.astype(block.dtype)
