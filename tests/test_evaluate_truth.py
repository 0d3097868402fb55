"""Every kind of annotation of cells."""

import gzip
import json
import sys

import cv2
import h5py
import numpy as np
import pytest
import tifffile
from annotated import ANY, NEG, ONE, OUT, POS, SQUARE, feature, read_one, write_found

from wsiscore.errors import TruthError
from wsiscore.evaluation import evaluate_cells
from wsiscore.evaluation.detection import points
from wsiscore.evaluation.detection.files import read_true_cells, slide_of
from wsiscore.synthetic.slides import Truth


def test_a_list_of_labels_is_read(tmp_path):
    cells = [{"x": 10, "y": 20, "label_id": 1}, {"x": 30, "y": 4, "label_id": 2}, {"x": 50.5, "y": 6, "label_id": 3}]
    (tmp_path / "a.json").write_text(json.dumps(cells))
    (tmp_path / "a.jpg").write_bytes(b"the picture")
    assert read_one(tmp_path) == ([[5, 10], [15, 2], [25.25, 3]], [POS, NEG, OUT])
    (tmp_path / "a.json").write_text("[]")
    assert read_one(tmp_path) == ([], [])


def test_geojson_points_and_outlines_are_read(tmp_path):
    far = {"type": "Polygon", "coordinates": [[[90, 90], [94, 90], [94, 94], [90, 94], [90, 90]]]}
    region = {"type": "Polygon", "coordinates": [[[0, 0], [500, 0], [500, 500], [0, 500], [0, 0]]]}
    features = [
        feature(SQUARE, "Positive"),
        feature({"type": "MultiPoint", "coordinates": [[20, 2], [40, 2]]}, "Tumor: Negative"),
        feature({"type": "Point", "coordinates": [60, 2]}, "Immune cells"),
        feature(far, "negative", nucleusGeometry={"type": "Point", "coordinates": [80, 8]}),
        feature(region, "Tumor"),
    ]
    wanted = ([[6, 6], [10, 1], [20, 1], [30, 1], [40, 4]], [POS, NEG, NEG, OUT, NEG])
    whole = json.dumps({"type": "FeatureCollection", "features": features})
    (tmp_path / "a.geojson").write_text(whole)
    assert read_one(tmp_path / "a.geojson") == wanted
    (tmp_path / "a.geojson").unlink()
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(whole.encode()))
    assert read_one(tmp_path) == wanted
    (tmp_path / "a.geojson.gz").unlink()
    (tmp_path / "a.json").write_text(json.dumps(features))
    assert read_one(tmp_path) == wanted


def test_geojson_without_classes_measures_detection(tmp_path, caplog):
    (tmp_path / "a.geojson").write_text(json.dumps(feature(SQUARE)))
    assert read_one(tmp_path) == ([[6, 6]], [ANY])
    assert not caplog.records
    (tmp_path / "a.geojson").write_text(json.dumps(feature(SQUARE, "Stroma")))
    assert read_one(tmp_path) == ([[6, 6]], [OUT])
    assert "1 cells of class 'Stroma'" in caplog.text


def test_an_outline_that_crosses_itself_has_a_middle_too():
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]]]}
    truth = points.from_json(feature(bow, "Positive"), "a", 1.0)
    assert truth.xy_um.tolist() == [[2, 2]]


def test_outlines_of_many_images_are_read_by_stem(tmp_path):
    square = SQUARE["coordinates"][0][:4]
    entries = [
        {"image": "a.jpg", "positive": [square, [[1, 1], [3, 1]]], "negative": []},
        {"image": "b.jpg", "positive": [], "negative": [square]},
    ]
    (tmp_path / "outlines.json").write_text(json.dumps(entries))
    assert read_one(tmp_path / "outlines.json") == ([[1, 0.5], [6, 6]], [POS, POS])
    truth, unused = read_true_cells(tmp_path / "outlines.json", ["b", "c"], mpp=1, types={})
    assert (list(truth), unused) == (["b"], ["a"])


def test_the_truth_of_rendered_slides_is_read_without_a_scale(tmp_path):
    kinds = np.array(["tumour", "tumour", "stroma", "tumour"])
    known = Truth(
        np.array([1.0, 2, 3, 4]),
        np.array([5.0, 6, 7, 8]),
        np.array([True, False, False, True]),
        kinds,
        np.array(["Tumour", "Tumour", "Tumour", ""]),
    )
    known.write(tmp_path / "a.truth.csv")
    (tmp_path / "a.geojson").write_text("its regions, no truth")
    assert read_one(tmp_path, mpp=None) == ([[1, 5], [2, 6], [3, 7], [4, 8]], [POS, NEG, OUT, OUT])
    (tmp_path / "plain.csv").write_text("\ufeffx_um,y_um\n1,2\n")
    assert read_one(tmp_path / "plain.csv", mpp=None) == ([[1, 2]], [ANY])


def label_map():
    """Return a map with nucleus 3 at rows 2–3, columns 4–7, and nucleus 9 of one pixel at row 8, column 0."""
    labels = np.zeros((10, 12), np.int32)
    labels[2:4, 4:8] = 3
    labels[8, 0] = 9
    return labels


MIDDLES = [[0.25, 4.25], [3.0, 1.5]]  # at 0.5 µm/px: (0.5, 8.5) px and (6, 3) px


def test_maps_of_instances_are_read(tmp_path):
    labels = label_map()
    np.save(tmp_path / "a.npy", labels)
    tifffile.imwrite(tmp_path / "a.tif", labels)
    tifffile.imwrite(tmp_path / "a.tiff", labels.astype(np.float32))
    cv2.imwrite(str(tmp_path / "a.png"), labels.astype(np.uint16))
    for name in ("a.npy", "a.tif", "a.tiff", "a.png"):
        assert read_one(tmp_path / name) == (MIDDLES, [ANY, ANY])
    assert read_one(tmp_path) == (MIDDLES, [ANY, ANY])  # the drawn one wins over the pictures


def test_maps_of_instances_are_read_with_their_types(tmp_path):
    types = np.where(label_map() == 9, 2, 1)
    types[2, 4] = 7  # one pixel of eight does not decide
    np.save(tmp_path / "a.npy", {"inst_map": label_map(), "type_map": types}, allow_pickle=True)
    assert read_one(tmp_path) == (MIDDLES, [ANY, ANY])
    assert read_one(tmp_path, types={1: POS, 2: NEG}) == (MIDDLES, [NEG, POS])
    assert read_one(tmp_path, types={1: POS}) == (MIDDLES, [OUT, POS])


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def test_code_in_a_map_is_not_run(tmp_path):
    np.save(tmp_path / "a.npy", {"inst_map": Bomb()}, allow_pickle=True)
    with pytest.raises(TruthError, match=r"holds code \(builtins\.exec\)"):
        read_one(tmp_path)


def test_masks_of_classes_are_read(tmp_path):
    mask = np.zeros((20, 20, 3), np.uint8)
    mask[1:9, 1:10] = (0, 255, 0)  # a green outline around a red and a blue nucleus
    mask[2:8, 2:5] = (255, 0, 0)  # x 3.5, y 5
    mask[2:8, 6:9] = (0, 0, 255)  # x 7.5, y 5
    mask[15:17, 15:17] = (255, 0, 0)  # 4 px: a speck of 1 µm² at 0.5 µm/px, but 4 µm² at 1 µm/px
    tifffile.imwrite(tmp_path / "a.tif", mask)
    assert read_one(tmp_path) == ([[1.75, 2.5], [3.75, 2.5]], [POS, NEG])
    assert read_one(tmp_path, mpp=1.0) == ([[3.5, 5], [7.5, 5], [16, 16]], [POS, NEG, POS])


def bcdata(folder):
    """Write two images as BCData has them, the second without a cell."""
    for kind, coordinates in (("positive", [[10, 20]]), ("negative", [[30, 40], [50, 60]])):
        (folder / kind).mkdir(parents=True)
        for stem, rows in (("0", np.array(coordinates, np.int64)), ("1", np.zeros((0, 2), np.int64))):
            with h5py.File(folder / kind / f"{stem}.h5", "w") as file:
                file["coordinates"] = rows


def test_bcdata_is_read(tmp_path):
    bcdata(tmp_path / "annotations" / "test")
    wanted = ([[5, 10], [15, 20], [25, 30]], [POS, NEG, NEG])
    assert read_one(tmp_path / "annotations" / "test", stem="0") == wanted
    assert read_one(tmp_path / "annotations", stem="0") == wanted
    assert read_one(tmp_path / "annotations", stem="1") == ([], [])
    (tmp_path / "annotations" / "test" / "negative" / "0.h5").unlink()
    with pytest.raises(TruthError, match=r"negative/0\.h5 cannot be read"):
        read_one(tmp_path / "annotations", stem="0")


def test_bcdata_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    bcdata(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(TruthError, match=r"pip install 'wsiscore\[evaluate\]'"):
        read_one(tmp_path, stem="0")


PHOTOGRAPH = np.full((9, 9, 3), 200, np.uint8)

BROKEN = {
    "a.json": [
        (b'{"a": 1}', "JSON of another kind"),
        (b"[1, 2]", "JSON of another kind"),
        (b"[{", "not whole JSON"),
        (b"[" * 100_000, "not whole JSON"),
        (b"\x1f\x8bnonsense", "not whole JSON"),
        (b'[{"x": 1, "y": 2, "label_id": 1}, {"x": 1, "label_id": 1}]', "cell no. 2 is malformed"),
        (b'[{"x": 1, "y": 2, "label_id": 4}]', "label_id 4; wanted 1 positive"),
        (b'[{"x": 1e999, "y": 2, "label_id": 1}]', "not a finite number"),
        (b'[{"image": "a.png", "positive": [[]], "negative": []}]', "cell no. 1 is malformed"),
        (b'[{"image": "a.png", "positive": 3, "negative": []}]', "cell no. 1 is malformed"),
    ],
    "a.geojson": [
        (json.dumps(feature({"type": "LineString", "coordinates": [[0, 0], [1, 1]]})).encode(), "a LineString"),
        (json.dumps(feature({"type": "Blob", "coordinates": []})).encode(), "cell no. 1 is malformed"),
        (json.dumps(feature(None)).encode(), "cell no. 1 is malformed"),
        (b'{"type": "FeatureCollection"}', "JSON of another kind"),
    ],
    "a.csv": [
        (b"x,y_um\n1,2\n", "wanted x_um, y_um and class, or x, y in pixels"),
        (b"x_um,y_um\n1,nan\n", "line 2: found"),
        (b"x_um,y_um\n1\n", "line 2: found"),
        (b"x_um,y_um,class\n1,2,red\n", "line 2: found 'red'"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "wanted x_um, y_um and class"),
    ],
    "a.npy": [
        (b"", "cannot be read"),
        (b"nonsense", "cannot be read"),
        (np.zeros(3), "no map of numbers"),
        ({"a": 1}, "wanted inst_map"),
        ({"inst_map": "b"}, "no map of numbers"),
        ({"inst_map": np.ones((3, 3), int), "type_map": np.ones((2, 2), int)}, "another shape"),
    ],
    "a.png": [(b"nonsense", "wanted a TIFF or PNG mask"), (PHOTOGRAPH, "no mask of classes: 100 %")],
    "a.tif": [
        (b"nonsense", "wanted a TIFF or PNG mask"),
        (np.zeros((4, 5, 6, 7), np.uint8), "shape (4, 5, 6, 7)"),
        (np.eye(8, dtype=np.uint8)[::2] * 255, "a number each"),
    ],
    "a.h5": [(b"", "give the folder with positive/ and negative/")],
}


@pytest.mark.parametrize(("name", "content", "says"), [(name, *case) for name, some in BROKEN.items() for case in some])
def test_broken_truth_is_one_clear_line(tmp_path, name, content, says):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".npy"):
        np.save(path, content, allow_pickle=True)
    else:
        tifffile.imwrite(path, content) if name.endswith(".tif") else cv2.imwrite(str(path), content)
    with pytest.raises(TruthError) as caught:
        read_one(path, types={1: POS})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value).strip()
    assert len(str(caught.value)) < 500


def test_truth_must_be_there_be_one_and_have_a_scale(tmp_path):
    with pytest.raises(TruthError, match="does not exist"):
        read_one(tmp_path / "nowhere")
    with pytest.raises(TruthError, match="no annotations of a known kind"):
        read_one(tmp_path)
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(TruthError, match="none of a: it has truth for b"):
        read_one(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(TruthError, match="--mpp"):
        read_one(tmp_path, mpp=None)
    (tmp_path / "a.geojson").write_text("{}")
    with pytest.raises(TruthError, match="all of one image"):
        read_one(tmp_path)


def test_one_file_serves_one_image_and_of_several_the_one_it_is_named_after(tmp_path):
    (tmp_path / "b.json").write_text("[]")
    assert read_one(tmp_path / "b.json", stem="a") == ([], [])
    assert list(read_true_cells(tmp_path / "b.json", ["a", "b"], mpp=1, types={})[0]) == ["b"]
    with pytest.raises(TruthError, match="none of a, c"):
        read_true_cells(tmp_path / "b.json", ["a", "c"], mpp=1, types={})


def brown_picture(side=48):
    """Return an IHC field: pale ground, brown and blue nuclei."""
    rgb = np.full((side, side, 3), (235, 230, 228), np.uint8)
    cv2.circle(rgb, (12, 12), 5, (120, 80, 50), -1)
    cv2.circle(rgb, (32, 30), 5, (110, 120, 170), -1)
    return rgb


@pytest.mark.parametrize("name", ["a.geojson", "a.json", "a.truth.csv", "a.csv", "a.npy", "a.png"])
def test_the_truth_of_an_ome_tiff_is_found_by_its_stem_beside_the_slide(tmp_path, name):
    slide = tmp_path / "a.ome.tif"
    tifffile.imwrite(slide, brown_picture(), photometric="rgb")
    truth = tmp_path / name
    if name.endswith("json"):
        truth.write_text(json.dumps([feature(SQUARE, "Positive")]))
    elif name.endswith("csv"):
        truth.write_text("x_um,y_um,class\n6,6,positive\n")
    elif name.endswith("npy"):
        np.save(truth, label_map())
    else:
        cv2.imwrite(str(truth), label_map().astype(np.uint16))
    found, unused = read_true_cells(tmp_path, ["a"], mpp=0.5, types={}, slides=[slide])
    assert (len(found["a"].kind) > 0, unused) == (True, [])


def test_the_slide_itself_is_never_the_truth(tmp_path):
    slide = tmp_path / "slides" / "a.ome.tif"
    table = write_found(tmp_path / "out" / "a" / "cells.parquet", ONE[0])
    (table.parent / "run.json").write_text(json.dumps({"slide": {"path": str(slide)}}))
    slide.parent.mkdir()
    tifffile.imwrite(slide, np.tile(label_map(), (4, 4)).astype(np.uint16))  # the content alone does not decide
    for truth, says in ((slide, "is the slide itself"), (slide.parent, r"a\.ome\.tif is the slide itself")):
        with pytest.raises(TruthError, match=says) as caught:
            evaluate_cells([tmp_path / "out"], truth, mpp=0.5)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("run", [None, "{", "[]", '{"slide": 3}', '{"slide": {"path": 3}}'])
def test_a_slide_is_not_known_without_its_record(tmp_path, run):
    table = write_found(tmp_path / "a" / "cells.parquet", ONE[0])
    if run is not None:
        (table.parent / "run.json").write_text(run)
    assert slide_of(table) is None


@pytest.mark.parametrize("kind", ["picture", "pyramid", "grey"])
def test_the_picture_of_a_slide_is_no_mask(tmp_path, kind):
    path, rng = tmp_path / "a.ome.tif", np.random.default_rng(0)
    if kind == "grey":
        tifffile.imwrite(path, rng.integers(1, 255, (64, 64), np.uint8))
    elif kind == "picture":
        tifffile.imwrite(path, brown_picture(), photometric="rgb")
    else:
        with tifffile.TiffWriter(path) as file:
            file.write(brown_picture(256), photometric="rgb", tile=(64, 64), subifds=1)
            file.write(brown_picture(128), photometric="rgb", tile=(64, 64), subfiletype=1)
    says = "most neighbouring pixels differ" if kind == "grey" else "as in the picture of a slide"
    with pytest.raises(TruthError, match=says):
        read_one(tmp_path)


def test_a_pyramid_of_a_class_mask_is_read_at_full_resolution(tmp_path):
    mask = np.zeros((128, 128, 3), np.uint8)
    mask[40:60, 40:60] = (255, 0, 0)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(mask, photometric="rgb", tile=(64, 64), subifds=1)
        file.write(mask[::2, ::2], photometric="rgb", tile=(64, 64), subfiletype=1)
    assert read_one(tmp_path) == ([[25, 25]], [POS])


def test_points_in_pixels_are_read_with_a_scale(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("class,x,y\npositive,10,20\nnegative,30.5,4\n")
    assert read_one(path) == ([[5, 10], [15.25, 2]], [POS, NEG])
    with pytest.raises(TruthError, match="in pixels; give the micrometres per pixel with --mpp"):
        read_one(path, mpp=None)
    path.write_text("class,x,y,x_um,y_um\npositive,10,20,1,2\n")
    assert read_one(path, mpp=None) == ([[1, 2]], [POS])


def kinds_in(path, stems, mpp, types=None):
    truth, unused = read_true_cells(path, stems, mpp=mpp, types=types or {})
    assert not unused
    return np.bincount(np.concatenate([cells.kind for cells in truth.values()]), minlength=4).tolist()


@pytest.mark.shared
def test_real_annotations_are_read(shared):
    data = shared / "data"
    fields = sorted(path.stem for path in (data / "shidc").glob("*.json"))
    assert kinds_in(data / "shidc", fields, 0.2) == [2445, 391, 352, 0]
    tiles = sorted(path.stem for path in (data / "deepliif" / "truth").glob("*.png"))
    assert kinds_in(data / "deepliif" / "truth", tiles, 0.25) == [291, 54, 0, 0]
    assert kinds_in(data / "glioma" / "polygons.json", ["caseA-27", "caseA-28"], 0.085) == [665, 619, 0, 0]
    labels = sorted(path.stem for path in (data / "he-nucls" / "labels").glob("*.npy"))
    assert kinds_in(data / "he-nucls" / "labels", labels, 0.25) == [0, 0, 0, 640]
    assert sum(kinds_in(data / "he-nucls" / "labels", labels, 0.25, {2: POS, 1: NEG})[:2]) == 640
