"""Annotation files that are refused in one line, and outlines that are repaired."""

import gzip
import json

import pytest
from annotation_files import (
    FAR,
    HOLE,
    SQUARE,
    annotations,
    asap,
    asap_one,
    collection,
    feature,
    layer,
    polygon,
    region,
    shoelace,
    to_text,
)

from wsiscore.errors import RoiError
from wsiscore.roi.annotations import read_rois


@pytest.fixture
def write(tmp_path):
    def write(content, name="rois.any"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else to_text(content).encode())
        return file

    return write


BOW_TIE = [[0, 0], [10, 10], [10, 0], [0, 10]]
TWICE_ROUND = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0], [5, 0], [5, 5], [0, 5]]
LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><Annotations>&b;</Annotations>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; wanted GeoJSON"),
        (b"II*\x00\x08\x00\x00\x00", "is of another kind; wanted GeoJSON"),
        ('{"type": "FeatureCollection", "features": [', "is not whole JSON"),
        (b'{"type": "Feature", "name": "\xff"}', "is not whole JSON"),
        (gzip.compress(json.dumps(polygon()).encode(), mtime=0)[:-9], "cannot be read: Compressed file ended"),
        ("[" * 100_000, "nested too deep"),
        ({"positive": 3, "negative": 4}, "is JSON but not GeoJSON: found an object of type 'None'"),
        ({"type": ["Feature"]}, "is JSON but not GeoJSON"),
        ([1, 2, 3], "is JSON but not GeoJSON: found 1"),
        ({"type": "FeatureCollection"}, "is JSON but not GeoJSON: found null"),
        (feature({"type": "Circle", "coordinates": []}), "is a 'Circle', which GeoJSON does not know"),
        (feature({"type": "Polygon"}), "annotation no. 1 is not GeoJSON .*'coordinates'"),
        (feature("somewhere"), "annotation no. 1 is not GeoJSON"),
        (feature(polygon(), name="A") | {"properties": "A"}, "annotation no. 1 is not GeoJSON"),
        (collection(), "holds no region; draw at least one closed outline"),
        (feature({"type": "Point", "coordinates": [1, 2]}), "holds no region; left out were 1 × point"),
        ("<Annotations><Annotation>", "is not whole XML"),
        ('<?xml version="1.0" encoding="klingon"?><Annotations/>', "is not whole XML"),
        ("<PASCAL/>", "<PASCAL> is not supported"),
        (LAUGHS, "declares a document type"),
        (annotations(), "holds no region"),
        (annotations(layer(region(0, SQUARE, negative=1))), "holds no region; left out were 1 × negative region"),
        (annotations(layer(region(3, [[0, 0], [1, 1]]))), "left out were 1 × arrow"),
        (asap(asap_one("Dot", [[0, 0]])), "left out were 1 × dot"),
        (annotations(layer(region(0, [["x", 0], [1, 1], [2, 0]]))), "'ROI' has a corner that is not two numbers"),
        (annotations(layer('<Region Type="0"><Vertices><Vertex X="1"/></Vertices></Region>')), "nowhere on a slide"),
        (annotations(layer(region(0, [["nan", 0], [1, 1], [2, 0]]))), r"has a corner at \(nan, 0\)"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [NaN, 0]]]}', r"has a corner at \(nan, 0\)"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1e999]]]}', r"has a corner at \(0, inf\)"),
        (polygon([[0, 0], [1], [2, 2]]), "has a corner that is not two numbers"),
        (polygon([[0, 0], [1, None], [2, 2]]), "has a corner"),
        (
            feature(polygon([[0, 0], [5, 5], [0, 0]]), name="click"),
            "'click' has 2 different corners, wanted at least 3",
        ),
        (feature({"type": "Polygon", "coordinates": []}, name="A"), "'A' has 0 different corners"),
        (feature({"type": "MultiPolygon", "coordinates": []}, name="A"), "'A' has 0 different corners"),
        (annotations(layer('<Region Type="2" Text="A"/>')), "'A' has 0 different corners"),
        (feature(polygon([[0, 0], [5, 5], [9, 9]]), name="flat"), "'flat' has no area; redraw or delete it"),
        (annotations(layer(region(2, [[3, 3], [3, 9]], text="flat"))), "'flat' has no area"),
        (feature(polygon(BOW_TIE), name="tie"), r"'tie' crosses itself at \(5.0, 5.0\) px.*redraw"),
        (annotations(layer(region(0, BOW_TIE, text="tie"))), r"'tie' crosses itself at \(5.0, 5.0\) px"),
        (feature(polygon(TWICE_ROUND), name="twice"), "'twice' crosses itself at"),
        (feature(polygon(SQUARE, FAR), name="A"), "holes of outline 'A' extend over its edge or overlap"),
        (feature(polygon(SQUARE, HOLE, HOLE), name="A"), "holes of outline 'A' extend over its edge or overlap"),
        (
            feature({"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE]]}, name="A"),
            "parts of outline 'A' overlap",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(write, content, words):
    file = write(content)
    with pytest.raises(RoiError, match=words) as caught:
        read_rois(file, mpp=1)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_senseless_scale(tmp_path, write):
    with pytest.raises(RoiError, match=r"gone.geojson: there is no such file"):
        read_rois(tmp_path / "gone.geojson", mpp=1)
    with pytest.raises(RoiError, match=r"cannot be read: Is a directory"):
        read_rois(tmp_path, mpp=1)
    with pytest.raises(ValueError, match="mpp must be a positive number"):
        read_rois(write(polygon()), mpp=0)


def test_a_file_that_swells_is_refused(write, monkeypatch):
    monkeypatch.setattr("wsiscore.roi.annotations._MOST_BYTES", 2**20)
    with pytest.raises(RoiError, match=r"holds more than 1 MiB; export the annotations without detections"):
        read_rois(write(gzip.compress(b"[" + b" " * 2**21 + b"]")), mpp=1)


@pytest.mark.parametrize(
    "outline",
    [
        [[0, 0], [100, 0], [100, 100], [0, 100], [0, -2], [-2, -2]],  # the pen runs over its start
        [[0, 0], [100, 0], [100, 100], [0, 100], [0, 50], [-40, 50], [0, 50]],  # a spike
        [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0], [2, 0], [2, 2], [0, 2]],  # a small loop gone round twice
        [[0, 0], [50, 0], [50, 50], [100, 50], [100, 100], [50, 100], [50, 50], [0, 50]],  # touches itself: no crossing
    ],
)
def test_a_small_crossing_is_repaired_and_logged(write, caplog, outline):
    (roi,) = read_rois(write(feature(polygon(outline), name="freehand")), mpp=0.5)
    assert roi.outline_um.is_valid
    assert roi.outline_um.area == pytest.approx(shoelace(outline) / 4, rel=0.01)
    (record,) = caplog.records
    assert "'freehand'" in record.getMessage()
    assert "1 % of the area" in record.getMessage()


def test_the_limit_of_a_repair_is_one_percent_of_the_area(write):
    """A loop of area b crossed backwards: inside is a + b, the signed area a - b, so 2b / (a + b) decides."""
    for back, fine in ((9.9, True), (10.3, False)):
        outline = [[0, 0], [100, 0], [100, 100], [0, 100], [0, -back], [-back, -back]]  # b = back²/2
        file = write(polygon(outline))
        if fine:
            assert read_rois(file, mpp=1)[0].outline_um.area == pytest.approx(10000 + back**2 / 2)
        else:
            with pytest.raises(RoiError, match="crosses itself"):
                read_rois(file, mpp=1)
