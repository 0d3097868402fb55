"""The levels of a mosaic: their sizes and files, and how each is averaged from the one below.

A square of tiles is a shard. It is written with its part of the next levels, while it is in memory; what is coarser is
made from the last of these at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import zarr

from wsiscore.tiles import TileGrid

__all__ = ["chunk_px", "levels", "reductions", "shard_px", "shard_tiles", "with_shards", "write_levels"]

_SMALLEST_LEVEL_PX = 512  # the pyramid ends when a level fits in this
_SHARD_PX = 2688  # about the side of a shard
_WITH_SHARDS = 3  # most levels above the first that are written with a shard
_CHUNK_PX = 512  # greatest side of a chunk of these levels

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


def with_shards(grid: TileGrid) -> int:
    """Return how many levels above the first are written with each shard: its side can be halved so often."""
    side, count = shard_tiles(grid) * grid.core_px, 0
    while count < min(_WITH_SHARDS, len(levels(grid)) - 1) and side % 2 ** (count + 1) == 0:
        count += 1
    return count


def shard_px(grid: TileGrid, level: int) -> int:
    """Return the side of a shard of a level: up to `with_shards` the same area, above it the same pixels."""
    side = shard_tiles(grid) * grid.core_px
    return side >> level if level <= with_shards(grid) else side


def chunk_px(grid: TileGrid, level: int) -> int:
    """Return the side of a chunk of a level: a tile's core, or a whole part of a shard."""
    side = shard_px(grid, level)
    if level == 0 or level > with_shards(grid):
        return grid.core_px
    return next(side // parts for parts in range(1, side + 1) if side % parts == 0 and side // parts <= _CHUNK_PX)


def reductions(maps: Array, count: int) -> Iterator[Array]:
    """Yield `count` levels above (C, H, W), each the mean of 2 × 2 pixels of the one before."""
    for _ in range(count):
        maps = _downsampled(maps)
        yield maps


def write_levels(
    below: zarr.Array[Any], arrays: Sequence[zarr.Array[Any]], shards: Collection[tuple[int, int]], factor: int
) -> None:
    """Write the levels above one, each the mean of 2 × 2 pixels of the one below.

    Parameters
    ----------
    below
        The finest of them, which is written.
    arrays
        The others, finest first.
    shards
        (row, col) of the shards of the mosaic that are written; others are not touched.
    factor
        How many shards of the mosaic lie side by side in one of the first of `arrays`.
    """
    for array in arrays:
        target, side = array.with_config({"write_empty_chunks": True}), (array.shards or array.chunks)[-1]
        shards = {(row // factor, col // factor) for row, col in shards}
        for row, col in sorted(shards):
            y, x = row * side, col * side
            block = np.asarray(below[:, 2 * y : 2 * (y + side), 2 * x : 2 * (x + side)])
            target[:, y : y + side, x : x + side] = _downsampled(block)
        below, factor = array, 2


def _downsampled(block: Array) -> Array:
    """Average 2 × 2 pixels of (C, H, W); an odd last row or column is averaged with itself."""
    _, height, width = block.shape
    if height % 2 or width % 2:
        block = np.pad(block, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    size = (block.shape[2] // 2, block.shape[1] // 2)
    exact = block if block.dtype == np.uint8 else block.astype(np.float32)
    mean = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in exact])
    return mean.astype(block.dtype, copy=False)
