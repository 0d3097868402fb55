"""Cores partition the slide, reads have one size, and tiles.json comes back as it went."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from making import whole

from wsiscore.errors import MosaicError
from wsiscore.regions import Roi
from wsiscore.tiles import TileGrid, TileList

grids = st.builds(
    lambda width, height, core, margin: TileGrid(width, height, 0.5, core + 2 * margin, margin),
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(7, 90),
    st.integers(0, 20),
)


@given(grids)
def test_cores_partition_the_slide(grid: TileGrid) -> None:
    covered = np.zeros((grid.height_px, grid.width_px), int)
    for tile in grid:
        core = tile.write
        assert (tile.read.width, tile.read.height) == (grid.tile_px, grid.tile_px)
        assert tile.read.contains(core)
        covered[core.y : core.y + core.height, core.x : core.x + core.width] += 1
    assert (covered == 1).all()
    assert len(grid) == len(list(grid))


@st.composite
def outlines(draw: st.DrawFn) -> Roi:
    x, y = draw(st.floats(-30, 140)), draw(st.floats(-30, 140))
    outline = shapely.Point(x, y).buffer(draw(st.floats(1, 80)))
    return Roi("r", outline)


@given(grids, st.lists(outlines(), max_size=3))
def test_touching_tiles_are_all_and_only_those_that_hold_some_roi(grid: TileGrid, rois: list[Roi]) -> None:
    listed = grid.touching(rois)
    union = shapely.union_all([roi.outline_um for roi in rois])
    areas = {
        (tile.row, tile.col): shapely.intersection(union, shapely.box(*tile.write.bounds_um)).area for tile in grid
    }
    assert all(areas[place] > 0 for place in listed)
    assert all(place in set(listed) for place, area in areas.items() if area > 1e-6)
    assert listed == sorted(listed)
    assert set(grid.touching(rois, 0.5)) <= set(listed)


@given(grids, st.lists(outlines(), max_size=3))
def test_json_round_trip(grid: TileGrid, rois: list[Roi]) -> None:
    tiles = TileList(Path("/s/a.svs"), 0.25, grid, tuple(rois), tuple(grid.touching(rois)), "a.geojson")
    back = TileList.from_json(json.loads(json.dumps(tiles.to_json())))
    assert back == tiles


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', '{"format": "wsiscore-tiles-1"}', "\x00"])
def test_what_is_no_tile_list_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(MosaicError, match=r"tiles\.json.*wsiscore tile"):
        TileList.read(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["array", "object"])
def test_a_deeply_nested_file_is_no_tile_list(tmp_path: Path, text: str) -> None:
    test_what_is_no_tile_list_says_so(tmp_path, text)


GOOD = TileList(Path("/a.svs"), 0.25, TileGrid(90, 90, 0.5, 32, 0), tuple(whole(45, 45)), ((0, 0),), "x").to_json()
OUTLINE = GOOD["rois"][0]["outline_um"]


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {"grid": {**GOOD["grid"], name: value}}
            for name in ("width_px", "tile_px")
            for value in (1e308, 10**400, "9")
        ),
        *({"rois": [{"name": "a", "outline_um": value}]} for value in ("1", 10**400, [], {}, {"type": None})),
        *(
            {"rois": [{"name": "a", "outline_um": {**OUTLINE, "coordinates": [[value, *OUTLINE["coordinates"][0]]]}}]}
            for value in ((math.nan, 1), (10**400, 1), ("a", "b"), None)
        ),
        {"slide_mpp": 10**400},
        {"tiles": [[10**400, 0]]},
    ],
    ids=lambda changed: str(changed)[:80],
)
def test_a_foreign_value_is_no_tile_list(tmp_path: Path, changed: dict[str, object]) -> None:
    test_what_is_no_tile_list_says_so(tmp_path, json.dumps({**GOOD, **changed}))


def test_margins_must_leave_a_core() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        TileGrid(10, 10, 0.5, 64, 32)
