"""The measures of all tiles on disk: the array ``quality`` of a mosaic, (row, col, measure).

A chunk holds the tiles of one shard of the maps, and has a checksum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from wsiscore.quality.measures import MEASURES
from wsiscore.tiles import TileGrid

__all__ = ["CHUNK_ERRORS", "QUALITY", "TileMeasures"]

QUALITY = "quality"
"""Name of the array."""
CHUNK_ERRORS = (OSError, RuntimeError, ValueError)
"""What Zarr raises of a damaged chunk: of its file, of Zstandard, and of the checksum or a wrong size."""

Measures = npt.NDArray[np.float32]
Place = tuple[int, int]


class TileMeasures:
    """The array of measures.

    Parameters
    ----------
    array
        As `lay_out` made it.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array.with_config({"write_empty_chunks": True})
        self.side = array.chunks[0]

    @staticmethod
    def lay_out(group: zarr.Group, grid: TileGrid, side: int) -> None:
        """Add the empty array to a mosaic: nan for every tile, and chunks of `side` tiles."""
        group.create_array(
            QUALITY,
            shape=(grid.rows, grid.cols, len(MEASURES)),
            chunks=(side, side, len(MEASURES)),
            dtype="float32",
            fill_value=float("nan"),
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            dimension_names=("row", "col", "measure"),
            chunk_key_encoding={"name": "default", "separator": "/"},
            attributes={"measures": list(MEASURES)},
        )

    def of(self, chunk: Place, *, empty: bool = False) -> Measures:
        """Return the measures of the tiles of a chunk, (row, col) in chunks; nan if `empty`, or not written."""
        if empty:
            rows, cols = (min(self.side, n - at * self.side) for n, at in zip(self._array.shape, chunk, strict=False))
            return np.full((rows, cols, self._array.shape[2]), np.nan, np.float32)
        return np.asarray(self._array[self._tiles(chunk)], dtype=np.float32)

    def write(self, chunk: Place, values: Measures) -> None:
        """Write the measures of all tiles of a chunk in one step."""
        self._array[self._tiles(chunk)] = values

    def read(self, written: npt.NDArray[np.bool_]) -> tuple[Measures, list[Place]]:
        """Return the measures of all tiles, and the chunks, (row, col), that cannot be read or lack a written tile."""
        try:
            values = np.asarray(self._array[:], dtype=np.float32)
            lost = np.argwhere(written & np.isnan(values[..., 0])) // self.side
            return values, sorted({(row, col) for row, col in lost.tolist()})
        except CHUNK_ERRORS:
            if broken := [chunk for chunk in self._chunks() if self._is_broken(chunk)]:
                return np.full(self._array.shape, np.nan, np.float32), broken
            raise

    def _chunks(self) -> list[Place]:
        rows, cols = (-(-size // self.side) for size in self._array.shape[:2])
        return [(row, col) for row in range(rows) for col in range(cols)]

    def _is_broken(self, chunk: Place) -> bool:
        try:
            self.of(chunk)
        except CHUNK_ERRORS:
            return True
        return False

    def _tiles(self, chunk: Place) -> tuple[slice, slice]:
        row, col = (place * self.side for place in chunk)
        return slice(row, row + self.side), slice(col, col + self.side)
