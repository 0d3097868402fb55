"""Writer of pyramidal SVS files in the layout of Aperio scanners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from wsiscore.errors import OutputError

__all__ = ["STRIP_PX", "Strip", "write_svs"]

Picture = npt.NDArray[np.uint8]
Strip = Callable[[int, int], Picture]
"""Returns rows top to bottom (exclusive) of a slide: (bottom - top, width, 3) RGB, 0..255."""

STRIP_PX = 256
"""Side of a tile, and the greatest number of rows per call of a `Strip`."""


def write_svs(path: Path, strip: Strip, width_px: int, height_px: int, mpp: float, *, quality: int = 80) -> None:
    """Write a pyramid in Aperio's layout: tiled JPEG, a thumbnail as the second image, levels 4 times smaller each.

    Parameters
    ----------
    path
        The file to write.
    strip
        Returns rows of the slide; called from top to bottom, once per level, for at most `STRIP_PX` rows.
    width_px, height_px
        Size of level 0.
    mpp
        Micrometres per pixel of level 0.
    quality
        JPEG quality, 1..100.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    levels = [4**k for k in range(6) if k == 0 or min(width_px, height_px) // 4**k >= STRIP_PX]
    thumbnail = max(2, -(-max(width_px, height_px) // 1000))
    size = f"{width_px}x{height_px}"
    head = f"Aperio Image Library v12.0.15\r\n{size} [0,0 {size}] ({STRIP_PX}x{STRIP_PX})"
    tail = f"JPEG/RGB Q={quality}|AppMag = {10 / mpp:g}|MPP = {mpp:.6g}|Title = rendered by wsiscore, no patient"
    try:
        with tifffile.TiffWriter(path, bigtiff=width_px * height_px > 2**30) as file:
            for factor, tiled in ((1, True), (thumbnail, False), *((level, True) for level in levels[1:])):
                height, width = height_px // factor, width_px // factor
                file.write(
                    _tiles(strip, height, width, factor) if tiled else _thumbnail(strip, height, width, factor),
                    shape=(height, width, 3),
                    dtype=np.uint8,
                    tile=(STRIP_PX, STRIP_PX) if tiled else None,
                    rowsperstrip=None if tiled else 16,
                    photometric="rgb",
                    compression="jpeg",
                    compressionargs={"level": quality},
                    description=f"{head} {tail}" if factor == 1 else f"{head} -> {width}x{height} {tail}",
                    metadata=None,
                    software=False,
                )
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}; choose another folder") from error


def _thumbnail(strip: Strip, height: int, width: int, factor: int) -> Picture:
    return np.concatenate(list(_rows(strip, height, width, factor)))


def _rows(strip: Strip, height: int, width: int, factor: int) -> Iterator[Picture]:
    """Yield the rows of a level, at most one tile high at a time; a pixel is the mean of factor × factor pixels."""
    step = max(STRIP_PX // factor, 1)
    for top in range(0, height, STRIP_PX):
        bottom = min(top + STRIP_PX, height)
        parts = []
        for first in range(top, bottom, step):
            last = min(first + step, bottom)
            part = strip(first * factor, last * factor)[:, : width * factor]
            parts.append(part if factor == 1 else cv2.resize(part, (width, last - first), interpolation=cv2.INTER_AREA))
        yield np.concatenate(parts)


def _tiles(strip: Strip, height: int, width: int, factor: int) -> Iterator[Picture]:
    for rows in _rows(strip, height, width, factor):
        for left in range(0, width, STRIP_PX):
            tile = rows[:, left : left + STRIP_PX]
            missing = STRIP_PX - tile.shape[0], STRIP_PX - tile.shape[1]
            yield np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
