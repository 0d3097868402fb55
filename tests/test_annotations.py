"""Annotation files: the area of every outline of every format."""

import gzip
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from annotation_files import (
    FAR,
    HOLE,
    SQUARE,
    annotations,
    areas,
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
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.errors import RoiError
from wsiscore.roi.annotations import read_rois


@pytest.fixture
def write(tmp_path):
    def write(content, name="rois.any"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else to_text(content).encode())
        return file

    return write


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
    """Most of these cross themselves slightly; none may change by more than that."""
    file = shared / "data" / "he-monuseg" / "TCGA-B0-5698-01Z-00-DX1.xml"
    with pytest.raises(RoiError, match=r"crosses itself at \(278.6, 788.7\) px"):
        read_rois(file, mpp=1)
    file = shared / "data" / "he-monuseg" / "TCGA-A7-A13E-01Z-00-DX1.xml"
    expected = [shoelace(vertices(one)) for one in ElementTree.parse(file).iter("Region")]
    rois = read_rois(file, mpp=1)
    assert [roi.outline_um.area for roi in rois] == pytest.approx(expected, rel=0.011)
    assert all(roi.outline_um.is_valid for roi in rois)
    assert "repaired outlines" in caplog.text


@pytest.mark.shared
def test_a_real_file_with_a_stray_click_names_it(shared: Path):
    file = shared / "data" / "he-monuseg" / "TCGA-50-5931-01Z-00-DX1.xml"
    with pytest.raises(RoiError, match=r"outline 'ROI 81' has 2 different corners"):
        read_rois(file, mpp=1)
