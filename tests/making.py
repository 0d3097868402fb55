"""Small slides and mosaics for tests, with everything about them known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.generators import GeneratorSpec
from wsiscore.mosaic import Mosaic, TileState
from wsiscore.regions import Roi
from wsiscore.tiles import TileGrid, TileList


def whole(width_um: float, height_um: float) -> list[Roi]:
    """Return one ROI that covers everything."""
    return [Roi("all", shapely.box(0, 0, width_um, height_um))]


def write_png(path: Path, rgb: npt.NDArray[np.uint8]) -> Path:
    """Write (H, W, 3) RGB losslessly."""
    assert cv2.imwrite(str(path), rgb[..., ::-1])
    return path


def mosaic_of(
    path: Path,
    maps: npt.NDArray[np.floating[Any]],
    core_px: int,
    *,
    mpp: float = 0.5,
    radius_um: float = 1.5,
    skip: int = 0,
) -> Mosaic:
    """Write (4, H, W) maps as a finished mosaic of cells; leave out the first `skip` tiles."""
    _, height, width = maps.shape
    grid = TileGrid(width, height, mpp, core_px, 0)
    rois = whole(width * mpp, height * mpp)
    tiles = TileList(Path("/slides/a.svs"), 0.25, grid, tuple(rois), tuple(grid.touching(rois)), "given outlines")
    about = {"output": "centers", "rules": {"threshold": 0.5, "radius_um": radius_um}, "model": {"name": "test"}}
    mosaic = Mosaic.create(path, tiles, ("center", "positive", "negative", "dab_od"), "float16", about)
    states = mosaic.states()
    for tile in list(grid)[skip:]:
        core = tile.write
        kept = maps[:, core.y : core.y + core.height, core.x : core.x + core.width]
        mosaic.write(tile, kept.astype(np.float16))
        states[tile.row, tile.col] = TileState.WRITTEN
        mosaic.mark(states, [tile])
    return mosaic


class Darkness:
    """A generator whose maps are plain pictures of the tile, so that every pixel can be checked."""

    def __init__(self, *, tile_px: int = 64, margin_px: int = 8, mpp: float = 0.5, image: bool = False) -> None:
        channels = ("red", "green", "blue") if image else ("center", "positive", "negative")
        dtype = "uint8" if image else "float16"
        self.spec = GeneratorSpec("darkness", channels, mpp, tile_px, margin_px, 8, dtype)
        self.calls = 0

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the tile itself as a picture, or 1 − each channel / 255."""
        self.calls += 1
        light = tiles.astype(np.float32) / 255
        return light if self.spec.output == "image" else 1 - light
