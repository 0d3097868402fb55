"""Laws of the stain model: what is mixed by Beer–Lambert is taken apart again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsiscore.stain import MOST_PINK, Stain, dab_od_map, disc_mean, optical_density, pink_fraction

amounts = st.floats(0.0, 1.0)


def unit(*vector):
    return tuple(np.array(vector) / np.linalg.norm(vector))


def mix(stain, hematoxylin, dab):
    """Return the (…, 3) picture of these amounts."""
    od = np.multiply.outer(hematoxylin, stain.hematoxylin) + np.multiply.outer(dab, stain.dab)
    return np.clip(np.round(np.array(stain.white) * 10**-od), 0, 255).astype(np.uint8)


def angle_deg(one, other):
    return np.degrees(np.arccos(np.clip(np.dot(one, other), -1, 1)))


def slide_pixels(stain, *, hematoxylin_share, dab_share, seed=0):
    """Return (400, 100, 3): mostly pale background, some nuclei of each stain, noise."""
    rng = np.random.default_rng(seed)
    kind = rng.random((400, 100))
    dab = kind < dab_share
    hematoxylin = (kind >= dab_share) & (kind < dab_share + hematoxylin_share)
    h_amount = np.where(hematoxylin, rng.uniform(0.3, 0.9, kind.shape), 0.03) + 0.1 * dab
    d_amount = np.where(dab, rng.uniform(0.3, 1.2, kind.shape), 0.01)
    noisy = mix(stain, h_amount, d_amount) + rng.normal(0, 2, (*kind.shape, 3))
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


@given(amounts, amounts)
def test_separation_gives_back_what_was_mixed(hematoxylin, dab):
    stain = Stain.default((240.0, 238.0, 235.0))
    found = stain.separate(mix(stain, np.full((3, 4), hematoxylin), np.full((3, 4), dab)))
    assert found.shape == (2, 3, 4)
    assert found.dtype == np.float32
    assert found[0, 1, 1] == pytest.approx(hematoxylin, abs=0.06)
    assert found[1, 1, 1] == pytest.approx(dab, abs=0.06)


@given(st.integers(1, 255), st.floats(150, 255))
def test_optical_density_falls_with_brightness_and_is_never_negative(level, white):
    low, high = (optical_density(np.full((1, 3), v, np.uint8), (white,) * 3)[0, 0] for v in (level, level - 1))
    assert 0 <= low <= high
    assert optical_density(np.full((2, 5, 3), 255, np.uint8)).max() == 0


@settings(max_examples=15, deadline=None)
@given(st.floats(-0.08, 0.08), st.floats(-0.08, 0.08), st.integers(215, 250), st.integers(0, 5))
def test_estimate_finds_the_vectors_and_the_light_of_the_slide(shift_h, shift_d, white, seed):
    true = Stain(
        unit(0.65 + shift_h, 0.704 - shift_h, 0.286),
        unit(0.268 + shift_d, 0.57, 0.776 - shift_d),
        (white,) * 3,
    )
    found = Stain.estimate(slide_pixels(true, hematoxylin_share=0.25, dab_share=0.1, seed=seed))
    assert found.found == ("hematoxylin", "dab")
    assert angle_deg(found.hematoxylin, true.hematoxylin) < 4
    assert angle_deg(found.dab, true.dab) < 5
    assert found.white == pytest.approx(true.white, rel=0.07)


@pytest.mark.parametrize(
    ("fractions", "present", "absent"),
    [((0.3, 0.0), "hematoxylin", "dab"), ((0.0, 0.3), "dab", "hematoxylin")],
)
def test_a_stain_that_is_not_there_keeps_its_published_vector(fractions, present, absent):
    true = Stain(unit(0.72, 0.62, 0.3), unit(0.3, 0.55, 0.78), (240.0,) * 3)
    pixels = slide_pixels(true, hematoxylin_share=fractions[0], dab_share=fractions[1])
    found = Stain.estimate(pixels)
    assert found.found == (present,)
    assert getattr(found, absent) == getattr(Stain.default(), absent)
    separated = dict(zip(("hematoxylin", "dab"), found.separate(pixels), strict=True))
    assert np.percentile(separated[absent], 98) < 0.15 < np.percentile(separated[present], 98)


def test_blank_glass_and_nothing_at_all_give_the_published_vectors():
    for pixels in (
        np.full((50, 50, 3), 243, np.uint8),
        np.full((9, 9, 3), 255, np.uint8),
        np.zeros((0, 3), np.uint8),
    ):
        assert Stain.estimate(pixels).found == ()


def test_estimate_is_deterministic_and_blind_to_the_order_of_the_axes():
    pixels = slide_pixels(Stain.default(), hematoxylin_share=0.2, dab_share=0.2)
    assert Stain.estimate(pixels) == Stain.estimate(pixels.reshape(-1, 3))


def test_json_round_trip():
    stain = Stain.estimate(slide_pixels(Stain.default(), hematoxylin_share=0.2, dab_share=0.2))
    assert Stain.from_json(stain.to_json()) == stain


@given(st.floats(0.05, 0.9), st.floats(0.25, 1.0))
def test_dab_map_of_an_even_picture_is_even(dab, mpp):
    stain = Stain.default()
    od = dab_od_map(mix(stain, np.zeros((30, 34)), np.full((30, 34), dab)), stain, mpp)
    assert od.shape == (30, 34)
    assert np.ptp(od) < 1e-3
    assert od[0, 0] == pytest.approx(dab, abs=0.05)


def test_disc_mean_weighs_a_disc_of_the_radius():
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    mean = disc_mean(point, 5)
    assert mean.sum() == pytest.approx(1, rel=1e-4)
    assert mean[20, 25] > 0
    assert mean[20, 27] == pytest.approx(0, abs=1e-6)
    assert (mean > mean.max() * 0.49).sum() == pytest.approx(np.pi * 25, rel=0.1)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["deepliif/ihc/22_2.png", "shidc/p1_0299_1.jpg", "glioma/caseA-1.jpg"])
def test_real_fields_show_both_stains(shared, name):
    stain = Stain.estimate(np.asarray(Image.open(shared / "data" / name).convert("RGB")))
    assert stain.found == ("hematoxylin", "dab")
    assert stain.hematoxylin[0] > stain.hematoxylin[2]
    assert stain.dab[0] < stain.dab[2]


@given(st.floats(0.1, 1.2), st.floats(0, 1.2))
def test_no_mixture_of_hematoxylin_and_dab_is_pink(hematoxylin, dab):
    assert pink_fraction(mix(Stain.default(), np.full((4, 4), hematoxylin), np.full((4, 4), dab))) == 0


def test_eosin_is_pink():
    eosin = np.full((4, 4, 3), (226, 130, 208), np.uint8)
    assert pink_fraction(eosin) == 1
    assert pink_fraction(np.full((4, 4, 3), 255, np.uint8)) == 0


@pytest.mark.shared
def test_h_and_e_is_distinguished_from_ihc(shared):
    data = shared / "data"
    he = np.asarray(Image.open(data / "he-monuseg" / "TCGA-AR-A1AS-01Z-00-DX1.tif").convert("RGB"))
    assert pink_fraction(he[::4, ::4]) > MOST_PINK
    for field in sorted((data / "deepliif" / "ihc").iterdir()):
        assert pink_fraction(np.asarray(Image.open(field).convert("RGB"))[::4, ::4]) < MOST_PINK


def test_no_pixels_have_no_density() -> None:
    assert optical_density(np.empty((0, 4, 4, 3), np.uint8)).shape == (0, 4, 4, 3)
    assert pink_fraction(np.empty((0, 4, 4, 3), np.uint8)) == 0
