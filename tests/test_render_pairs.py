"""Rendered aligned pictures: the same nuclei in every stain."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from wsiscore.synthetic.ground import Layout
from wsiscore.synthetic.pairs import render_pair
from wsiscore.synthetic.stains import STAINS

seeds = st.integers(0, 2**32)


def pair_of(seed, names=STAINS, side=160, **more):
    """Return a field of nothing but tumour."""
    layout = Layout(np.ones((side, side), np.float32), np.zeros((side, side), np.float32))
    return render_pair(np.random.default_rng(seed), side, side, 0.5, names, layout=layout, **more)


def inside(labels):
    """Return where nuclei are, without their edges."""
    numbers, square = labels.astype(np.float32), np.ones((3, 3))
    return (cv2.erode(numbers, square) == cv2.dilate(numbers, square)) & (labels > 0)


@settings(max_examples=6)
@given(seeds)
def test_nuclei_lie_where_the_labels_say_in_every_stain(seed):
    pair = pair_of(seed, index=40)
    cores, ground = inside(pair.labels), ndi.binary_erosion(pair.labels == 0, iterations=3)
    edges = (pair.labels > 0) & ~cores
    red = {name: picture[..., 0].astype(float) for name, picture in pair.pictures.items()}
    assert red["he"][cores].mean() < red["he"][ground].mean() - 10
    assert red["hematoxylin"][cores].mean() < red["hematoxylin"][ground].mean() - 10
    assert red["dapi"][cores].mean() > 2 * red["dapi"][ground].mean()
    green = pair.pictures["lap2"][..., 1].astype(float)
    assert green[edges].mean() > max(green[cores].mean(), 2 * green[ground].mean())
    known = np.isin(pair.labels, np.arange(1, len(pair.positive) + 1))
    mask = pair.pictures["segmentation"]
    assert not mask[ground].any()
    for colour, which in ((0, pair.positive), (2, ~pair.positive)):
        own = known & inside(pair.labels) & np.isin(pair.labels, 1 + np.flatnonzero(which))
        assert (np.argmax(mask[own], axis=1) == colour).all()


@settings(max_examples=6)
@given(seeds)
def test_positive_nuclei_and_only_they_glow_in_the_marker(seed):
    pair = pair_of(seed, ("marker",), index=30)
    marker = pair.pictures["marker"][..., 0]
    away = cv2.distanceTransform((~np.isin(pair.labels, 1 + np.flatnonzero(pair.positive))).astype(np.uint8), 2, 5)
    numbers = np.arange(1, len(pair.positive) + 1)
    means = ndi.median(marker, np.where(inside(pair.labels), pair.labels, 0), numbers[pair.positive])
    assert np.nanmean(means > 45) > 0.95 if len(means) else True
    beyond = np.isin(pair.labels, numbers[~pair.positive]) & (away > 10) & (pair.labels <= len(numbers))
    outside_positive = ndi.binary_dilation(pair.labels > len(numbers), iterations=10)
    assert not (marker[beyond & ~outside_positive] > 45).any()


def test_a_stain_does_not_depend_on_the_others():
    alone, together = pair_of(3, ("ihc",)), pair_of(3, ("he", "segmentation", "ihc"))
    np.testing.assert_array_equal(alone.pictures["ihc"], together.pictures["ihc"])
    np.testing.assert_array_equal(alone.labels, together.labels)
    assert list(together.pictures) == ["he", "segmentation", "ihc"]
    assert not np.array_equal(pair_of(4, ("ihc",)).pictures["ihc"], alone.pictures["ihc"])


def separation_by_form(form):
    """Return how well the coarseness of a nucleus in H&E separates the classes: 0.5 is chance, 1 certain."""
    values, positive = [], []
    for seed in range(4):
        pair = pair_of(seed, ("he",), side=256, index=40, form=form)
        od = -np.log10((pair.pictures["he"][..., 0] + 1.0) / 256)
        of = np.intersect1d(pair.labels, np.arange(1, len(pair.positive) + 1))  # some are all covered
        spread = np.array([od[pair.labels == number].std() for number in of])
        values.append(spread / np.median(spread))
        positive.append(pair.positive[of - 1])
    values, positive = np.concatenate(values), np.concatenate(positive)
    return (values[positive][:, None] > values[~positive]).mean()


def test_form_separates_the_classes_as_much_as_asked():
    assert abs(separation_by_form(0.0) - 0.5) < 0.08
    assert 0.7 < separation_by_form(0.5) < separation_by_form(1.0)
    assert separation_by_form(1.0) > 0.9


@pytest.mark.parametrize(("names", "form"), [(("he", "pas"), 1.0), (("he",), 1.5)])
def test_what_cannot_be_rendered_is_refused(names, form):
    with pytest.raises(ValueError, match=r"'pas'|form"):
        render_pair(np.random.default_rng(0), 32, 32, 0.5, names, form=form)
