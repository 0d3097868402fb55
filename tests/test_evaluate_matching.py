"""Matching of predicted with annotated cells."""

import numpy as np
import pytest
from annotated import clouds
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection import matching
from wsiscore.evaluation.detection.matching import match


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
