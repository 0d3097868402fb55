"""The baseline: one centre for each nucleus, its class, no seams, and the index of rendered slides."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import center_of_mass, label, maximum_filter

from wsiscore.errors import ModelError
from wsiscore.generators import hdab
from wsiscore.models.card import read_card
from wsiscore.stain import Stain
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import render_field

MPP = hdab.SPEC.mpp
RULES = hdab.SPEC.rules
MARGIN = hdab.SPEC.margin_px
STAIN = Stain((0.71, 0.62, 0.33), (0.30, 0.56, 0.77), (238.0, 236.0, 233.0))
FEW = settings(max_examples=15, deadline=None)


def default_generator():
    return hdab.build(hdab.Config(), hdab.SPEC, None, "cpu")


def tile_of(hematoxylin, dab, seed=0):
    """Return a tile (1, 3, H, W) of these densities of stain, with blur and noise of a camera."""
    od = np.multiply.outer(hematoxylin, STAIN.hematoxylin) + np.multiply.outer(dab, STAIN.dab)
    light = cv2.GaussianBlur(np.array(STAIN.white) * 10**-od, (0, 0), 0.7)
    light += np.random.default_rng(seed).normal(0, 1.5, light.shape)
    return np.clip(np.round(light), 0, 255).astype(np.uint8).transpose(2, 0, 1)[None]


def ellipse(side, x, y, width_um, height_um, turn=0.0):
    """Return (side, side): 1 inside an ellipse, with an edge one pixel wide."""
    v, u = np.mgrid[:side, :side].astype(float) - np.array([y, x])[:, None, None]
    along, across = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    far = np.hypot(along / (width_um / 2 / MPP), across / (height_um / 2 / MPP))
    return np.clip((1 - far) * min(width_um, height_um) / 2 / MPP + 0.5, 0, 1)


def cells_of(maps):
    """Return the positions (n, 2), x and y in pixels, and the classes (n,), True if positive, from (3, H, W) maps."""
    center, positive, negative = maps
    side = 2 * round(RULES.radius_um / MPP) + 1
    peaks = (center == maximum_filter(center, side)) & (center >= RULES.threshold)
    marks, count = label(peaks, np.ones((3, 3)))
    yx = np.array(center_of_mass(peaks, marks, range(1, count + 1))).reshape(-1, 2)
    row, column = np.round(yx).astype(int).T
    return yx[:, ::-1], positive[row, column] > negative[row, column]


def field(seed, index, side=512):
    """Return a rendered field of several hundred nuclei, as a tile, and its ground truth."""
    rng = np.random.default_rng(seed)
    rendered = render_field(rng, side, side, MPP, appearance=Appearance.random(rng, 0.2), index=index)
    return rendered.rgb.transpose(2, 0, 1)[None], rendered


SOME_TILE = field(11, 30.0)[0]
GENERATOR = default_generator().for_slide(SOME_TILE)


@FEW
@given(
    st.floats(6, 20), st.floats(1.0, 1.3), st.floats(0, np.pi), st.floats(0.25, 0.8), st.booleans(), st.integers(0, 99)
)
def test_a_nucleus_of_any_size_is_one_cell_of_its_class(diameter, longer, turn, od, brown, seed):
    width, height = diameter * longer**0.5, diameter / longer**0.5
    shape = ellipse(128, 64.3, 63.8, width, height, turn)
    tile = tile_of(0.02 + (0.1 if brown else od) * shape, (od + 0.1) * shape * brown, seed)
    xy, positive = cells_of(GENERATOR(tile)[0])
    assert len(xy) == 1
    assert np.hypot(*(xy[0] - (64.3, 63.8))) * MPP < 1.5
    assert positive[0] == brown


@pytest.mark.parametrize("diameter", [10, 11, 12])
@pytest.mark.parametrize("od", [0.3, 0.5])
@pytest.mark.parametrize("brown", [False, True])
def test_a_hollow_nucleus_is_one_cell_of_its_class(diameter, od, brown):
    """Thinner or paler rings may be detected as two cells or as the other class."""
    full, middle = (ellipse(128, 64, 64, d, d) for d in (diameter, diameter - 4))
    ring = full - 0.85 * middle
    tile = tile_of(0.02 + (0.1 if brown else od) * ring, (od + 0.1) * ring * brown, 0)
    xy, positive = cells_of(GENERATOR(tile)[0])
    assert len(xy) == 1
    assert np.hypot(*(xy[0] - 64)) * MPP < 2
    assert positive[0] == brown


@FEW
@given(st.floats(7, 14), st.floats(1.0, 1.4), st.floats(0.25, 0.6), st.integers(0, 99))
def test_two_nuclei_that_touch_are_two_cells(diameter, apart, od, seed):
    half = diameter * apart / 2 / MPP
    two = np.maximum(*(ellipse(160, 80 + side * half, 80, diameter, diameter) for side in (-1, 1)))
    xy, _ = cells_of(GENERATOR(tile_of(0.02 + od * two, 0 * two, seed))[0])
    assert len(xy) == 2


def test_glass_and_uniform_stain_have_no_cells():
    flat = np.zeros((128, 128))
    for hematoxylin in (0.0, 0.1, 0.4):
        assert len(cells_of(GENERATOR(tile_of(flat + hematoxylin, flat))[0])[0]) == 0


@FEW
@given(st.integers(0, 255), st.integers(0, 99))
def test_positive_and_negative_add_up_to_one(level, seed):
    noise = np.random.default_rng(seed).integers(level // 2, level + 1, (1, 3, 64, 64), dtype=np.uint8)
    maps = GENERATOR(noise)
    np.testing.assert_allclose(maps[:, 1] + maps[:, 2], 1, atol=1e-6)
    assert maps.min() >= 0
    assert maps.max() <= 1


# The nuclear mask of a pixel depends on pixels within 5 + 16 + 15 px, by blur, erosion and blur of the background, and
# 3 px less by its own blur; a hole on the mask within 27 px; the depth on both within 7 px; the centres on that within
# 12 px of suppression and 32 px of the widest Gaussian. Positivity depends on less.
DEPENDS_ON_PX = (5 + 16 + 15) + 27 + 7 + (12 + 32)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 512 - 272), st.integers(0, 512 - 272), st.none() | st.integers(0, 999))
def test_a_pixel_depends_on_its_surroundings_alone(dx, dy, seed):
    tile = SOME_TILE if seed is None else discs(seed)
    whole = GENERATOR(tile)[0]
    part = GENERATOR(np.ascontiguousarray(tile[:, :, dy : dy + 272, dx : dx + 272]))[0]
    inside = (slice(DEPENDS_ON_PX, -DEPENDS_ON_PX),) * 2
    np.testing.assert_array_equal(part[:, *inside], whole[:, dy : dy + 272, dx : dx + 272][:, *inside])


def discs(seed):
    """Return a tile (1, 3, 512, 512) of discs and rings of any size and colour."""
    rng, rgb = np.random.default_rng(seed), np.full((512, 512, 3), 240, np.uint8)
    for _ in range(rng.integers(1, 600)):
        x, y, radius, width = (int(value) for value in rng.integers((0, 0, 3, -1), (512, 512, 40, 10)))
        cv2.circle(rgb, (x, y), radius, rng.integers(20, 230, 3).tolist(), width or -1)
    return rgb.transpose(2, 0, 1)[None].copy()


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (17, 200), (130, 131), (255, 64)])
def test_seams_at_the_margin_are_small_on_a_rendered_field(dx, dy):
    """The margin of 32 px is less than a pixel depends on; what is further away changes few pixels, and little."""
    whole = GENERATOR(SOME_TILE)[0]
    part = GENERATOR(np.ascontiguousarray(SOME_TILE[:, :, dy : dy + 256, dx : dx + 256]))[0]
    core = (slice(MARGIN, -MARGIN),) * 2
    difference = np.abs(part[:, *core] - whole[:, dy : dy + 256, dx : dx + 256][:, *core])
    assert np.quantile(difference, 0.99) < 0.01


def test_a_tile_gives_the_same_maps_alone_and_in_a_batch():
    tiles = np.concatenate([SOME_TILE[..., :256, :256], SOME_TILE[..., 256:, 256:], SOME_TILE[..., :256, 256:]])
    np.testing.assert_array_equal(GENERATOR(tiles), np.concatenate([GENERATOR(tile[None]) for tile in tiles]))


@pytest.mark.parametrize(("seed", "index"), [(1, 3.0), (6, 20.0), (3, 50.0), (4, 90.0)])
def test_the_index_of_rendered_slides_is_within_three_points(seed, index):
    tile, truth = field(seed, index, side=1024)
    generator = default_generator().for_slide(tile)
    _, positive = cells_of(generator(tile)[0])
    assert abs(100 * positive.mean() - 100 * truth.positive.mean()) < 3
    assert len(positive) == pytest.approx(len(truth.positive), rel=0.12)


def test_thresholds_follow_the_slide_and_are_in_the_settings():
    settings_found = GENERATOR.settings
    assert json.loads(json.dumps(settings_found)) == settings_found
    assert Stain.from_json(settings_found["stain"]) == GENERATOR.stain
    assert GENERATOR.for_slide(SOME_TILE) == GENERATOR
    pale = 255 - (255 - SOME_TILE) // 2
    assert default_generator().for_slide(pale).hematoxylin_cut_od < GENERATOR.hematoxylin_cut_od


@pytest.mark.parametrize("level", [255, 240, 0])
def test_an_empty_slide_keeps_the_default_thresholds(level):
    generator = default_generator().for_slide(np.full((2, 3, 64, 64), level, np.uint8))
    assert generator.stain.found == ()
    assert generator.hematoxylin_cut_od == hdab.Config().hematoxylin_od[1]


def test_a_slide_without_dab_has_no_positive_cells():
    rng = np.random.default_rng(8)
    blue = np.zeros((512, 512))
    for x, y in rng.uniform(10, 500, (250, 2)):
        blue = np.maximum(blue, rng.uniform(0.3, 0.6) * ellipse(512, x, y, 9, 8))
    tile = tile_of(0.03 + blue, np.zeros_like(blue))
    _, positive = cells_of(default_generator().for_slide(tile)(tile)[0])
    assert len(positive) > 150
    assert positive.sum() <= 2


def test_weights_are_refused():
    with pytest.raises(ModelError, match="no weights"):
        hdab.build(hdab.Config(), hdab.SPEC, {"weight": np.zeros(3)}, "cpu")


def test_the_card_has_the_spec_of_the_family():
    card = read_card(Path(__file__).parent.parent / "models" / "hdab")
    assert card.spec == hdab.SPEC
    assert card.weights is None
