"""A slide as square JPEG tiles at scales that double, as the viewer draws it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from wsiscore.regions import Region
from wsiscore.report.thumbnail import jpeg, read_region
from wsiscore.slide.slide import Slide

__all__ = ["Pyramid", "Tile"]

Tile = tuple[int, int, int]
"""Level, column and row of a tile."""

_COARSEST_PX = 1024  # longest side of the whole slide at the coarsest level
_QUALITY = 78


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The tiles of a slide, from the coarsest level, 0, to the finest.

    Parameters
    ----------
    slide
        What is read.
    mpp
        Of the finest level, in µm/px; at least that of the slide.
    tile_px
        Side of a tile.
    """

    slide: Slide
    mpp: float
    tile_px: int

    @property
    def level_mpp(self) -> tuple[float, ...]:
        """Micrometres per pixel of each level; each is half of the one before."""
        longest = max(self.slide.width_px, self.slide.height_px) * self.slide.mpp
        steps = max(0, math.ceil(math.log2(longest / self.mpp / _COARSEST_PX)))
        return tuple(self.mpp * 2**step for step in range(steps, -1, -1))

    def size(self, level: int) -> tuple[int, int]:
        """Return the number of columns and of rows of a level."""
        side = self.level_mpp[level] * self.tile_px
        extent = (self.slide.width_px * self.slide.mpp, self.slide.height_px * self.slide.mpp)
        cols, rows = (max(1, math.ceil(length / side - 1e-6)) for length in extent)
        return cols, rows

    def tiles(self, level: int, bounds_um: tuple[float, float, float, float]) -> Iterator[Tile]:
        """Yield the tiles of a level that a rectangle, left, top, right, bottom in micrometres, touches."""
        side = self.level_mpp[level] * self.tile_px
        left, top, right, bottom = (math.floor(edge / side) for edge in bounds_um)
        cols, rows = self.size(level)
        for row in range(max(top, 0), min(bottom + 1, rows)):
            for col in range(max(left, 0), min(right + 1, cols)):
                yield level, col, row

    def region(self, tile: Tile) -> Region:
        """Return what a tile shows; the last column and row are cut at the slide's edge."""
        level, col, row = tile
        mpp, slide = self.level_mpp[level], self.slide
        x, y = col * self.tile_px, row * self.tile_px
        wide, high = (math.ceil(px * slide.mpp / mpp - 1e-6) for px in (slide.width_px, slide.height_px))
        return Region(x, y, max(1, min(self.tile_px, wide - x)), max(1, min(self.tile_px, high - y)), mpp)

    def jpeg(self, tile: Tile) -> bytes:
        """Return a tile as JPEG; what cannot be read is grey."""
        return jpeg(read_region(self.slide, self.region(tile)), quality=_QUALITY, half_colour=True)
