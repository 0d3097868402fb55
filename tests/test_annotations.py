"""Annotation files: every format's areas known on paper, every refusal with its sentence."""

import gzip
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon

from wsiscore.errors import RoiError
from wsiscore.regions import Roi
from wsiscore.roi.annotations import clip_rois, read_rois, roi_file_beside
from wsiscore.roi.geojson import outlines_geojson

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [2, 5], [5, 5], [5, 2], [2, 2]]
FAR = [[20, 0], [30, 0], [30, 20], [20, 20], [20, 0]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings or [SQUARE])}


def feature(geometry, id_=None, **properties):
    found = {"type": "Feature", "geometry": geometry, "properties": properties}
    return found if id_ is None else found | {"id": id_}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def write(tmp_path):
    def write(content, name="rois.any"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else to_text(content).encode())
        return file

    return write


def to_text(content):
    return content if isinstance(content, str) else json.dumps(content)


def areas(rois):
    return {roi.name: pytest.approx(roi.outline_um.area, rel=1e-9) for roi in rois}


def shoelace(points):
    x, y = np.array(points, dtype=float).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


# --- GeoJSON


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (feature(polygon(), name="A"), {"A": 100}),
        (collection(feature(polygon(SQUARE, HOLE), name="A"), feature(polygon(FAR))), {"A": 91, "ROI": 200}),
        ([feature(polygon(), name="A"), feature(polygon(FAR), name="A")], {"A": 100, "A 2": 200}),
        (polygon(SQUARE, HOLE), {"ROI": 91}),
        ({"type": "GeometryCollection", "geometries": [polygon(), polygon(FAR)]}, {"ROI": 100, "ROI 2": 200}),
        (feature({"type": "GeometryCollection", "geometries": [polygon(), polygon(FAR)]}), {"ROI": 300}),
        ({"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [FAR]]}, {"ROI": 291}),
        (feature(polygon([[*corner, 3] for corner in SQUARE])), {"ROI": 100}),
        (feature(polygon(SQUARE[:-1])) | {"properties": None}, {"ROI": 100}),
    ],
)
def test_every_kind_of_geojson(write, document, expected):
    assert areas(read_rois(write(document), mpp=1)) == expected


def test_length_scales_with_mpp(write):
    (roi,) = read_rois(write(polygon(FAR)), mpp=0.25)
    assert roi.outline_um.bounds == (5, 0, 7.5, 5)


def test_geojson_may_be_gzipped_or_begin_with_a_byte_order_mark(write):
    text = json.dumps(polygon()).encode()
    assert areas(read_rois(write(gzip.compress(text)), mpp=1)) == {"ROI": 100}
    assert areas(read_rois(str(write(b"\xef\xbb\xbf" + text)), mpp=1)) == {"ROI": 100}


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"name": "field 1", "classification": {"name": "Tumor"}}, "field 1"),
        ({"name": " two\n lines\t", "classification": "Tumor"}, "two lines"),
        ({"classification": {"name": "Tumor", "colorRGB": -3670016}}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Hot spot"], "color": [1, 2, 3]}}, "Tumor: Hot spot"),
        ({"classification": "Tumor"}, "Tumor"),
        ({"name": None, "classification": None}, "ROI"),
        ({"name": ""}, "ROI"),
    ],
)
def test_names_come_from_the_annotation_else_its_class(write, properties, name):
    assert [roi.name for roi in read_rois(write(feature(polygon(), **properties)), mpp=1)] == [name]


@given(labels=st.lists(st.sampled_from(["A", "A 2", "A 3", "B", ""]), min_size=1, max_size=12))
def test_names_are_unique_and_the_first_keeps_its_own(tmp_path_factory, labels):
    file = tmp_path_factory.getbasetemp() / "names.geojson"
    file.write_text(json.dumps([feature(polygon(), name=label) for label in labels]))
    names = [roi.name for roi in read_rois(file, mpp=1)]
    assert len(set(names)) == len(labels)
    assert names[0] == (labels[0] or "ROI")
    assert all(name.startswith(label or "ROI") for name, label in zip(names, labels, strict=True))


def test_what_is_no_region_is_left_out_with_one_word(write, caplog):
    document = collection(
        feature(polygon(), name="A", objectType="annotation"),
        feature(polygon(FAR), objectType="cell"),
        feature(polygon(FAR), objectType="detection"),
        feature(polygon(FAR), object_type="detection"),
        feature(polygon(FAR), id_="PathCellObject"),
        feature({"type": "Point", "coordinates": [1, 2]}),
        feature({"type": "MultiPoint", "coordinates": [[1, 2]]}),
        feature({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}),
        feature(None),
    )
    assert areas(read_rois(write(document), mpp=1)) == {"A": 100}
    (record,) = caplog.records
    assert record.name == "wsiscore"
    for words in ("2 × cell", "2 × detection", "2 × point", "1 × line", "1 × annotation without geometry"):
        assert words in record.getMessage()


def test_classes_choose_by_class_or_name_in_any_case(write):
    file = write(
        collection(
            feature(polygon(), name="one", classification={"name": "Tumor"}),
            feature(polygon(FAR), name="two", classification={"name": "Stroma"}),
            feature(polygon([[0, 0], [1, 1]]), name="broken, but not asked for"),
        )
    )
    assert areas(read_rois(file, mpp=1, classes=["tumor"])) == {"one": 100}
    assert areas(read_rois(file, mpp=1, classes=["TWO", "nothing"])) == {"two": 200}
    with pytest.raises(RoiError, match=r"no region is of class Necrosis; .*: Stroma, Tumor, broken"):
        read_rois(file, mpp=1, classes=["Necrosis"])


# --- XML


def layer(*regions, attributes='Name=""', inner=""):
    return f"<Annotation {attributes}>{inner}<Regions>{''.join(regions)}</Regions></Annotation>"


def region(kind, points, negative=0, text="", tag="Vertex"):
    vertices = "".join(f'<{tag} X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    attributes = f'Type="{kind}" NegativeROA="{negative}" Text="{text}"'
    return f"<Region {attributes}><Attributes/><Vertices>{vertices}</Vertices></Region>"


def annotations(*layers):
    return f'<?xml version="1.0"?><Annotations MicronsPerPixel="0">{"".join(layers)}</Annotations>'


def test_imagescope_freehand_rectangle_ellipse_and_holes(write, caplog):
    text = annotations(
        layer(
            region(0, SQUARE),
            region(0, HOLE, negative=1),
            region(1, FAR[:4], text="box"),
            region(0, [[25, 15], [40, 15], [40, 40], [25, 40]], negative=1),  # reaches over the box's corner
            region(3, [[0, 0], [9, 9]]),
            region(4, [[0, 0], [9, 9]]),
            region(5, [[0, 0]]),
            attributes='Name="Tumor"',
        ),
        layer(region(2, [[100, 100], [160, 140]]), inner='<Attributes><Attribute Value="Stroma"/></Attributes>'),
        layer(region(0, SQUARE), inner='<Attributes><Attribute Name="Description" Value=""/></Attributes>'),
    )
    rois = read_rois(write(text), mpp=1, origin_px=(1000, 1000))
    assert areas(rois) == {"Tumor": 91, "box": 175, "Stroma": math.pi * 30 * 20, "ROI": 100}
    ellipse = rois[2].outline_um
    assert ellipse.centroid.coords[0] == pytest.approx((130, 120))
    assert ellipse.bounds == pytest.approx((100, 100, 160, 140), abs=0.02)
    assert len(ellipse.exterior.coords) > 64
    (record,) = caplog.records
    assert "1 × arrow, 1 × ruler, 1 × counter" in record.getMessage()
    assert [roi.name for roi in read_rois(write(text), mpp=1, classes=["tumor"])] == ["Tumor", "box"]


def test_a_hole_stays_in_its_own_layer(write):
    text = annotations(layer(region(0, SQUARE)), layer(region(0, HOLE, negative=1), region(0, FAR)))
    assert areas(read_rois(write(text), mpp=1)) == {"ROI": 100, "ROI 2": 200}


def test_a_negative_region_can_take_all_away(write):
    text = annotations(layer(region(0, HOLE), region(0, SQUARE, negative=1)))
    with pytest.raises(RoiError, match="'ROI' is wholly cut away by the negative regions"):
        read_rois(write(text), mpp=1)


def asap(*drawn):
    return f"<ASAP_Annotations><Annotations>{''.join(drawn)}</Annotations><AnnotationGroups/></ASAP_Annotations>"


def asap_one(kind, points, name="", group="None"):
    corners = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(points))
    attributes = f'Name="{name}" Type="{kind}" PartOfGroup="{group}"'
    return f"<Annotation {attributes}><Coordinates>{corners}</Coordinates></Annotation>"


def test_asap_counts_from_the_scanners_origin(write, caplog):
    text = asap(
        asap_one("Polygon", SQUARE[:-1], group="gland"),
        asap_one("Rectangle", FAR[:-1], name="Annotation 1"),
        asap_one("Spline", HOLE[:-1]),
        asap_one("Dot", [[3, 3]]),
        asap_one("PointSet", [[3, 3], [4, 4]]),
    )
    rois = read_rois(write(text), mpp=0.5, origin_px=(-40, 6))
    assert areas(rois) == {"gland": 25, "Annotation 1": 50, "ROI": 2.25}
    assert rois[0].outline_um.bounds == (20, -3, 25, 2)
    assert "1 × dot, 1 × pointset" in caplog.text
    assert areas(read_rois(write(text), mpp=1, classes=["Gland"])) == {"gland": 100}


def test_halo_has_words_for_types_and_two_corners_for_boxes(write, caplog):
    text = annotations(
        layer(
            region("Polygon", SQUARE, tag="V"),
            region("Polygon", HOLE, negative=1, tag="V"),
            region("Rectangle", [[30, 20], [20, 0]], tag="V"),
            region("Ellipse", [[140, 100], [100, 120]], tag="V"),
            region("Ruler", [[0, 0], [5, 5]], tag="V"),
            region("Pin", [[0, 0]], tag="V"),
            attributes='Name="Layer 1" LineColor="65280" Visible="True"',
        )
    )
    rois = read_rois(write(text), mpp=1, origin_px=(100, 50))
    assert areas(rois) == {"Layer 1": 91, "Layer 1 2": 200, "Layer 1 3": math.pi * 20 * 10}
    assert rois[0].outline_um.bounds == (-100, -50, -90, -40)
    assert "1 × ruler, 1 × pin" in caplog.text


def test_only_asap_and_halo_are_moved_by_the_origin(write):
    for content in (polygon(), annotations(layer(region(0, SQUARE)))):
        assert read_rois(write(content), mpp=1, origin_px=(7, 7))[0].outline_um.bounds == (0, 0, 10, 10)


# --- what is refused

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
        ("<PASCAL/>", "<PASCAL> is none of ours"),
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
        (feature(polygon(SQUARE, FAR), name="A"), "holes of outline 'A' reach over its edge or overlap"),
        (feature(polygon(SQUARE, HOLE, HOLE), name="A"), "holes of outline 'A' reach over its edge or overlap"),
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


# --- what is mended


@pytest.mark.parametrize(
    "outline",
    [
        [[0, 0], [100, 0], [100, 100], [0, 100], [0, -2], [-2, -2]],  # the pen runs over its start
        [[0, 0], [100, 0], [100, 100], [0, 100], [0, 50], [-40, 50], [0, 50]],  # a spike
        [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0], [2, 0], [2, 2], [0, 2]],  # a small loop gone round twice
        [[0, 0], [50, 0], [50, 50], [100, 50], [100, 100], [50, 100], [50, 50], [0, 50]],  # touches itself: no crossing
    ],
)
def test_a_hair_is_mended_and_said(write, caplog, outline):
    (roi,) = read_rois(write(feature(polygon(outline), name="freehand")), mpp=0.5)
    assert roi.outline_um.is_valid
    assert roi.outline_um.area == pytest.approx(shoelace(outline) / 4, rel=0.01)
    (record,) = caplog.records
    assert "'freehand'" in record.getMessage()
    assert "1 % of the area" in record.getMessage()


def test_the_border_between_hair_and_bow_tie_is_one_percent(write):
    """A loop of area b crossed backwards: inside is a + b, the signed area a - b, so 2b / (a + b) decides."""
    for back, fine in ((9.9, True), (10.3, False)):
        outline = [[0, 0], [100, 0], [100, 100], [0, 100], [0, -back], [-back, -back]]  # b = back²/2
        file = write(polygon(outline))
        if fine:
            assert read_rois(file, mpp=1)[0].outline_um.area == pytest.approx(10000 + back**2 / 2)
        else:
            with pytest.raises(RoiError, match="crosses itself"):
                read_rois(file, mpp=1)


# --- round trip


@st.composite
def outlines_um(draw):
    """Star-shaped outlines; the hole is the same star, smaller; sometimes a second part beside it."""
    n = draw(st.integers(3, 12))
    radii = np.array(draw(st.lists(st.floats(20, 100), min_size=n, max_size=n)))
    angle = 2 * np.pi * (np.arange(n) + np.array(draw(st.lists(st.floats(0, 0.4), min_size=n, max_size=n)))) / n
    star = np.column_stack([radii * np.cos(angle), radii * np.sin(angle)])
    center = np.array([draw(st.floats(-500, 50000)), draw(st.floats(-500, 50000))])
    shrunk = draw(st.none() | st.floats(0.1, 0.8))
    part = Polygon(center + star, [] if shrunk is None else [center + shrunk * star])
    if draw(st.booleans()):
        return MultiPolygon([part, shapely.transform(part, lambda xy: xy + np.array([300, 0]))])
    return part


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


# --- beside the slide


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


# --- clipping


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


# --- real files


def vertices(element):
    return [(float(v.get("X")), float(v.get("Y"))) for v in element.iter() if v.get("X")]


@pytest.mark.shared
def test_real_qupath_imagescope_and_asap_files(shared: Path):
    folder = shared / "data" / "rois"
    document = json.loads((folder / "qupath05.geojson").read_text())
    expected = [shoelace(one["geometry"]["coordinates"][0][:-1]) for one in document["features"]]
    rois = read_rois(folder / "qupath05.geojson", mpp=0.5)
    assert [roi.name for roi in rois] == ["UT", "I", "I 2"]
    assert [roi.outline_um.area * 4 for roi in rois] == pytest.approx(expected)

    drawn = [one for one in ElementTree.parse(folder / "imagescope.xml").iter("Region") if one.get("Type") != "3"]
    (x0, y0), (x1, y1) = vertices(drawn[3])
    expected = [shoelace(vertices(one)) for one in drawn[:3]] + [math.pi * (x1 - x0) * (y1 - y0) / 4]
    rois = read_rois(folder / "imagescope.xml", mpp=2)
    assert [roi.outline_um.area / 4 for roi in rois] == pytest.approx(expected)

    root = ElementTree.parse(folder / "asap_example.xml").getroot()
    (roi,) = read_rois(folder / "asap_example.xml", mpp=1, classes=["Healthy Glands"])
    assert roi.outline_um.area == pytest.approx(shoelace(vertices(root)))


@pytest.mark.shared
def test_a_real_file_of_hundreds_of_freehand_outlines(shared: Path, caplog):
    """Most of these cross themselves by a hair; none may move by more than that."""
    file = shared / "data" / "he-monuseg" / "TCGA-B0-5698-01Z-00-DX1.xml"
    with pytest.raises(RoiError, match=r"crosses itself at \(278.6, 788.7\) px"):
        read_rois(file, mpp=1)
    file = shared / "data" / "he-monuseg" / "TCGA-A7-A13E-01Z-00-DX1.xml"
    expected = [shoelace(vertices(one)) for one in ElementTree.parse(file).iter("Region")]
    rois = read_rois(file, mpp=1)
    assert [roi.outline_um.area for roi in rois] == pytest.approx(expected, rel=0.011)
    assert all(roi.outline_um.is_valid for roi in rois)
    assert "mended outlines" in caplog.text


@pytest.mark.shared
def test_a_real_file_with_a_stray_click_names_it(shared: Path):
    file = shared / "data" / "he-monuseg" / "TCGA-50-5931-01Z-00-DX1.xml"
    with pytest.raises(RoiError, match=r"outline 'ROI 81' has 2 different corners"):
        read_rois(file, mpp=1)
