"""Pictures, QuPath objects and squares show each cell once, in its place."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import uuid

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from making import write_png
from PIL import Image
from reports import VIRTUAL, cells_at, scattered, whole_roi

from wsiscore.errors import SlideError
from wsiscore.regions import Region, Roi
from wsiscore.report.local_index import MIN_LOCAL, choose_squares, count_squares
from wsiscore.report.overlay import write_overlay
from wsiscore.report.qupath import write_detections
from wsiscore.report.thumbnail import jpeg, read_thumbnail
from wsiscore.slide.slide import Slide


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1), st.floats(0, 3) | st.just(math.nan)),
        max_size=20,
    ),
    st.floats(0.05, 2),
)
def test_geojson_is_what_qupath_imports_as_detections(tmp_path_factory, points, mpp):
    cells = cells_at(*np.array(points, np.float64).reshape(-1, 4).T)
    path = tmp_path_factory.mktemp("qupath") / "cells.geojson"
    write_detections(path, cells, mpp=mpp)
    text = path.read_text(encoding="ascii")
    collection = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    features = collection["features"]
    assert (collection["type"], len(features)) == ("FeatureCollection", len(cells))
    assert len({uuid.UUID(feature["id"]) for feature in features}) == len(cells)
    assert text.count("\n") == len(cells) + 2
    for number, feature in enumerate(features):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Point"
        x, y = feature["geometry"]["coordinates"]
        assert abs(x - cells.x_um[number] / mpp) <= 0.01
        assert abs(y - cells.y_um[number] / mpp) <= 0.01
        seen = feature["properties"]
        assert seen["objectType"] == "detection"
        positive = {"name": "Positive", "color": [250, 62, 62]}
        negative = {"name": "Negative", "color": [112, 112, 225]}
        assert seen["classification"] == (positive if cells.positive[number] else negative)
        measured = {"Confidence", "Positivity"} | ({"DAB OD mean"} if np.isfinite(cells.dab_od[number]) else set())
        assert set(seen["measurements"]) == measured
    write_detections(path, cells, mpp=mpp)
    assert path.read_text(encoding="ascii") == text


def test_cells_keep_their_ids_apart_from_those_of_other_slides(tmp_path):
    for name, x_um in (("a", [1.0]), ("b", [2.0])):
        write_detections(tmp_path / name, cells_at(x_um, [1], [1]), mpp=1)
    ids = {json.loads((tmp_path / name).read_text())["features"][0]["id"] for name in "ab"}
    assert len(ids) == 2
    assert all(uuid.UUID(one).version == 8 for one in ids)


@pytest.mark.parametrize(("mpp", "extent"), [(0.5, 200.0), (20.0, 8000.0)])
def test_overlay_marks_cells_in_their_place(tmp_path, mpp, extent):
    path = write_png(tmp_path / "white.png", np.full((400, 400, 3), 255, np.uint8))
    quarter = extent / 4
    cells = cells_at([quarter, 3 * quarter], [quarter, 3 * quarter], [1, 0])
    with Slide(path, mpp) as slide:
        write_overlay(tmp_path / "overlay.jpg", slide, [], cells)
    with Image.open(tmp_path / "overlay.jpg") as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape[1] == 400
    assert pixels.shape[0] > 400  # the legend
    red, _, blue = np.moveaxis(pixels[:400], 2, 0)
    for channel, at in ((red - blue, 100), (blue - red, 300)):
        y, x = np.nonzero(channel > 60)
        assert abs(x.mean() + 0.5 - at) < 0.5
        assert abs(y.mean() + 0.5 - at) < 0.5
    if mpp == 0.5:  # the classes differ in shape: a ring, within which the nucleus is seen, and a dot
        assert pixels[100, 100].min() > 240
        assert pixels[300, 300].min() < 60


def test_overlay_is_no_larger_than_asked_and_outlines_the_regions(tmp_path, slide):
    roi = Roi("r", shapely.box(50, 50, 150, 150))
    write_overlay(tmp_path / "o.jpg", slide, [roi], scattered(0), max_px=200)
    with Image.open(tmp_path / "o.jpg") as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape[1] == 200
    yellow = (pixels[..., 0] > 200) & (pixels[..., 2] < 90)
    assert yellow[50, 60:140].mean() > 0.9  # 50 µm at 1 µm/px
    assert not yellow[60:140, 60:140].any()


def test_the_noisiest_picture_can_be_written():
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    with Image.open(io.BytesIO(jpeg(noise, quality=88))) as image:
        assert image.size == (600, 600)


def test_an_unreadable_place_is_grey_and_the_rest_is_shown():
    class Torn:
        mpp = 1.0

        def read(self, region: Region) -> np.ndarray:
            if region.x >= 256:
                raise SlideError("torn")
            return np.full((region.height, region.width, 3), 255, np.uint8)

    pixels = read_thumbnail(Torn(), (0, 0, 300, 100), max_px=400).pixels
    assert (pixels[:, :256] == 255).all()
    assert (pixels[:, 256:] == 190).all()


def test_the_overlay_of_a_virtual_stain_has_a_notice(tmp_path, slide):
    rois = [whole_roi()]
    for virtual in (None, VIRTUAL):
        slide.virtual = virtual
        write_overlay(tmp_path / f"{virtual is None}.jpg", slide, rois, scattered(60))
    plain, marked = (cv2.imread(str(tmp_path / f"{name}.jpg")) for name in (True, False))
    assert len(marked) > len(plain)
    notice = marked[: len(marked) - len(plain)]
    assert notice.std() > 10  # there are letters on it


@settings(deadline=None)
@given(st.integers(0, 300), st.sampled_from([25.0, 50.0, 70.0]))
def test_squares_hold_every_cell_once(n, side_um):
    cells = scattered(n)
    cells = dataclasses.replace(cells, x_um=np.round(cells.x_um / 5) * 5)  # many lie on the edges of the squares
    squares = count_squares(cells, [whole_roi()], side_um)
    assert sum(square.tally.n for square in squares) == n
    assert sum(square.tally.n_positive for square in squares) == int(cells.positive.sum())
    assert all(square.tally.n == int(square.holds(cells).sum()) for square in squares)


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 12))
def test_chosen_squares_span_the_range(n, wanted):
    squares = count_squares(scattered(n), [whole_roi()], 40.0)
    least = MIN_LOCAL if sum(square.tally.n >= MIN_LOCAL for square in squares) >= 4 else 1
    chosen = choose_squares(squares, wanted)
    indices = [square.tally.ki67_index for square in chosen]
    assert 1 <= len(chosen) <= wanted
    assert indices == sorted(indices)
    assert len({square.bounds_um for square in chosen}) == len(chosen)
    assert set(chosen) <= set(squares)
    assert indices[-1] == max(square.tally.ki67_index for square in squares if square.tally.n >= least)


def test_a_cell_just_beyond_a_rounded_outline_is_in_the_square_at_the_edge():
    cells = cells_at([-0.04, 200.04, 100], [100, 100, 200.04], [1, 1, 0])
    squares = count_squares(cells, [whole_roi()], 50.0)
    assert sum(square.tally.n for square in squares) == 3
