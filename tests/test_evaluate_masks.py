"""Predicted against true masks of nuclei: pixels, whole nuclei, and the index."""

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from making import IDENTITY, MEASURED, fill, mosaic_of, whole, write_png

from wsiscore.cli import main
from wsiscore.evaluation import Kind
from wsiscore.evaluation.images.evaluate import evaluate_masks
from wsiscore.evaluation.images.overlap import (
    OVERLAPS,
    NucleusMasks,
    aji,
    compare_nuclei,
    overlaps,
    read_nucleus_masks,
)
from wsiscore.mosaic import Mosaic
from wsiscore.tiles import TileGrid, TileList

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def line(*spans):
    """Return a map of one row of 20 px: nucleus n from first to last pixel of span n."""
    labels = np.zeros((1, 20), np.int64)
    for number, (first, last) in enumerate(spans, start=1):
        labels[0, first : last + 1] = number
    return labels


maps = st.lists(st.integers(0, 4), min_size=24, max_size=24).map(lambda values: np.array(values).reshape(4, 6))
nothing = np.zeros((4, 6), np.int64)


# --- measures --------------------------------------------------------------------------------------------------


def test_measures_of_nuclei_on_a_line():
    # true   A 0–3 (4 px)  B 6–9 (4 px)  C 12–13 (2 px)
    # found  a 1–4         b 8–9                          c 16–18
    # pixels: TP 3 + 2 = 5; FP 1 (a) + 3 (c) = 4; FN 1 (A) + 2 (B) + 2 (C) = 5; 20 px in all
    # accuracy 11/20, Dice 10/(10 + 4 + 5), IoU 5/14
    # AJI: A∩a 3, A∪a 5; B∩b 2, B∪b 4; C is missed: 2 below; c is unused: 3 below: 5/(5 + 4 + 2 + 3)
    true, found = line((0, 3), (6, 9), (12, 13)), line((1, 4), (8, 9), (16, 18))
    assert overlaps(found, true) == pytest.approx(
        {"pixel_accuracy": 11 / 20, "dice": 10 / 19, "iou": 5 / 14, "aji": 5 / 14}
    )


def test_nuclei_that_run_together_cost_in_aji_only():
    # found 0–9 covers A 0–3 and B 6–9: IoU 8/10, but each takes the whole of it: (4 + 4)/(10 + 10)
    measures = overlaps(line((0, 9)), line((0, 3), (6, 9)))
    assert measures["iou"] == pytest.approx(0.8)
    assert measures["aji"] == pytest.approx(0.4)


def test_a_nucleus_takes_the_most_alike_not_the_most_overlapping():
    # true 0–3; found a 0–1 (Jaccard 2/4) and b 2–11 (2/10): a is taken, b is 10 px unused: 2/(4 + 10)
    assert aji(line((0, 1), (2, 11)), line((0, 3))) == pytest.approx(2 / 14)


@given(maps)
def test_nuclei_are_like_themselves(labels):
    measures = overlaps(labels, labels)
    wanted = 1 if labels.any() else math.nan
    assert measures == pytest.approx({"pixel_accuracy": 1, "dice": wanted, "iou": wanted, "aji": wanted}, nan_ok=True)


@given(maps, maps)
def test_measures_lie_between_0_and_1_and_those_of_pixels_are_symmetric(found, true):
    there, back = overlaps(found, true), overlaps(true, found)
    assert all(math.isnan(value) or 0 <= value <= 1 for value in there.values())
    assert {name: there[name] for name in OVERLAPS[:3]} == pytest.approx(
        {name: back[name] for name in OVERLAPS[:3]}, nan_ok=True
    )
    if found.any() or true.any():
        assert there["dice"] == pytest.approx(2 * there["iou"] / (1 + there["iou"]))
        assert there["aji"] <= there["iou"] + 1e-12


@given(maps, maps, st.permutations(range(1, 5)), st.permutations(range(5, 9)))
def test_numbers_of_nuclei_do_not_matter(found, true, one, other):
    assert aji(np.array([0, *one])[found], np.array([0, *other])[true]) == pytest.approx(aji(found, true), nan_ok=True)


@given(maps)
def test_missing_everything_is_0(labels):
    if labels.any():
        assert [overlaps(nothing, labels)[name] for name in OVERLAPS[1:]] == [0, 0, 0]
        assert [overlaps(labels, nothing)[name] for name in OVERLAPS[1:]] == [0, 0, 0]


def test_a_wrong_class_is_false_in_both():
    # DeepLIIF's example: a positive nucleus of 4 px found as negative is 4 FP of the negative class and 4 FN of the
    # positive class. With a negative one of 4 px found whole: negative TP 4, FP 4: Dice 8/12; positive 0; mean 1/3.
    # Index: 1 of 2 true, 0 of 2 found: 50 points apart.
    true = NucleusMasks(line((0, 3)), line((8, 11)))
    found = NucleusMasks(line(), line((0, 3), (8, 11)))
    measures = compare_nuclei(found, true)
    assert measures["positive_dice"] == 0
    assert measures["negative_dice"] == pytest.approx(2 / 3)
    assert measures["dice"] == pytest.approx(1 / 3)
    assert (measures["true_index"], measures["found_index"], measures["index_error"]) == (50, 0, 50)
    assert measures["pixel_accuracy"] == pytest.approx(16 / 20)


def test_without_classes_all_nuclei_count_together():
    true = NucleusMasks(line((0, 3), (8, 11)), line(), classed=False)
    found = NucleusMasks(line((0, 3)), line((8, 11)))
    measures = compare_nuclei(found, true)
    assert [measures[name] for name in OVERLAPS] == [1, 1, 1, 1]
    assert math.isnan(measures["positive_dice"])
    assert math.isnan(measures["index_error"])


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    measures = compare_nuclei(NucleusMasks(line(), line((0, 3))), NucleusMasks(line(), line((0, 1))))
    assert math.isnan(measures["positive_dice"])
    assert measures["dice"] == measures["negative_dice"] == pytest.approx(2 / 3)


# --- what is read ----------------------------------------------------------------------------------------------


def drawn():
    """Return a mask: a positive nucleus with a hole, two negative ones that a line parts, a speck."""
    rgb = np.zeros((60, 80, 3), np.uint8)
    cv2.circle(rgb, (20, 20), 8, RED, -1)
    cv2.circle(rgb, (20, 20), 2, (0, 0, 0), -1)
    cv2.rectangle(rgb, (40, 30), (60, 45), BLUE, -1)
    cv2.line(rgb, (50, 28), (50, 47), GREEN, 1)
    rgb[5:9, 70:74] = RED  # 16 px
    return rgb


def test_nuclei_of_a_coloured_mask():
    nuclei = NucleusMasks.of_classes(drawn())
    assert (nuclei.tally.n_positive, nuclei.tally.n_negative) == (1, 2)
    assert nuclei.positive[20, 20] > 0  # the hole is filled
    assert nuclei.positive[6, 71] == 0  # the speck is gone
    assert nuclei.negative[40, 50] == 0  # the line is no nucleus
    assert len(np.unique(nuclei.every)) == 4


@pytest.fixture
def folders(tmp_path):
    """Return a folder with masks of three pictures of each kind there is, predicted and true."""
    for name in ("found", "true"):
        (tmp_path / name).mkdir()
    write_png(tmp_path / "found" / "colours.png", drawn())
    tifffile.imwrite(tmp_path / "true" / "colours.tif", drawn(), photometric="rgb")
    tifffile.imwrite(tmp_path / "found" / "labels.tif", np.tile(line((0, 3), (6, 9)), (2, 1)).astype(np.uint16))
    np.save(tmp_path / "true" / "labels.npy", np.tile(line((0, 3), (6, 9), (12, 15)), (2, 1)))
    types = {"inst_map": line((0, 3), (6, 9), (12, 15)), "type_map": line((0, 3), (6, 9)) + line((12, 15)) * 7}
    np.save(tmp_path / "true" / "types.npy", types, allow_pickle=True)
    np.save(
        tmp_path / "found" / "types.npy", types | {"type_map": line((0, 9)) + line((12, 15)) * 7}, allow_pickle=True
    )
    return tmp_path


def test_masks_are_compared_whatever_their_files(folders, caplog):
    types = {1: Kind.POSITIVE, 2: Kind.NEGATIVE}
    header, *rows = evaluate_masks(folders / "found", folders / "true", types=types, out=folders / "out")
    by_stem = {row[0]: dict(zip(header[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert list(by_stem) == ["colours", "labels", "types", "total"]
    assert [by_stem["colours"][name] for name in OVERLAPS] == [1, 1, 1, 1]
    assert by_stem["colours"]["true_index"] == pytest.approx(33.33)
    # labels: the third of three nuclei of 8 px is missed: Dice 32/40
    assert by_stem["labels"]["dice"] == pytest.approx(0.8)
    assert math.isnan(by_stem["labels"]["positive_dice"])
    assert "no classes (1): labels" in caplog.text
    # types: nucleus 3 is of type 7 and left out; of two, both are found as positive: TP 4, FP 4
    assert by_stem["types"]["positive_dice"] == pytest.approx(8 / 12, abs=1e-3)
    assert by_stem["types"]["index_error"] == 50
    assert by_stem["total"]["index_error"] == 25  # the mean of the two that have one
    with (folders / "out" / "masks.csv").open() as file:
        assert list(csv.reader(file)) == [list(header), *rows]


def component_mosaic(path, rgb, skip=0):
    """Write a mask of classes as a mosaic of whole cells."""
    height, width = rgb.shape[:2]
    grid = TileGrid(width, height, 0.25, 32, 0)
    rois = whole(width * 0.25, height * 0.25)
    tiles = TileList(Path("/slides/a.svs"), 0.25, grid, tuple(rois), tuple(grid.touching(rois)), "given outlines")
    mosaic = Mosaic.create(
        path,
        tiles,
        ("positive", "boundary", "negative"),
        "float16",
        IDENTITY,
        {"output": "components", "model": {}},
        MEASURED,
    )
    fill(mosaic, np.moveaxis(rgb, -1, 0) / 255, list(grid)[skip:])


def test_a_mosaic_of_whole_cells_is_a_mask(tmp_path):
    component_mosaic(tmp_path / "out" / "a" / "mosaic.ome.zarr", drawn())
    (tmp_path / "true").mkdir()
    write_png(tmp_path / "true" / "a.png", drawn())
    _, row, _ = evaluate_masks(tmp_path / "out", tmp_path / "true")
    assert row[:5] == ["a", "1", "1", "1", "1"]


def spoil(folders, name):
    found, true = folders / "found", folders / "true"
    if name == "sizes":
        np.save(true / "labels.npy", np.zeros((1, 20), int))
    elif name == "picture":
        write_png(found / "colours.png", np.full((60, 80, 3), 230, np.uint8))
    elif name == "binary":
        np.save(true / "labels.npy", (line((0, 3), (6, 9)) > 0).astype(int))
    elif name == "empty":
        true = folders / "empty"
        true.mkdir()
    elif name == "stems":
        true = folders / "other"
        true.mkdir()
        np.save(true / "x.npy", line((0, 3)))
    elif name == "centres":
        mosaic_of(folders / "out" / "labels" / "mosaic.ome.zarr", np.zeros((4, 1, 20)), 32)
        found = folders / "out"
    elif name == "unfinished":
        component_mosaic(folders / "out" / "labels" / "mosaic.ome.zarr", drawn(), skip=1)
        found = folders / "out"
    elif name == "foreign":
        (folders / "out" / "labels" / "mosaic.ome.zarr").mkdir(parents=True)
        (folders / "out" / "labels" / "mosaic.ome.zarr" / "zarr.json").write_text(json.dumps({}))
        found = folders / "out"
    return [str(found), "--truth", str(true)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sizes", "20 × 1 px; wanted"),
        ("picture", "is no mask of classes"),
        ("binary", "one number for all nuclei"),
        ("empty", "holds no picture; wanted files .npy .png .tif .tiff"),
        ("stems", "no stem in common"),
        ("centres", "has no map boundary"),
        ("unfinished", "lacks 1 tiles"),
        ("foreign", "is not a mosaic of wsiscore"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folders, name, says):
    result = CliRunner().invoke(main, ["evaluate", "masks", *spoil(folders, name)])
    assert (result.exit_code, result.stdout) == (1, "")
    errors = [text for text in result.stderr.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 1
    assert says in errors[0]


@pytest.mark.shared
def test_published_masks_reach_about_what_the_paper_says(shared, tmp_path):
    """DeepLIIF's paper: accuracy 94.2 %, Dice 68.2 %, IoU 53.2 % on 164 tiles; these are four of them."""
    data = shared / "data" / "deepliif"
    for path in (data / "published").glob("*_fake_B_5.png"):
        (tmp_path / path.name.replace("_fake_B_5", "")).symlink_to(path)
    header, *_, total = evaluate_masks(tmp_path, data / "truth")
    values = dict(zip(header[1:], map(float, total[1:]), strict=True))
    assert values["pixel_accuracy"] == pytest.approx(0.942, abs=0.02)
    assert values["dice"] == pytest.approx(0.682, abs=0.05)
    assert values["iou"] == pytest.approx(0.532, abs=0.05)
    assert all(np.isfinite(list(values.values())))


def test_true_masks_of_one_file_are_read(tmp_path):
    write_png(tmp_path / "a.png", drawn())
    assert read_nucleus_masks(tmp_path / "a.png", {}).tally.n == 3
