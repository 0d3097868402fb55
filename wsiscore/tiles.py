"""The grid of tiles over a slide, and the list of those to read, ``tiles.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import mapping, shape

from wsiscore.coverage import covered
from wsiscore.errors import MosaicError, RoiError, SlideError
from wsiscore.files import replacing
from wsiscore.regions import Region, Roi
from wsiscore.slide.readers.base import LARGEST_SLIDE_PX
from wsiscore.slide.slide import Slide

__all__ = ["Tile", "TileGrid", "TileList", "rois_from_json", "rois_to_json", "sample_windows"]

_FORMAT = "wsiscore-tiles-1"
_PIXELS = ("width_px", "height_px", "tile_px", "margin_px")
_MOST_PX = 2**31
_MPP = (0.02, 200.0)  # wider than what slides have: tiles are up to twice as fine, and may be coarser
_WINDOWS = 32  # most windows of a sample, of this side and margin
_WINDOW_PX = 256
_WINDOW_MARGIN_PX = 32


@dataclass(frozen=True, slots=True)
class Tile:
    """One square of the grid.

    Parameters
    ----------
    row, col
        Its place in the grid.
    read
        Region that the generator is given, `tile_px` on a side; it may extend beyond the slide.
    write
        Core of the tile, whose result is kept. The last row and column are cut at the slide's edge.
    """

    row: int
    col: int
    read: Region
    write: Region


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles whose cores partition a slide.

    Parameters
    ----------
    width_px, height_px
        The slide's extent in pixels of `mpp`, rounded up.
    mpp
        Micrometres per pixel of the tiles.
    tile_px
        Side of the region that is read.
    margin_px
        Width of the border that is read but not kept.

    Raises
    ------
    ValueError
        If the grid is empty or the margins leave no core.
    """

    width_px: int
    height_px: int
    mpp: float
    tile_px: int
    margin_px: int

    def __post_init__(self) -> None:
        if self.margin_px < 0 or self.core_px < 1:
            raise ValueError(f"a margin of {self.margin_px} px leaves nothing of a {self.tile_px} px tile")
        _ = self.region

    @classmethod
    def over(cls, width_um: float, height_um: float, mpp: float, tile_px: int, margin_px: int) -> Self:
        """Return the grid that covers a slide of this extent."""
        region = Region.around_um(0, 0, width_um, height_um, mpp)
        return cls(region.width, region.height, mpp, tile_px, margin_px)

    @property
    def core_px(self) -> int:
        """Side of the core of a tile, and of a chunk of the mosaic."""
        return self.tile_px - 2 * self.margin_px

    @property
    def region(self) -> Region:
        """The slide at the grid's scale."""
        return Region(0, 0, self.width_px, self.height_px, self.mpp)

    @property
    def rows(self) -> int:
        """Number of rows of tiles."""
        return -(-self.height_px // self.core_px)

    @property
    def cols(self) -> int:
        """Number of columns of tiles."""
        return -(-self.width_px // self.core_px)

    def __len__(self) -> int:
        return self.rows * self.cols

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(row, col) for row in range(self.rows) for col in range(self.cols))

    def tile(self, row: int, col: int) -> Tile:
        """Return one tile; IndexError beyond the grid."""
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"tile {row}, {col} lies outside the grid of {self.rows} × {self.cols}")
        x, y, core = col * self.core_px, row * self.core_px, self.core_px
        read = Region(x - self.margin_px, y - self.margin_px, self.tile_px, self.tile_px, self.mpp)
        width, height = min(core, self.width_px - x), min(core, self.height_px - y)
        return Tile(row, col, read, Region(x, y, width, height, self.mpp))

    def touching(self, rois: Sequence[Roi], min_coverage: float = 0.0) -> list[tuple[int, int]]:
        """Return (row, col) of the tiles whose core the ROIs cover, row by row.

        Parameters
        ----------
        rois
            Outlines; a tile is listed once however many touch it.
        min_coverage
            Least fraction of the core inside the ROIs, in [0, 1]. At 0 every tile that contains a part of a ROI is
            listed, so that the tiles together cover the ROIs.
        """
        parts = shapely.get_parts([roi.outline_um for roi in rois if not roi.excluded])
        if not len(parts := parts[~shapely.is_empty(parts)]):
            return []
        side = self.core_px * self.mpp
        left, top, right, bottom = shapely.total_bounds(parts).tolist()
        row, rows = max(int(top // side), 0), min(int(bottom // side) + 1, self.rows)
        col, cols = max(int(left // side), 0), min(int(right // side) + 1, self.cols)
        if row >= rows or col >= cols:
            return []
        x = np.minimum(np.arange(col, cols + 1) * self.core_px, self.width_px) * self.mpp
        y = np.minimum(np.arange(row, rows + 1) * self.core_px, self.height_px) * self.mpp
        return sorted((row + down, col + across) for down, across in covered(parts, x, y, min_coverage))


@dataclass(frozen=True, slots=True)
class TileList:
    """A slide, its ROIs and the tiles to read: what ``tiles.json`` holds.

    Parameters
    ----------
    slide
        Path of the slide.
    slide_mpp
        Micrometres per pixel of its level 0, as used.
    grid
        The grid.
    rois
        What the tiles cover.
    tiles
        (row, col) of each tile, in reading order.
    roi_source
        Where the ROIs come from: a file's path, or "found tissue".
    """

    slide: Path
    slide_mpp: float
    grid: TileGrid
    rois: tuple[Roi, ...]
    tiles: tuple[tuple[int, int], ...]
    roi_source: str

    @classmethod
    def plan(
        cls,
        slide: Slide,
        rois: Sequence[Roi],
        *,
        mpp: float,
        tile_px: int,
        margin_px: int,
        min_coverage: float = 0.0,
        roi_source: str = "given outlines",
    ) -> Self:
        """List the tiles of `slide` that cover `rois`; the parameters are those of `TileGrid`."""
        width_um, height_um = slide.width_px * slide.mpp, slide.height_px * slide.mpp
        grid = TileGrid.over(width_um, height_um, mpp, tile_px, margin_px)
        tiles = tuple(grid.touching(rois, min_coverage))
        return cls(slide.path.absolute(), slide.mpp, grid, tuple(rois), tiles, roi_source)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values; lengths in the units their names say."""
        grid = self.grid
        return {
            "format": _FORMAT,
            "slide": str(self.slide),
            "slide_mpp": self.slide_mpp,
            "roi_source": self.roi_source,
            "grid": {
                "width_px": grid.width_px,
                "height_px": grid.height_px,
                "mpp": grid.mpp,
                "tile_px": grid.tile_px,
                "margin_px": grid.margin_px,
            },
            "rois": rois_to_json(self.rois),
            "tiles": [list(tile) for tile in self.tiles],
        }

    @classmethod
    def from_json(cls, values: Any, source: str = "tile list") -> Self:
        """Return what `to_json` was given; MosaicError naming `source` if it is not a tile list."""
        try:
            if values["format"] != _FORMAT:
                raise MosaicError(
                    f"{source} is a tile list of format {values['format']!r}, this version reads "
                    f"{_FORMAT!r}; run `wsiscore tile` again"
                )
            if not all(type(values["grid"][name]) is int and abs(values["grid"][name]) <= _MOST_PX for name in _PIXELS):
                raise ValueError("its grid is not in whole pixels of the size of a slide")
            for name, mpp in (("slide_mpp", values["slide_mpp"]), ("mpp", values["grid"]["mpp"])):
                if not (isinstance(mpp, int | float) and _MPP[0] <= mpp <= _MPP[1]):
                    raise ValueError(f"its {name} is {mpp!r:.40}, wanted {_MPP[0]:g} to {_MPP[1]:g} µm/px")
            grid = TileGrid(**values["grid"])
            if grid.width_px * grid.height_px > LARGEST_SLIDE_PX:
                raise ValueError(f"its grid is of {grid.width_px} × {grid.height_px} px, which no slide has")
            tiles = tuple((int(row), int(col)) for row, col in values["tiles"])
            for row, col in tiles:
                grid.tile(row, col)
            return cls(
                Path(values["slide"]),
                float(values["slide_mpp"]),
                grid,
                tuple(rois_from_json(values["rois"])),
                tiles,
                str(values["roi_source"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, shapely.errors.ShapelyError) as error:
            if isinstance(error, MosaicError):
                raise
            raise MosaicError(
                f"{source} is not a tile list of wsiscore ({error}); write one with `wsiscore tile`"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ``tiles.json``; MosaicError if it is none."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise MosaicError(
                f"{path} cannot be read as a tile list ({error}); write one with `wsiscore tile`"
            ) from error
        return cls.from_json(values, str(path))

    def write(self, path: Path) -> None:
        """Write a ``tiles.json``; OutputError if that cannot be."""
        with replacing(path) as part:
            part.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")


def rois_to_json(rois: Sequence[Roi]) -> list[dict[str, Any]]:
    """Return ROIs as a list of {"name", "outline_um": GeoJSON geometry in micrometres}.

    One with a class has ``class`` too, and one that is not scored ``excluded``.
    """
    return [
        {"name": roi.name, "outline_um": mapping(roi.outline_um)}
        | ({"class": roi.class_name} if roi.class_name else {})
        | ({"excluded": True} if roi.excluded else {})
        for roi in rois
    ]


def rois_from_json(values: Sequence[dict[str, Any]]) -> list[Roi]:
    """Return what `rois_to_json` was given; RoiError if an outline is no polygon."""
    rois = []
    for value in values:
        name, geometry = str(value["name"]), value["outline_um"]
        kind = geometry["type"]
        if kind not in ("Polygon", "MultiPolygon"):
            raise RoiError(f"ROI {name!r} is a {kind}, wanted a polygon")
        outline, excluded = shape(geometry), bool(value.get("excluded", False))
        if not np.isfinite(shapely.get_coordinates(outline)).all():
            raise RoiError(f"ROI {name!r} has a corner that is not two numbers")
        if outline.is_empty or not outline.is_valid:
            raise RoiError(f"ROI {name!r} is {'empty' if outline.is_empty else 'no plain outline: it crosses itself'}")
        rois.append(Roi(name, outline, str(value.get("class", "")), excluded=excluded))
    return rois


def sample_windows(
    slide: Slide, rois: Sequence[Roi], mpp: float, multiple_px: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Read windows spread evenly over the regions, which do not depend on the size of the tiles.

    Parameters
    ----------
    slide, rois
        What is read, and where.
    mpp
        Micrometres per pixel of the windows.
    multiple_px
        The side S of a window is a multiple of this, at least 256 pixels.

    Returns
    -------
    (N, S, S, 3) RGB, N possibly 0, and (N, 1, S, S): 1 in the core of each window and on the slide, 0 elsewhere.
    """
    side = -(-_WINDOW_PX // multiple_px) * multiple_px
    width_um, height_um = slide.width_px * slide.mpp, slide.height_px * slide.mpp
    grid = TileGrid.over(width_um, height_um, mpp, side, _WINDOW_MARGIN_PX)
    listed, read, weights = grid.touching(rois), [], []
    n = min(max(4, _WINDOWS * _WINDOW_PX**2 // side**2), len(listed))
    for i in range(n):
        tile = grid.tile(*listed[i * len(listed) // n])
        try:
            read.append(slide.read(tile.read))
        except SlideError:
            continue
        weights.append(np.zeros((1, side, side), np.float32))
        core = np.s_[_WINDOW_MARGIN_PX : _WINDOW_MARGIN_PX + tile.write.height]
        weights[-1][0, core, _WINDOW_MARGIN_PX : _WINDOW_MARGIN_PX + tile.write.width] = 1
    if not read:
        return np.empty((0, side, side, 3), np.uint8), np.empty((0, 1, side, side), np.float32)
    return np.stack(read), np.stack(weights)
