"""Predicted against annotated cells: matching, measures, and every kind of annotation."""

import csv
import gzip
import json
import subprocess
import sys
from xml.etree import ElementTree

import cv2
import h5py
import numpy as np
import pytest
import shapely
import tifffile
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from wsiscore.cells.table import Cells
from wsiscore.cli import main
from wsiscore.errors import OutputError, TruthError, WsiscoreError
from wsiscore.evaluation import Kind, TrueCells, evaluate_cells
from wsiscore.evaluation.detection import matching, points
from wsiscore.evaluation.detection.calibration import Calibration
from wsiscore.evaluation.detection.files import FoundCells, find_predicted, read_found, read_true_cells, slide_of
from wsiscore.evaluation.detection.matching import match
from wsiscore.evaluation.detection.measures import Detection, cell_rows, compare_cells, summarise_cells
from wsiscore.evaluation.detection.rois import inside_regions
from wsiscore.regions import Roi
from wsiscore.report.tables import write_cells_table
from wsiscore.synthetic.slides import Truth

NEG, POS, OUT, ANY = Kind.NEGATIVE, Kind.POSITIVE, Kind.EXCLUDED, Kind.UNKNOWN

places = st.tuples(st.integers(0, 240), st.integers(0, 240)).map(lambda at: (at[0] / 8, at[1] / 8))
clouds = st.lists(places, max_size=25).map(lambda cloud: np.array(cloud, np.float64).reshape(-1, 2))
cells = st.lists(st.tuples(places, st.booleans()), max_size=25).map(
    lambda found: FoundCells(
        np.array([at for at, _ in found], np.float64).reshape(-1, 2), np.array([is_pos for _, is_pos in found], bool)
    )
)


def true_cells(kinds):
    return st.lists(st.tuples(places, st.sampled_from(kinds)), max_size=25).map(
        lambda true: TrueCells.of([at for at, _ in true], [kind for _, kind in true])
    )


# --- matching --------------------------------------------------------------------------------------------------


@given(clouds, clouds, st.sampled_from([0.5, 2, 6]))
def test_matching_is_one_to_one_and_never_beyond_the_radius(predicted, true, radius):
    first, second = match(predicted, true, radius)
    assert len(set(first.tolist())) == len(first) == len(second) == len(set(second.tolist()))
    assert (np.hypot(*(predicted[first] - true[second]).T) <= radius).all()
    assert (np.diff(first) > 0).all()


@given(clouds, clouds, st.sampled_from([0.5, 2, 6]))
def test_matching_by_component_is_optimal(predicted, true, radius):
    first, second = match(predicted, true, radius)
    distance = np.hypot(*(predicted[:, None] - true[None]).transpose(2, 0, 1))
    cost = np.where(distance <= radius, distance, 1e6)
    rows, columns = linear_sum_assignment(cost)
    kept = cost[rows, columns] < 1e6
    assert len(first) == kept.sum()
    assert distance[first, second].sum() == pytest.approx(cost[rows, columns][kept].sum())


@given(clouds, clouds)
def test_matching_is_symmetric_in_number(predicted, true):
    assert len(match(predicted, true, 3)[0]) == len(match(true, predicted, 3)[0])


def test_two_pairs_are_better_than_one_near_one():
    # On a line: true 0 and 5, predicted 4 and 9. The nearest pair is 4–5, but then 9 and 0 are left with nobody
    # within 6. The best matching is 4–0 and 9–5.
    first, second = match(np.array([[4.0, 0], [9, 0]]), np.array([[0.0, 0], [5, 0]]), 6)
    assert (first.tolist(), second.tolist()) == ([0, 1], [0, 1])


def test_the_radius_itself_and_no_distance_at_all_are_matched():
    assert len(match(np.array([[0.0, 0]]), np.array([[0.0, 6]]), 6)[0]) == 1
    assert len(match(np.array([[0.0, 0]]), np.array([[0.0, 6.001]]), 6)[0]) == 0
    assert len(match(np.array([[1.0, 1], [1, 1]]), np.array([[1.0, 1], [1, 1]]), 6)[0]) == 2


def test_a_radius_that_connects_too_many_cells_is_an_error(monkeypatch):
    monkeypatch.setattr(matching, "_LARGEST", 8)
    with pytest.raises(TruthError, match="choose a --radius"):
        match(np.zeros((3, 2)), np.zeros((3, 2)), 6)


def test_many_cells_are_matched_in_little_memory():
    # 20,000 × 20,000 costs at once would be 3.2 GB.
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 1600, (20_000, 2))
    first, second = match(true[::-1], true, 6)
    assert len(first) == 20_000
    assert (first == 19_999 - second).all()


# --- measures --------------------------------------------------------------------------------------------------

# On a line, in µm, radius 6; L is a lymphocyte:
#   true   A+ 10   B+ 30   C- 50   D- 70   L 90
#   found  + 11    - 34    - 50            - 92   + 110   + 130
# Pairs: A–11 (right class), B–34 (wrong), C–50 (right). 92 lies on L: ignored. D is missed; 110, 130 are false.
#   TP 3, FP 2, FN 1: precision 3/5, recall 3/4, F1 6/(6+2+1) = 2/3; class accuracy 2/3
#   positive: found 11, 110, 130, true A, B: TP 1, FP 2, FN 1: 1/3, 1/2, F1 2/5
#   negative: found 34, 50 (92 ignored), true C, D: TP 1, FP 1, FN 1: 1/2, 1/2, F1 1/2
#   counts: true 2 + 2, found 3 + 2: errors 1 and 0; index true 50, found 60: error 10
ONE = (
    FoundCells(np.array([[x, 0.0] for x in (11, 34, 50, 92, 110, 130)]), np.array([1, 0, 0, 0, 1, 1], bool)),
    TrueCells.of([[x, 0.0] for x in (10, 30, 50, 70, 90)], [POS, POS, NEG, NEG, OUT]),
)
#   true   - 10   - 30   - 50   - 70
#   found  - 10   - 30   - 50   + 100   + 120
# TP 3, FP 2, FN 1; positive: TP 0, FP 2, FN 0; negative: TP 3, FP 0, FN 1
# counts: true 0 + 4, found 2 + 3: errors 2 and 1; index true 0, found 40: error 40
TWO = (
    FoundCells(np.array([[x, 0.0] for x in (10, 30, 50, 100, 120)]), np.array([0, 0, 0, 1, 1], bool)),
    TrueCells.of([[x, 0.0] for x in (10, 30, 50, 70)], [NEG] * 4),
)


def test_measures_of_one_image_are_those_on_paper():
    image = compare_cells("one", *ONE, 6)
    assert image.detection == Detection(3, 2, 1)
    assert (image.detection.precision, image.detection.recall) == (3 / 5, 3 / 4)
    assert image.detection.f1 == pytest.approx(2 / 3)
    assert image.by_class == (Detection(1, 2, 1), Detection(1, 1, 1))
    assert image.by_class[0].f1 == 2 / 5
    assert image.n_same_class == 2
    assert image.count_errors == (1, 0)
    assert image.index_error == pytest.approx(10)
    assert (image.n_excluded, image.n_ignored) == (1, 1)


def test_measures_of_two_images_are_those_on_paper():
    # TP 6, FP 4, FN 2: 6/10, 6/8, 12/18. Positive 1, 4, 1: 1/5, 1/2, 2/7. Negative 4, 1, 2: 4/5, 4/6, 8/11.
    # Class accuracy (2 + 3)/6. MP (1 + 2)/2, MN (0 + 1)/2, MA (1.5 + 0.5)/2. Index (10 + 40)/2.
    total = summarise_cells([compare_cells("one", *ONE, 6), compare_cells("two", *TWO, 6)])
    assert (total["tp"], total["fp"], total["fn"]) == (6, 4, 2)
    wanted = {
        "precision": 6 / 10,
        "recall": 6 / 8,
        "f1": 12 / 18,
        "positive_precision": 1 / 5,
        "positive_recall": 1 / 2,
        "positive_f1": 2 / 7,
        "negative_precision": 4 / 5,
        "negative_recall": 4 / 6,
        "negative_f1": 8 / 11,
        "class_accuracy": 5 / 6,
        "MP": 1.5,
        "MN": 0.5,
        "MA": 1.0,
        "index_error": 25.0,
    }
    assert {name: total[name] for name in wanted} == pytest.approx(wanted)


@given(true_cells([NEG, POS]))
def test_a_perfect_prediction_is_perfect(truth):
    image = compare_cells("x", FoundCells(truth.xy_um, truth.kind == POS), truth, 6)
    n = len(truth.kind)
    assert image.detection == Detection(n, 0, 0)
    assert image.count_errors == (0, 0)
    assert image.by_class[0] + image.by_class[1] == Detection(n, 0, 0)
    if n:
        assert image.detection.f1 == 1
        assert image.index_error == 0
    else:
        assert np.isnan([image.detection.precision, image.detection.recall, image.detection.f1]).all()
        assert np.isnan(image.index_error)


@given(cells, true_cells([NEG, POS, OUT]))
def test_swapping_the_classes_swaps_the_measures(found, truth):
    swapped = TrueCells(truth.xy_um, np.where(truth.kind == OUT, OUT, 1 - truth.kind).astype(np.int8))
    image = compare_cells("x", found, truth, 4)
    other = compare_cells("x", FoundCells(found.xy_um, ~found.positive), swapped, 4)
    assert other.detection == image.detection
    assert other.by_class == image.by_class[::-1]
    assert other.count_errors == image.count_errors[::-1]
    assert other.index_error == pytest.approx(image.index_error, nan_ok=True)
    assert other.n_same_class == image.n_same_class


@given(cells, true_cells([NEG, POS, OUT]))
def test_every_cell_is_counted_once(found, truth):
    image = compare_cells("x", found, truth, 4)
    assert image.detection.tp + image.detection.fp + image.n_ignored == len(found)
    assert image.detection.tp + image.detection.fn + image.n_excluded == len(truth.kind)
    assert image.found.n == len(found) - image.n_ignored


@given(cells, true_cells([NEG, POS]), clouds)
def test_excluded_cells_never_make_it_worse(found, truth, excluded):
    more = TrueCells.of(np.concatenate([truth.xy_um, excluded]), [*truth.kind.tolist(), *[OUT] * len(excluded)])
    image, other = compare_cells("x", found, truth, 4), compare_cells("x", found, more, 4)
    for with_them, without in zip((other.detection, *other.by_class), (image.detection, *image.by_class), strict=True):
        assert (with_them.tp, with_them.fn) == (without.tp, without.fn)
        assert with_them.fp <= without.fp


@given(cells, true_cells([NEG, POS]))
def test_a_wider_radius_never_matches_fewer(found, truth):
    matched = [compare_cells("x", found, truth, radius).detection.tp for radius in (0.5, 1, 2, 4, 8)]
    assert matched == sorted(matched)


def test_truth_without_classes_measures_detection_only():
    found, truth = ONE
    unknown = TrueCells(truth.xy_um, np.where(truth.kind == OUT, OUT, ANY).astype(np.int8))
    image = compare_cells("x", found, unknown, 6)
    assert image.detection == Detection(3, 2, 1)
    assert image.by_class is None
    total = summarise_cells([image, compare_cells("one", *ONE, 6)])
    assert (total["images"], total["images_with_classes"], total["images_with_index"]) == (2, 1, 1)
    assert (total["MP"], total["index_error"], total["class_accuracy"]) == pytest.approx((1, 10, 2 / 3))
    assert cell_rows([image])[0][7:18] == ["nan"] * 11


# --- predictions -----------------------------------------------------------------------------------------------


def write_found(path, found: FoundCells):
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(found)
    columns = (np.full(n, 0.5), found.positive.astype(float), np.zeros(n), np.zeros(n, np.int64))
    roi = Roi("all", shapely.box(0, 0, 1, 1))
    write_cells_table(path, Cells(found.xy_um[:, 0], found.xy_um[:, 1], *columns), [roi])
    return path


@given(found=cells)
def test_cells_as_score_writes_them_are_read_back(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    for name in ("cells.parquet", "cells.csv"):
        back = read_found(write_found(folder / name, found))
        assert np.allclose(back.xy_um, found.xy_um)
        assert (back.positive == found.positive).all()


def test_tables_are_found_by_folder_and_failed_slides_are_listed(tmp_path):
    a = write_found(tmp_path / "out" / "a" / "cells.parquet", ONE[0])
    b = write_found(tmp_path / "out" / "b.1" / "cells.csv", TWO[0])
    (tmp_path / "out" / "failed").mkdir()
    (tmp_path / "out" / "failed" / "run.json").write_text("{}")
    (tmp_path / "out" / "notes").mkdir()
    assert find_predicted([tmp_path / "out"]) == ({"a": a, "b.1": b}, [tmp_path / "out" / "failed"])
    assert find_predicted([a.parent, b])[0] == {"a": a, "b.1": b}
    with pytest.raises(TruthError, match="both of a"):
        find_predicted([a, a.parent])
    write_found(a.with_name("cells.csv"), ONE[0])
    with pytest.raises(TruthError, match="holds both"):
        find_predicted([tmp_path / "out"])
    with pytest.raises(TruthError, match=r"holds no cells\.parquet"):
        find_predicted([tmp_path / "out" / "notes"])


# --- truth -----------------------------------------------------------------------------------------------------


def read_one(path, *, mpp=0.5, types=None, stem="a"):
    truth, _ = read_true_cells(path, [stem], mpp=mpp, types=types or {})
    order = np.lexsort(truth[stem].xy_um.T[::-1])
    return truth[stem].xy_um[order].tolist(), truth[stem].kind[order].tolist()


def test_a_list_of_labels_is_read(tmp_path):
    cells = [{"x": 10, "y": 20, "label_id": 1}, {"x": 30, "y": 4, "label_id": 2}, {"x": 50.5, "y": 6, "label_id": 3}]
    (tmp_path / "a.json").write_text(json.dumps(cells))
    (tmp_path / "a.jpg").write_bytes(b"the picture")
    assert read_one(tmp_path) == ([[5, 10], [15, 2], [25.25, 3]], [POS, NEG, OUT])
    (tmp_path / "a.json").write_text("[]")
    assert read_one(tmp_path) == ([], [])


def feature(geometry, name=None, **more):
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})
    return {"type": "Feature", "geometry": geometry, "properties": properties, **more}


SQUARE = {"type": "Polygon", "coordinates": [[[10, 10], [14, 10], [14, 14], [10, 14], [10, 10]]]}


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
    with pytest.raises(TruthError, match="pip install h5py"):
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
    tifffile.imwrite(slide, np.tile(label_map(), (4, 4)).astype(np.uint16))  # the content alone does not tell
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


def box(left, right):
    corners = [[left, -5], [right, -5], [right, 5], [left, 5], [left, -5]]
    return feature({"type": "Polygon", "coordinates": [corners]}, "Tumor")


@pytest.fixture
def regional(tmp_path):
    """Write the cells of image one, in pixels of 0.5 µm, and the region from 20 to 60 µm beside them."""
    write_found(tmp_path / "out" / "one" / "cells.parquet", ONE[0])
    names = {POS: "positive", NEG: "negative"}
    pairs = zip(ONE[1].xy_um.tolist(), ONE[1].kind.tolist(), strict=True)
    lines = [f"{names[kind]},{x * 2},{y * 2}" for (x, y), kind in pairs if kind in names]
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "one.csv").write_text("\n".join(["class,x,y", *lines]) + "\n")
    (tmp_path / "truth" / "one.geojson").write_text(json.dumps([box(40, 120)]))
    return tmp_path


def test_cells_outside_the_regions_are_left_out(regional):
    # Inside are true B+ 30, C- 50 and found - 34, - 50: TP 2, one of the right class; true index 50, found 0.
    truth = regional / "truth"
    args = ["evaluate", "cells", f"{regional}/out", "--truth", str(truth), "--mpp", "0.5", "--regions"]
    for regions in (truth, truth / "one.geojson"):
        result = CliRunner().invoke(main, [*args, str(regions)], catch_exceptions=False)
        header, row, _ = (line.split("\t") for line in result.stdout.splitlines())
        values = dict(zip(header, row, strict=True))
        wanted = {
            "tp": "2",
            "fp": "0",
            "fn": "0",
            "class_accuracy": "0.500",
            "true_index": "50.0",
            "found_index": "0.0",
        }
        assert values | wanted == values


@given(cells, true_cells([NEG, POS, OUT]))
def test_a_region_of_everything_changes_nothing_and_one_of_nothing_leaves_nothing(tmp_path_factory, found, truth):
    folder = tmp_path_factory.mktemp("regions")
    square = [[-9, -9], [99, -9], [99, 99], [-9, 99], [-9, -9]]
    for name, shift in (("all", 0), ("none", 500)):
        corners = [[x + shift, y] for x, y in square]
        document = feature({"type": "Polygon", "coordinates": [corners]}, "Tumor")
        (folder / f"{name}.geojson").write_text(json.dumps(document))
    inside = [inside_regions(folder / "all.geojson", points.xy_um, 1.0) for points in (found, truth)]
    assert all(mask.all() for mask in inside)
    outside = [inside_regions(folder / "none.geojson", points.xy_um, 1.0) for points in (found, truth)]
    image = compare_cells("x", found.select(outside[0]), truth.select(outside[1]), 6)
    assert (image.detection, image.n_excluded) == (Detection(), 0)


def test_regions_must_be_there_and_be_one_and_have_a_scale(regional, caplog):
    truth, out = regional / "truth", [regional / "out"]
    with pytest.raises(TruthError, match=r"all of one image.*--regions"):
        evaluate_cells(out, truth, mpp=0.5)
    with pytest.raises(TruthError, match="does not exist; --regions"):
        evaluate_cells(out, truth, mpp=0.5, regions=regional / "nowhere")
    with pytest.raises(TruthError, match="regions for none of one"):
        evaluate_cells(out, truth, mpp=0.5, regions=regional / "out")
    (truth / "one.csv").write_text("x_um,y_um,class\n1,1,positive\n")
    with pytest.raises(TruthError, match=r"one\.geojson has coordinates in pixels"):
        evaluate_cells(out, truth, regions=truth)
    write_found(regional / "out" / "two" / "cells.parquet", TWO[0])
    (truth / "two.csv").write_text("x_um,y_um,class\n1,1,positive\n")
    rows = evaluate_cells(out, truth, mpp=0.5, regions=truth)
    assert [row[0] for row in rows[1:]] == ["one", "total"]
    assert "left out, no regions (1): two" in caplog.text
    (truth / "one.xml").write_text("<Annotations/>")
    with pytest.raises(TruthError, match="both regions of one"):
        evaluate_cells(out, truth, mpp=0.5, regions=truth)


# --- calibration -----------------------------------------------------------------------------------------------


def test_calibration_error_is_the_one_worked_out_by_hand():
    # Bins: [0, .1) .05 -, .05 +: mean .05, fraction .5; [.3, .4) .3 -: gap .3; [.9, 1] .9 +, 1 +: mean .95, fraction 1.
    # 2/5 · .45 + 1/5 · .3 + 2/5 · .05 = .26
    positivity, positive = np.array([0.05, 0.3, 0.9, 1.0, 0.05]), np.array([0, 0, 1, 1, 1], bool)
    assert Calibration.of(positivity, positive).error == pytest.approx(0.26)
    assert Calibration.of(positivity, positive).n == (2, 0, 0, 1, 0, 0, 0, 0, 0, 2)
    assert np.isnan(Calibration().error)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30), st.integers(0, 30))
def test_calibrations_add_up_and_lie_between_0_and_1(rows, cut):
    positivity, positive = np.array([p for p, _ in rows]), np.array([true for _, true in rows], bool)
    whole = Calibration.of(positivity, positive)
    parts = Calibration.of(positivity[:cut], positive[:cut]) + Calibration.of(positivity[cut:], positive[cut:])
    assert (parts.n, parts.positive) == (whole.n, whole.positive)
    assert parts.error == pytest.approx(whole.error, nan_ok=True)
    if rows:
        assert 0 <= whole.error <= 1
        bins = np.digitize(positivity, np.arange(1, 10) / 10)  # an independent way to the same definition
        masks = [bins == k for k in set(bins.tolist())]
        gaps = [own.mean() * abs(positive[own].mean() - positivity[own].mean()) for own in masks]
        if not np.isclose(positivity[:, None], np.arange(1, 10) / 10, atol=1e-12).any():
            assert whole.error == pytest.approx(sum(gaps))


def test_calibration_is_of_matched_cells_of_known_class():
    # Pairs A+–11, B+–34, C-–50 of known class; 92 lies on L, 110 and 130 are false: not in it.
    # .8 +, .4 +, .1 -: gaps .2, .6, .1 in bins of their own: .9/3
    found = FoundCells(ONE[0].xy_um, ONE[0].positive, np.array([0.8, 0.4, 0.1, 0.0, 1.0, 1.0]))
    image = compare_cells("one", found, ONE[1], 6)
    assert image.calibration.error == pytest.approx(0.3)
    truth = TrueCells(ONE[1].xy_um, np.where(ONE[1].kind == NEG, ANY, ONE[1].kind).astype(np.int8))
    assert sum(compare_cells("one", found, truth, 6).calibration.n) == 2
    total = summarise_cells([image, compare_cells("two", *TWO, 6)])
    assert total["ece"] == pytest.approx(0.3)
    assert np.isnan(summarise_cells([compare_cells("two", *TWO, 6)])["ece"])


def test_positivity_is_read_with_the_cells_and_must_be_one(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("x_um,y_um,class,positivity\n1,2,positive,0.75\n3,4,negative,nan\n")
    assert read_found(path).positivity.tolist() == pytest.approx([0.75, float("nan")], nan_ok=True)
    path.write_text("x_um,y_um,class\n1,2,positive\n")
    assert read_found(path).positivity is None
    path.write_text("x_um,y_um,class,positivity\n1,2,positive,75\n")
    with pytest.raises(TruthError, match=r"positivity outside \[0, 1\]"):
        read_found(path)


# --- end to end ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """Write the two images on paper, one without truth, one that failed, and the truth in pixels of 0.5 µm."""
    out = tmp_path / "wsiscore-out"
    for name, found in (("one", ONE[0]), ("two", TWO[0]), ("alone", ONE[0])):
        write_found(out / name / "cells.parquet", found)
    (out / "broken").mkdir()
    (out / "broken" / "run.json").write_text("{}")
    (tmp_path / "truth").mkdir()
    ids = {POS: 1, NEG: 2, OUT: 3}
    for name, truth in (("one", ONE[1]), ("two", TWO[1])):
        pairs = zip(truth.xy_um.tolist(), truth.kind.tolist(), strict=True)
        cells = [{"x": at[0] * 2, "y": at[1] * 2, "label_id": ids[kind]} for at, kind in pairs]
        (tmp_path / "truth" / f"{name}.json").write_text(json.dumps(cells))
    (tmp_path / "truth" / "unseen.json").write_text("[]")
    return tmp_path


def test_the_command_prints_the_table_and_writes_the_files(run, caplog):
    args = ["evaluate", "cells", f"{run}/wsiscore-out", "--truth", f"{run}/truth", "--mpp", "0.5", "-o", f"{run}/e"]
    result = CliRunner().invoke(main, args, catch_exceptions=False)
    assert result.exit_code == 0
    header, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["one", "two", "total"]
    total = dict(zip(header, rows[-1], strict=True))
    assert total | {"f1": "0.667", "mean_error": "1.0", "index_error": "25.0", "true_index": "nan"} == total
    one = dict(zip(header, rows[0], strict=True))
    assert one | {"tp": "3", "positive_f1": "0.400", "true_index": "50.0", "found_index": "60.0", "ignored": "1"} == one
    for name in ("alone", "unseen", "broken"):
        assert name in caplog.text
    written = [line.split(",") for line in (run / "e" / "cells.csv").read_text().splitlines()]
    assert written == [header, *rows]
    summary = dict(csv.reader((run / "e" / "summary.csv").read_text().splitlines()))
    assert (summary["MP"], summary["MN"], summary["MA"], summary["images_with_index"]) == ("1.5", "0.5", "1", "2")
    figure = ElementTree.fromstring((run / "e" / "index.svg").read_text())
    titles = [title.text for title in figure.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["one: 60.0 % found, 50.0 % annotated", "two: 40.0 % found, 0.0 % annotated"]


def test_images_without_an_index_are_in_a_warning(run, caplog):
    (run / "truth" / "one.json").write_text('[{"x": 1, "y": 1, "label_id": 3}]')
    write_found(run / "wsiscore-out" / "two" / "cells.parquet", FoundCells(np.zeros((0, 2)), np.zeros(0, bool)))
    evaluate_cells([run / "wsiscore-out"], run / "truth", mpp=0.5, out=run / "e")
    assert "no true cell (1): one" in caplog.text
    assert "no predicted cell (1): two" in caplog.text
    assert dict(csv.reader((run / "e" / "summary.csv").read_text().splitlines()))["index_error"] == "nan"
    assert "index of 0 images" in (run / "e" / "index.svg").read_text()


def test_names_cannot_break_the_figure(run):
    name = "a<script>&\"'"
    (run / "wsiscore-out" / "one").rename(run / "wsiscore-out" / name)
    (run / "truth" / "one.json").rename(run / "truth" / f"{name}.json")
    evaluate_cells([run / "wsiscore-out"], run / "truth", mpp=0.5, out=run / "e")
    svg = (run / "e" / "index.svg").read_text()
    assert ElementTree.fromstring(svg) is not None
    assert "<script>" not in svg


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere", "--truth", "truth", "--mpp", "1"], "nowhere holds no cells.parquet or cells.csv"),
        (["wsiscore-out", "--truth", "nowhere", "--mpp", "1"], "nowhere does not exist"),
        (["wsiscore-out", "--truth", "truth"], "with --mpp"),
        (["truth/one.json", "--truth", "truth", "--mpp", "1"], "not a table of cells"),
        (["bad.csv", "--truth", "truth/one.json", "--mpp", "1"], "cells of class tumour"),
        (["nan.csv", "--truth", "truth/one.json", "--mpp", "1"], "positions that are not finite"),
        (["wsiscore-out", "--truth", "truth", "--mpp", "1", "-o", "bad.csv/e"], "cannot write bad.csv/e"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_1(run, monkeypatch, args, says):
    monkeypatch.chdir(run)
    (run / "bad.csv").write_text("x_um,y_um,class\n1,2,tumour\n")
    (run / "nan.csv").write_text("x_um,y_um,class\n1,nan,positive\n")
    result = CliRunner().invoke(main, ["evaluate", "cells", *args])
    assert (result.exit_code, result.stdout) == (1, "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert says in errors[0]


@pytest.mark.parametrize("types", ["1", "one=positive", "1=lymphocyte", "1=positive;2=negative"])
def test_types_that_say_nothing_are_a_usage_error(types):
    result = CliRunner().invoke(main, ["evaluate", "cells", "a", "--truth", "b", "--types", types])
    assert result.exit_code == 2
    assert "1=positive,2=negative" in result.stderr


def test_types_are_taken_from_the_command_line(run):
    (run / "truth" / "one.json").unlink()
    np.save(
        run / "truth" / "one.npy",
        {"inst_map": np.array([[1, 0, 2]]), "type_map": np.array([[5, 0, 6]])},
        allow_pickle=True,
    )
    args = [f"{run}/wsiscore-out/one", "--truth", f"{run}/truth", "--mpp", "1", "--types", "5=positive, 6=negative"]
    result = CliRunner().invoke(main, ["evaluate", "cells", *args])
    assert result.stdout.splitlines()[1].split("\t")[17] == "50.0"


def test_errors_are_leaves_of_the_tree():
    assert issubclass(TruthError, WsiscoreError)
    assert issubclass(TruthError, ValueError)
    assert not issubclass(TruthError, OutputError)


def test_evaluating_loads_no_torch():
    code = "import sys, wsiscore.cli.evaluate, wsiscore.evaluation.images.evaluate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- real annotations ------------------------------------------------------------------------------------------


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
