"""Similarity of pictures, and distances of sets of pictures."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import grey, noise, seeds

from wsiscore.evaluation.images.similarity import (
    compare_pictures,
    dists,
    frechet_distance,
    hash_values,
    kernel_distance,
)


def test_mse_and_psnr_of_one_changed_level():
    # 8 × 8 × 3 = 192 levels, one of them 16 off: 256 / 192 = 4/3; 10 log10(65025 / (4/3)) = 46.88 dB
    true = grey(np.full((8, 8), 100))
    found = true.copy()
    found[3, 4, 1] = 116
    measures = compare_pictures(found, true)
    assert measures["mse"] == pytest.approx(4 / 3)
    assert measures["psnr"] == pytest.approx(46.88, abs=0.005)


def test_flat_pictures_differ_in_luminance_alone():
    # no variance: contrast and structure (0 + C2) / (0 + C2) = 1;
    # luminance (2·100·120 + C1) / (100² + 120² + C1) with C1 = (0.01·255)² = 6.5025
    measures = compare_pictures(grey(np.full((9, 9), 120)), grey(np.full((9, 9), 100)))
    assert measures["css"] == pytest.approx(1)
    assert measures["ssim"] == pytest.approx(24006.5025 / 24406.5025)


def test_contrast_and_structure_of_one_window():
    # One window of 49 px, 24 darker, 24 lighter, one between. Means are equal, so the luminance is 1.
    # x: ±10 of 100: sample variance 4800 / 48 = 100; y: ±20: 400; covariance 200; C2 = (0.03·255)² = 58.5225
    signs = np.array([-1] * 24 + [0] + [1] * 24).reshape(7, 7)
    measures = compare_pictures(grey(100 + 20 * signs), grey(100 + 10 * signs))
    assert measures["css"] == pytest.approx(458.5225 / 558.5225)
    assert measures["ssim"] == pytest.approx(458.5225 / 558.5225)


@given(seeds)
def test_a_picture_is_like_itself(seed):
    measures = compare_pictures(noise(seed), noise(seed))
    assert measures["mse"] == 0
    assert measures["psnr"] == math.inf
    assert measures["ssim"] == pytest.approx(1)
    assert measures["css"] == pytest.approx(1)


@given(seeds, seeds)
def test_measures_of_pixels_are_symmetric(one, other):
    there, back = compare_pictures(noise(one), noise(other)), compare_pictures(noise(other), noise(one))
    assert there == pytest.approx(back)
    assert there["ssim"] <= 1


def test_the_hash_counts_channels_whose_means_moved():
    # means 0 and 0.5 against 0.005 and 0.52: by 0.005 and by 0.02; one of two moved by more than 0.01
    true = np.array([[[0.0, 0.0]], [[0.4, 0.6]]])
    found = np.array([[[0.005, 0.005]], [[0.52, 0.52]]])
    assert hash_values([found, true], [true, true]) == [0.5, 0]


def test_dists_of_a_turned_pattern():
    # (0, 1) against (1, 0): means 0.5 each: texture 1; covariance −0.25, variances 0.25: structure −1 but for c
    x, y = np.array([[[0.0, 1.0]]]), np.array([[[1.0, 0.0]]])
    assert dists([x], [y]) == pytest.approx(1 - (1 - 1) / 2, abs=1e-5)
    assert dists([x], [y], (np.array([1.0]), np.array([0.0]))) == pytest.approx(0)
    assert dists([x], [y], (np.array([0.0]), np.array([3.0]))) == pytest.approx(2, abs=1e-5)
    assert dists([x], [x]) == pytest.approx(0)


def test_frechet_distance_of_two_lines():
    # {0, 2}: mean 1, variance 2; {0, 6}: mean 3, variance 18: 2² + 2 + 18 − 2·√36 = 12
    assert frechet_distance(np.array([[0.0], [2]]), np.array([[0.0], [6]])) == pytest.approx(12)


@pytest.mark.parametrize(("pictures", "others", "width"), [(30, 20, 4), (5, 7, 6), (4, 9, 20), (2, 2, 3)])
def test_frechet_distance_is_that_of_the_definition(pictures, others, width):
    rng = np.random.default_rng(pictures)
    x, y = rng.normal(size=(pictures, width)), rng.normal(1, 2, size=(others, width))
    s, t = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.clip(np.linalg.eigvals(s @ t).real, 0, None)).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-4)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y))
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-8)


def test_kernel_distance_of_two_lines():
    # k(x, y) = (xy + 1)³. Within {0, 1}: k(0, 1) = 1; within {1, 2}: k(1, 2) = 27; across: k(0, 1) = k(0, 2) = 1,
    # k(1, 1) = 8, k(1, 2) = 27, mean 9.25. 1 + 27 − 2·9.25 = 9.5
    assert kernel_distance(np.array([[0.0], [1]]), np.array([[1.0], [2]])) == pytest.approx(9.5)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=6, max_size=6))
def test_kernel_distance_is_unbiased(population):
    """Over all ways to part six pictures in two sets of three, the estimate is 0 on average."""
    features = np.array(population, np.float64)
    parts = [
        kernel_distance(features[list(half)], np.delete(features, half, axis=0))
        for half in itertools.combinations(range(6), 3)
    ]
    assert np.mean(parts) == pytest.approx(0, abs=1e-6 * max(1, np.abs(parts).max()))


def test_one_picture_has_no_distribution():
    assert math.isnan(frechet_distance(np.ones((1, 3)), np.ones((5, 3))))
    assert math.isnan(kernel_distance(np.ones((5, 3)), np.ones((1, 3))))
