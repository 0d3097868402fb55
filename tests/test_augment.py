"""Augmentation: nuclei stay whole and keep their class, and only what should change changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from wsiscore.training.augment import (
    blank_edge,
    counterstain,
    crop,
    defocus,
    drop_invisible,
    fade,
    warp,
    without_margin,
)
from wsiscore.training.targets import OTHERS


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_warped_nuclei_stay_whole_and_keep_their_class(seed):
    rng = np.random.default_rng(seed)
    cells = np.zeros((96, 96), np.int16)
    for number, (row, column) in enumerate(np.ndindex(6, 6), start=1):
        cells[16 * row + 3 : 16 * row + 13, 16 * column + 3 : 16 * column + 13] = number if row < 3 else -number
    rgb = np.where(cells[..., None] > 0, [120, 80, 50], np.where(cells[..., None] < 0, [90, 100, 150], 230))
    picture, warped = warp(rng, rgb.astype(np.uint8), cells, 64)
    assert picture.shape == (64, 64, 3)
    for number in np.unique(warped[warped != 0]):
        assert ndi.label(warped == number, np.ones((3, 3)))[1] == 1
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    inside = without_margin(warped[None])[0]
    eroded = {sign: ndi.binary_erosion(np.sign(inside) == sign, iterations=2) for sign in (1, -1)}
    assert (red[eroded[1]] > blue[eroded[1]]).all()
    assert (red[eroded[-1]] < blue[eroded[-1]]).all()


def test_beyond_a_slides_edge_all_is_white_and_without_nuclei():
    blanked = 0
    for seed in range(60):
        rgb, cells = np.full((64, 64, 3), 200, np.uint8), np.ones((96, 96), np.int32)
        blank_edge(np.random.default_rng(seed), rgb, cells)
        np.testing.assert_array_equal((rgb == 255).all(-1), without_margin(cells[None])[0] == 0)
        blanked += bool((rgb == 255).any())
    assert 2 < blanked < 30


def two_nuclei():
    """Return (64, 64, 3) of a positive and a negative nucleus on textured ground, and their cells with the margin."""
    cells = np.zeros((96, 96), np.int32)
    cells[30:42, 30:42], cells[54:66, 54:66] = 1, -2
    rgb = np.random.default_rng(0).normal(225, 2, (64, 64, 3))
    rgb[without_margin(cells[None])[0] > 0] = (120, 80, 50)
    rgb[without_margin(cells[None])[0] < 0] = (110, 120, 170)
    return rgb.astype(np.uint8), cells


def test_a_nucleus_that_cannot_be_seen_is_dropped():
    rgb, cells = two_nuclei()
    drop_invisible(rgb, cells)
    assert set(np.unique(cells)) == {-2, 0, 1}
    hidden = np.where((without_margin(cells[None])[0] < 0)[..., None], np.uint8(225), rgb)
    drop_invisible(hidden, cells)
    assert set(np.unique(cells)) == {0, 1}


@pytest.mark.parametrize(("change", "sign", "darker"), [(fade, -1, False), (counterstain, 1, True)])
def test_dyes_change_on_nuclei_alone(change, sign, darker):
    rgb, cells = two_nuclei()
    inside = without_margin(cells[None])[0]
    ground = ~ndi.binary_dilation(inside != 0, iterations=4)
    mean = rgb[np.sign(inside) == sign].mean()
    changed = [change(np.random.default_rng(seed), rgb, inside) for seed in range(40)]
    means = np.array([picture[np.sign(inside) == sign].mean() for picture in changed])
    assert 0.1 < (abs(means - mean) > 1).mean() < 0.9
    assert ((means < mean + 1) if darker else (means > mean - 1)).all()
    for picture in changed:
        assert np.abs(picture[ground].astype(int) - rgb[ground]).max() <= 1


@pytest.mark.parametrize("stroma", [False, True])
def test_only_in_stroma_a_nucleus_out_of_focus_is_not_counted_as_tumour(stroma):
    left_out = 0
    for seed in range(60):
        rgb, cells = two_nuclei()
        if stroma:
            cells[20:26, 60:66] = -OTHERS - 3
        before = cells.copy()
        blurred = defocus(np.random.default_rng(seed), rgb, cells)
        np.testing.assert_array_equal(np.sign(cells), np.sign(before))
        changed = without_margin((cells != before)[None])[0]
        assert (np.abs(cells[cells != before]) == np.abs(before[cells != before]) + OTHERS).all()
        for nucleus in (1, -2):
            mine = without_margin((before == nucleus)[None])[0]
            assert changed[mine].all() or not changed[mine].any()
            if changed[mine].any():
                assert (blurred[mine] != rgb[mine]).any()
                left_out += 1
    assert bool(left_out) == stroma


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_crop_is_a_square_of_the_picture_rotated_and_flipped_only(seed):
    picture = np.arange(40 * 50).reshape(40, 50)
    square = crop(np.random.default_rng(seed), picture, 16)
    rows, columns = np.unique(square // 50), np.unique(square % 50)
    assert square.shape == (16, 16)
    assert len(np.unique(square)) == 16 * 16  # no pixel twice: nothing is mirrored into it
    assert np.ptp(rows) == np.ptp(columns) == 15
