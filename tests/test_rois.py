"""ROIs: written and read again, found beside a slide, cut to the slide."""

import json

import numpy as np
import pytest
import shapely
from annotation_files import HOLE, SQUARE, outlines_um, polygon
from hypothesis import given
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon

from wsiscore.errors import RoiError
from wsiscore.regions import Roi
from wsiscore.roi.annotations import clip_rois, read_rois
from wsiscore.roi.beside import roi_file_beside
from wsiscore.roi.geojson import outlines_geojson


@given(outlines=st.lists(outlines_um(), min_size=1, max_size=3), mpp=st.floats(0.1, 4))
def test_geojson_round_trip(tmp_path_factory, outlines, mpp):
    rois = [Roi(f"field {number}", outline) for number, outline in enumerate(outlines)]
    file = tmp_path_factory.getbasetemp() / "round.geojson"
    file.write_text(json.dumps(outlines_geojson(rois, mpp), allow_nan=False))
    for was, now in zip(rois, read_rois(file, mpp=mpp), strict=True):
        assert now.name == was.name
        assert now.outline_um.is_valid
        assert now.outline_um.area == pytest.approx(was.outline_um.area, rel=1e-6)
        assert was.outline_um.hausdorff_distance(now.outline_um) < 1e-6
        assert len(shapely.get_coordinates(now.outline_um)) == len(shapely.get_coordinates(was.outline_um))


def test_written_geojson_is_what_qupath_reads():
    written = outlines_geojson([Roi("A", Polygon(SQUARE, [HOLE]))], 0.5)
    assert written["type"] == "FeatureCollection"
    (one,) = written["features"]
    assert one["type"] == "Feature"
    assert one["properties"] == {"objectType": "annotation", "name": "A"}
    assert one["geometry"] == polygon(*[[[2 * x, 2 * y] for x, y in ring] for ring in (SQUARE, HOLE)])


@pytest.mark.parametrize(
    ("slide", "file"),
    [
        ("a.svs", "a.geojson"),
        ("a.svs", "a.GeoJSON.gz"),
        ("a.svs", "a.XML"),
        ("a.svs", "a.annotations"),
        ("a.ome.tif", "a.geojson"),
        ("a.OME.tiff", "a.OME.geojson"),
        ("a b.c.svs", "a b.c.xml"),
        ("a[1].svs", "a[1].xml"),
    ],
)
def test_the_file_beside_a_slide(tmp_path, slide, file):
    (tmp_path / file).touch()
    assert roi_file_beside(tmp_path / slide) == tmp_path / file


def test_nothing_else_beside_a_slide_counts(tmp_path):
    for name in ("a.json", "b.geojson", "a.geojson.bak", "a.ome.geojson", "ab.xml", "a.svs"):
        (tmp_path / name).touch()
    (tmp_path / "a.xml").mkdir()
    assert roi_file_beside(tmp_path / "a.svs") is None
    assert roi_file_beside(tmp_path / "nowhere" / "a.svs") is None


def test_two_files_beside_a_slide_ask_for_a_choice(tmp_path):
    for name in ("a.geojson", "a.xml"):
        (tmp_path / name).touch()
    with pytest.raises(RoiError, match=r"several .*\(a.geojson, a.xml\); choose one with --roi"):
        roi_file_beside(tmp_path / "a.svs")


def test_a_roi_on_the_slide_stays_itself(caplog):
    rois = [Roi("A", Polygon(SQUARE))]
    assert clip_rois(rois, 10, 10) == rois
    assert not caplog.records


def test_a_roi_partly_off_is_cut_with_a_word(caplog):
    (clipped,) = clip_rois([Roi("A", Polygon(SQUARE))], 7.5, 100)
    assert clipped.name == "A"
    assert clipped.outline_um.area == pytest.approx(75)
    assert "'A': 25 % of it lies off the slide" in caplog.text


def test_a_roi_over_the_edge_by_rounding_is_cut_without_a_word(caplog):
    (clipped,) = clip_rois([Roi("A", Polygon(SQUARE))], 10 - 1e-9, 10)
    assert clipped.outline_um.bounds[2] <= 10 - 1e-9
    assert not caplog.records


@pytest.mark.parametrize("shift", [[50, 0], [-10, 3], [0, -2000]])
def test_a_roi_off_the_slide_says_where_both_are(shift):
    roi = Roi("A", Polygon(np.array(SQUARE) + shift))
    with pytest.raises(RoiError, match=r"'A' lies at x .* µm, off the slide, which is 40 × 30 µm; .*resolution\?"):
        clip_rois([roi], 40, 30)


@given(outline=outlines_um(), width=st.floats(1, 60000), height=st.floats(1, 60000))
def test_clipping_leaves_what_lies_on_the_slide(outline, width, height):
    slide = shapely.box(0, 0, width, height)
    area = outline.intersection(slide).area
    if area == 0:
        with pytest.raises(RoiError):
            clip_rois([Roi("A", outline)], width, height)
        return
    (clipped,) = clip_rois([Roi("A", outline)], width, height)
    assert clipped.outline_um.is_valid
    assert isinstance(clipped.outline_um, Polygon | MultiPolygon)
    assert clipped.outline_um.area == pytest.approx(area)
    assert slide.buffer(1e-9).covers(clipped.outline_um)
