"""Annotation files of any size are read, counted and tiled in time that grows with their size, or refused."""

import gzip
import json
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import shapely
from annotation_files import SQUARE, annotations, collection, feature, layer, polygon, region
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiscore.cells.table import Cells
from wsiscore.errors import RoiError
from wsiscore.regions import PointIndex, Roi
from wsiscore.roi import annotations as annotations_module
from wsiscore.roi.annotations import read_rois
from wsiscore.score import score_cells
from wsiscore.tiles import TileGrid


def squares(n: int, side: float = 8.0, pitch: float = 10.0) -> Iterator[shapely.Polygon]:
    """Yield n × n squares apart from each other."""
    for row in range(n):
        for col in range(n):
            yield shapely.box(col * pitch, row * pitch, col * pitch + side, row * pitch + side)


def refused(path, text):
    with pytest.raises(RoiError, match=text) as caught:
        read_rois(path, mpp=1)
    assert "\n" not in str(caught.value)


# Files


def test_a_gzip_is_unpacked_no_further_than_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "a.geojson.gz"
    path.write_bytes(gzip.compress(b"[" + b"[0,0]," * 2**22, 1))
    unpacked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: unpacked.append(read(self, size)) or unpacked[-1])
    monkeypatch.setattr(annotations_module, "_MOST_BYTES", 2**20)
    refused(path, "holds more than 1 MiB; export the annotations without detections")
    assert sum(map(len, unpacked)) <= 2**20 + 1


@pytest.mark.parametrize("text", [b"[" + b"[0,0]," * 6_000_000, b"<a>" + b"<b/>" * 9_000_000])
def test_a_file_of_too_many_values_is_refused_before_it_is_parsed(tmp_path, text, monkeypatch):
    monkeypatch.setattr(annotations_module.json, "loads", None)
    monkeypatch.setattr(annotations_module.ElementTree, "fromstring", None)
    (tmp_path / "a.any").write_bytes(text)
    refused(tmp_path / "a.any", "million values; export the annotations without detections")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.geojson")
    refused(tmp_path / "a.geojson", "is not a regular file")
    refused("/dev/zero", "is not a regular file")
    refused(tmp_path / "a\0b", "cannot be the name of a file")
    refused(tmp_path / ("a" * 300), "cannot be read: File name too long")


def test_a_hundred_thousand_regions_of_one_name_are_read(tmp_path):
    text = ",".join([json.dumps(feature(polygon(SQUARE), name="A"))] * 100_000)
    (tmp_path / "a.geojson").write_text(f"[{text}]")
    names = [roi.name for roi in read_rois(tmp_path / "a.geojson", mpp=1)]
    assert names[:2] == ["A", "A 2"]
    assert names[-1] == "A 100000"


def test_a_negative_region_is_compared_with_its_neighbours_only(tmp_path, monkeypatch):
    drawn = [list(square.exterior.coords) for square in squares(12)]
    holes = [(np.array(ring) * 0.1 + 0.9 * np.mean(ring[:4], axis=0)).tolist() for ring in drawn]
    text = annotations(layer(*(region(0, ring) for ring in drawn), *(region(0, hole, negative=1) for hole in holes)))
    (tmp_path / "a.xml").write_text(text)
    merged = []
    union_all = shapely.union_all
    monkeypatch.setattr(shapely, "union_all", lambda parts: merged.append(len(parts)) or union_all(parts))
    rois = read_rois(tmp_path / "a.xml", mpp=1)
    assert [roi.outline_um.area for roi in rois] == pytest.approx([64 - 0.64] * len(drawn))
    assert max(merged) == 1


def test_an_outline_that_crosses_itself_everywhere_is_refused_without_a_repair(tmp_path, monkeypatch):
    monkeypatch.setattr(shapely, "make_valid", None)
    tangle = np.random.default_rng(0).random((100_000, 2)) * 1000
    (tmp_path / "a.geojson").write_text(json.dumps(polygon(tangle.tolist())))
    refused(tmp_path / "a.geojson", "'ROI' crosses itself everywhere, so that its inside is unclear; redraw it")


def test_an_outline_of_many_small_crossings_is_repaired(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 50_000, endpoint=False)
    angle[1::2] -= 1.5 * angle[1]
    ring = 50_000 + 40_000 * np.column_stack([np.cos(angle), np.sin(angle)])
    ring[::2] *= 1 + 1e-6
    (tmp_path / "a.geojson").write_text(json.dumps(collection(feature(polygon(ring.tolist())))))
    (roi,) = read_rois(tmp_path / "a.geojson", mpp=1)
    assert roi.outline_um.is_valid
    assert roi.outline_um.area == pytest.approx(np.pi * 40_000**2, rel=0.01)


# Cells in regions


@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 12), st.integers(1, 9))
def test_the_index_finds_what_a_direct_comparison_finds(seed: int, n: int, corners: int, at_a_time: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 12, (2, n)).astype(float)
    outline = shapely.MultiPoint(rng.integers(0, 12, (corners, 2))).convex_hull.buffer(rng.integers(0, 3))
    wanted = np.flatnonzero(shapely.contains_xy(outline, x + 1e-6, y + 2e-6))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("wsiscore.regions._POINTS", at_a_time)
        assert PointIndex(x, y).inside(outline).tolist() == wanted.tolist()


def counting(monkeypatch, name: str, measure: Callable[..., int]) -> list[int]:
    """Let a function of shapely record how much it was given."""
    counts, function = [], getattr(shapely, name)
    monkeypatch.setattr(shapely, name, lambda *given: counts.append(measure(*given)) or function(*given))
    return counts


def test_a_cell_is_compared_with_the_regions_near_it_only(monkeypatch) -> None:
    n = 100
    rois = [Roi(str(number), square) for number, square in enumerate(squares(n))]
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 20_000)) * 10 * n
    cells = Cells(x, y, np.ones_like(x), rng.random(len(x)), np.ones_like(x), np.zeros(len(x), int))
    compared = counting(monkeypatch, "contains_xy", lambda _outline, x, _y: len(x))
    found = cells.in_rois(rois)
    assert sum(compared) < len(cells)
    assert (found.roi == (found.y_um // 10) * n + found.x_um // 10).all()
    compared.clear()
    score = score_cells(found, rois)
    assert sum(compared) <= 3 * len(found)  # each region, their union, and the blocks of the sampling interval
    assert score.total.n == sum(tally.n for tally in score.by_roi.values()) == len(found)
    assert score.total.area_mm2 == pytest.approx(n * n * 64e-6)


# Tiles on regions


@pytest.mark.parametrize(
    "outlines",
    [
        list(squares(60, 80, 100)),
        [shapely.Point(3000, 3000).buffer(2900, quad_segs=10_000)],
        [shapely.Point(3000, 3000).buffer(2900, quad_segs=9000).exterior.buffer(30)],
    ],
    ids=["many", "corners", "ring"],
)
def test_a_core_is_compared_with_the_corners_near_it_only(outlines, monkeypatch) -> None:
    """Each halving of the grid compares each corner once, and the smallest blocks have few corners."""
    grid = TileGrid(12_000, 12_000, 0.5, 192, 0)
    rois = [Roi(str(number), outline) for number, outline in enumerate(outlines)]
    corners = int(shapely.get_num_coordinates(outlines).sum())
    compared = counting(monkeypatch, "intersection", lambda a, _b: int(np.sum(shapely.get_num_coordinates(a))))
    listed = grid.touching(rois, 0.5)
    assert sum(compared) < 15 * corners + 1000 * len(grid)
    union = shapely.union_all(outlines)
    monkeypatch.undo()
    shapely.prepare(union)
    for row, col in np.random.default_rng(0).integers(0, grid.rows, (40, 2)).tolist():
        core = shapely.box(*grid.tile(row, col).write.bounds_um)
        fraction = union.intersection(core).area / core.area
        assert ((row, col) in listed) == (fraction >= 0.5) or abs(fraction - 0.5) < 1e-9


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0, 0.1, 0.5, 0.9]), st.integers(5, 400))
def test_the_tiles_are_those_of_a_direct_comparison(seed: int, least: float, corners: int) -> None:
    rng = np.random.default_rng(seed)
    discs = shapely.buffer(shapely.points(rng.random((6, 2)) * 400), rng.random(6) * 90)
    squares = shapely.box(*(edges := rng.integers(0, 9, (2, 3)) * 30), *(edges + 30 * rng.integers(1, 4, 3)))
    rois = [Roi(str(n), outline) for n, outline in enumerate([*discs, *squares])]
    grid = TileGrid(900, 800, 0.5, 60, 0)
    union, wanted = shapely.union_all([*discs, *squares]), {}
    for tile in grid:
        core = shapely.box(*tile.write.bounds_um)
        wanted[tile.row, tile.col] = union.intersection(core).area / core.area
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiscore.coverage._MOST_CORNERS", corners * 20)
        patch.setattr("wsiscore.coverage._MANY_CORNERS", corners)
        listed = grid.touching(rois, least)
    assert listed == sorted(listed)
    for place, fraction in wanted.items():
        if abs(fraction - least) > 1e-9 or least == 0:
            assert (place in listed) == (fraction > 0 and fraction >= least)


def test_a_tile_in_a_heap_of_regions_is_compared_with_few_of_them(monkeypatch) -> None:
    discs = shapely.buffer(shapely.points(np.random.default_rng(0).random((500, 2)) * 100 + 200), 150)
    rois = [Roi(str(n), disc) for n, disc in enumerate(discs)]
    compared = counting(monkeypatch, "intersection", lambda a, _b: np.size(a))
    listed = TileGrid(1000, 1000, 0.5, 50, 0).touching(rois)
    assert sum(compared) < len(listed) + 10
    assert len(listed) > 100
