"""Target maps: each nucleus has one peak, one class and one colour."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from wsiscore.models.contract import TargetRules
from wsiscore.training.targets import (
    OTHERS,
    center_map,
    class_masks,
    colour_mask,
    k_maps,
    random_classes,
)


def ellipses(*shapes):
    """Return cells, (96, 96), of ellipses given as (x, y, half length, half width, degrees, sign)."""
    cells = np.zeros((96, 96), np.int32)
    for number, (x, y, length, width, angle, sign) in enumerate(shapes, start=1):
        mask = np.zeros(cells.shape, np.uint8)
        cv2.ellipse(mask, (x, y), (length, width), angle, 0, 360, 1, -1)
        cells[mask > 0] = sign * number
    return cells


@given(
    length=st.integers(2, 22),
    ratio=st.floats(0.35, 1),
    angle=st.integers(0, 180),
    sign=st.sampled_from([-1, 1]),
)
@settings(deadline=None, max_examples=60)
def test_a_nucleus_of_any_size_and_shape_has_one_peak_at_its_centre(length, ratio, angle, sign):
    cells = ellipses((48, 47, length, max(2, round(length * ratio)), angle, sign))
    center = center_map(cells)
    assert center.max() > 200
    assert (center[cells == 0] == 0).all()
    y, x = np.nonzero(center == center.max())
    assert abs(y.mean() - 47) <= 1
    assert abs(x.mean() - 48) <= 1
    # No second peak: all that is above a height is connected.
    for height in (40, 90, 140, 190):
        assert ndi.label(center > height, np.ones((3, 3)))[1] == 1


def test_touching_nuclei_keep_a_valley_between_them():
    center = center_map(ellipses((30, 48, 12, 8, 90, 1), (46, 48, 12, 8, 90, -1)))[48].astype(int)
    assert center[30] > 230
    assert center[46] > 230
    assert center[37:40].min() < 80


def test_the_distance_map_is_the_formula_of_the_paper():
    cells = ellipses((40, 50, 6, 6, 0, 1))
    y, x = np.nonzero(cells)
    expected = 1 - np.hypot(x - x.mean(), y - y.mean()) / 28.28
    np.testing.assert_allclose(center_map(cells, "distance")[y, x] / 255, expected, atol=0.003)


def test_nuclei_that_are_not_of_the_tumour_have_the_height_asked_for():
    cells = ellipses((30, 30, 8, 8, 0, 1), (70, 70, 8, 8, 0, -1))
    cells[cells < 0] = -(OTHERS + 2)
    for others in (0.0, 0.5, 1.0):
        maps = k_maps(cells, TargetRules(others=others))
        assert maps[0, 30, 30] == 255
        assert abs(int(maps[0, 70, 70]) - 255 * others) <= 1
        np.testing.assert_array_equal(maps[1:], class_masks(cells))


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_every_nucleus_has_one_class_and_one_brightness(seed):
    labels = np.abs(ellipses(*((12 + 18 * i, 12 + 18 * j, 6, 5, 0, 1) for i in range(5) for j in range(5))))
    rng = np.random.default_rng(seed)
    cells = random_classes(labels, rng)
    np.testing.assert_array_equal(np.abs(cells), labels)
    red, green, blue = colour_mask(cells, rng)
    assert not blue.any()
    assert not red[cells <= 0].any()
    assert not green[cells >= 0].any()
    for number in range(1, 26):
        assert len({int(value) for value in cells[labels == number]}) == 1
        assert len({int(value) for value in np.maximum(red, green)[labels == number]}) == 1
    plain = colour_mask(cells, rng, variation=False)
    np.testing.assert_array_equal(plain[:2], class_masks(cells))


def test_the_fraction_of_positives_is_drawn_for_each_tile():
    labels = np.arange(1, 401).reshape(20, 20)
    fractions = [(random_classes(labels, np.random.default_rng(seed)) > 0).mean() for seed in range(200)]
    assert min(fractions) < 0.05
    assert max(fractions) > 0.95
    assert 0.4 < np.mean(fractions) < 0.6
