"""Counts add up, intervals hold the index, and nothing is invented."""

import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.cells.table import Cells
from wsiscore.errors import RoiError
from wsiscore.regions import Roi
from wsiscore.score import MIN_CELLS, SlideScore, Tally, score_cells

counts = st.integers(0, 100_000)
tallies = st.builds(Tally, counts, counts, st.floats(0, 1e3))


def cells_at(x, y, positivity) -> Cells:
    n = len(x)
    columns = (np.asarray(column, float) for column in (x, y, np.ones(n), positivity, np.ones(n)))
    return Cells(*columns, np.zeros(n, np.int64))


@given(tallies, tallies)
def test_tallies_add_up(a: Tally, b: Tally) -> None:
    total = a + b
    assert (total.n, total.n_positive) == (a.n + b.n, a.n_positive + b.n_positive)
    assert total.area_mm2 == a.area_mm2 + b.area_mm2


@given(tallies)
def test_swapping_the_classes_mirrors_index_and_interval(tally: Tally) -> None:
    swapped = Tally(tally.n_negative, tally.n_positive, tally.area_mm2)
    if not tally.n:
        assert math.isnan(tally.ki67_index)
        assert all(math.isnan(bound) for bound in tally.interval_95)
        return
    assert swapped.ki67_index == pytest.approx(100 - tally.ki67_index)
    low, high = tally.interval_95
    assert swapped.interval_95 == pytest.approx((100 - high, 100 - low))


@given(tallies.filter(lambda tally: tally.n > 0))
def test_the_interval_holds_the_index_and_stays_a_percentage(tally: Tally) -> None:
    low, high = tally.interval_95
    assert 0 <= low <= tally.ki67_index <= high <= 100


@pytest.mark.parametrize(
    ("n", "low", "high"), [(100, 13.3, 28.9), (500, 16.7, 23.7), (1000, 17.6, 22.6), (5000, 18.9, 21.1)]
)
def test_wilson_interval_at_20_percent(n: int, low: float, high: float) -> None:
    """Against values worked out from the published formula."""
    assert Tally(n // 5, n - n // 5).interval_95 == pytest.approx((low, high), abs=0.05)


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "call"),
    [
        (0, 0, "no cells"),
        (MIN_CELLS - 1, 0, "insufficient"),
        (MIN_CELLS // 5, MIN_CELLS * 4 // 5, "indeterminate"),
        (MIN_CELLS // 5 - 1, MIN_CELLS * 4 // 5 + 1, "indeterminate"),
        (20_500, 79_500, "high"),
        (19_500, 80_500, "low"),
        (0, MIN_CELLS, "low"),
    ],
)
def test_call(n_positive: int, n_negative: int, call: str) -> None:
    assert SlideScore("s", "m", Tally(n_positive, n_negative, 1.0)).call == call


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.floats(0, 1))))
def test_disjoint_rois_sum_to_the_total_even_for_cells_on_the_shared_edge(points) -> None:
    x, y, positivity = zip(*points, strict=True) if points else ((), (), ())
    rois = [Roi("left", shapely.box(0, 0, 20, 20)), Roi("right", shapely.box(20, 0, 40, 20))]
    score = score_cells(cells_at(x, y, positivity), rois)
    left, right = score.by_roi.values()
    assert (left + right).n_positive == score.total.n_positive
    assert (left + right).n == score.total.n
    assert (left + right).area_mm2 == pytest.approx(score.total.area_mm2)


def test_overlapping_rois_count_a_cell_in_each_and_once_in_the_total() -> None:
    rois = [Roi("a", shapely.box(0, 0, 30, 10)), Roi("b", shapely.box(10, 0, 40, 10))]
    score = score_cells(cells_at([20, 5], [5, 5], [1, 0]), rois)
    assert (score.by_roi["a"].n, score.by_roi["b"].n, score.total.n) == (2, 1, 2)
    assert score.total.area_mm2 == pytest.approx(400e-6)


def test_what_could_not_be_read_is_taken_off_the_area() -> None:
    score = score_cells(
        cells_at([], [], []), [Roi("a", shapely.box(0, 0, 100, 100))], unread_um=shapely.box(0, 0, 50, 100)
    )
    assert score.total.area_mm2 == pytest.approx(5000e-6)


def test_rois_have_different_names() -> None:
    with pytest.raises(RoiError, match="same name"):
        score_cells(cells_at([], [], []), [Roi("a", shapely.box(0, 0, 1, 1))] * 2)


@pytest.mark.parametrize("cutoff", [0, 100, math.nan, -1])
def test_a_cutoff_is_a_percentage(cutoff: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        score_cells(cells_at([], [], []), [], cutoff=cutoff)
