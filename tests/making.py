"""Small slides and mosaics for tests, with everything about them known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.cells.rules import CenterRules, ComponentRules
from wsiscore.models.card import Card
from wsiscore.models.contract import GeneratorSpec
from wsiscore.models.store import Model
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import Identity, TileState
from wsiscore.regions import Roi
from wsiscore.stain import Stain
from wsiscore.tiles import Tile, TileGrid, TileList


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
    """Write (4, H, W) maps as a finished mosaic of cell centres; leave out the first `skip` tiles."""
    about = {"output": "centers", "rules": {"threshold": 0.5, "radius_um": radius_um}, "model": {"name": "test"}}
    if not maps[1:3].any():  # a maximum without any class evidence is no cell
        maps = np.concatenate([maps[:2], np.ones_like(maps[:1]), maps[3:]])
    mosaic = _mosaic(path, maps.shape[1:], core_px, mpp, ("center", "positive", "negative", "dab_od"), about)
    fill(mosaic, maps, list(mosaic.grid)[skip:])
    return mosaic


def component_mosaic(path: Path, segmentation: npt.NDArray[np.uint8], core_px: int, *, skip: int = 0) -> Mosaic:
    """Write an (H, W, 3) segmentation as a finished mosaic of whole cells; the first `skip` tiles are unreadable."""
    about = {"output": "components", "rules": ComponentRules(120 / 255).to_json(), "model": {"name": "test"}}
    maps = np.zeros((4, *segmentation.shape[:2]))
    maps[:3] = segmentation.transpose(2, 0, 1) / 255
    mosaic = _mosaic(path, maps.shape[1:], core_px, 0.25, ("positive", "boundary", "negative", "dab_od"), about)
    fill(mosaic, maps, list(mosaic.grid)[skip:])
    states, lost = mosaic.states(), list(mosaic.grid)[:skip]
    for tile in lost:
        states[tile.row, tile.col] = TileState.UNREADABLE
    mosaic.mark(states)
    return mosaic


IDENTITY = Identity("0" * 64, {"family": "test"}, 1, "cpu", 0)
MEASURED = {"stain": Stain.default().to_json(), "found": {}, "pink_share": 0.0}


def _mosaic(
    path: Path, shape: tuple[int, ...], core_px: int, mpp: float, channels: tuple[str, ...], about: dict[str, Any]
) -> Mosaic:
    height, width = shape
    grid = TileGrid(width, height, mpp, core_px, 0)
    rois = whole(width * mpp, height * mpp)
    tiles = TileList(Path("/slides/a.svs"), 0.25, grid, tuple(rois), tuple(grid.touching(rois)), "given outlines")
    return Mosaic.create(path, tiles, channels, "float16", IDENTITY, about, MEASURED)


def fill(mosaic: Mosaic, maps: npt.NDArray[np.floating[Any]], tiles: list[Tile]) -> None:
    states, filled = mosaic.states(), {(tile.row, tile.col) for tile in tiles}
    for shard in mosaic.shards():
        held, at = mosaic.empty_shard(shard), shard.region
        for place in filled & set(shard.tiles):
            core = mosaic.grid.tile(*place).write
            kept = maps[:, core.y : core.y + core.height, core.x : core.x + core.width]
            held[:, core.y - at.y : core.y - at.y + core.height, core.x - at.x : core.x - at.x + core.width] = kept
            states[place] = TileState.WRITTEN
        mosaic.write_shard(shard, held)
    mosaic.mark(states)


def as_model(generator: Any) -> Model:
    """Return a generator as a model, with a card that says nothing but its spec."""
    spec = generator.spec
    card = Card(spec.family, spec.family, "1", "A test.", "none", "nothing", spec, {})
    return Model(card, generator)


class Darkness:
    """A generator whose maps are plain pictures of the tile, so that every pixel can be checked."""

    def __init__(self, *, tile_px: int = 64, margin_px: int = 8, mpp: float = 0.5, image: bool = False) -> None:
        channels = ("red", "green", "blue") if image else ("center", "positive", "negative")
        rules = None if image else CenterRules()
        self.spec = GeneratorSpec("darkness", channels, mpp, tile_px, margin_px, 8, rules=rules)
        self.device = "cpu"
        self.calls = 0

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return nothing: there are no weights."""
        return {}

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the tile itself as a picture, or 1 − each channel / 255."""
        self.calls += 1
        light = tiles.astype(np.float32) / 255
        return light if self.spec.output == "image" else 1 - light
