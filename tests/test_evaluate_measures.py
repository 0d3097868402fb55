"""Measures of predicted against annotated cells, and of their calibration."""

import numpy as np
import pytest
from annotated import ANY, NEG, ONE, OUT, POS, TWO, cells, clouds, true_cells
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.errors import TruthError
from wsiscore.evaluation import TrueCells
from wsiscore.evaluation.detection.calibration import Calibration
from wsiscore.evaluation.detection.files import FoundCells, read_found
from wsiscore.evaluation.detection.measures import Detection, cell_rows, compare_cells, summarise_cells


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
