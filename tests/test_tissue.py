"""Tissue is found on drawn slides whose tissue is known, and on real ones."""

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely.geometry import Point, Polygon

from wsiscore.roi.tissue import find_tissue
from wsiscore.slide.slide import Slide

MPP = 8.0
HEIGHT, WIDTH = 700, 1000  # 5.6 × 8 mm
HEMATOXYLIN = np.array([0.65, 0.70, 0.29])
INKS = {"blue": (25, 50, 190), "green": (20, 130, 70), "red": (205, 25, 40), "black": (25, 25, 28)}
MANY = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def glass(white=(240, 238, 236), height=HEIGHT, width=WIDTH, seed=0):
    """Return a picture of empty glass: noise, and a little less light in the corners."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.array(white) * (1 - 0.012 * (x**2 + y**2))[..., None] + rng.normal(0, 1.2, (height, width, 3))


def stain(picture, outline_px, od=0.06, seed=1):
    """Put tissue on a picture: hematoxylin that is a little uneven, in an outline of pixels."""
    rng = np.random.default_rng(seed)
    inside = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.round(shapely.get_coordinates(outline_px)).astype(np.int32)], 1)
    amount = od * inside * np.clip(rng.normal(1, 0.4, inside.shape), 0, 3)
    return picture * 10 ** -(amount[..., None] * HEMATOXYLIN)


def blob(x, y, radius, lobes=3):
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    edge = radius * (1 + 0.2 * np.sin(lobes * angle))
    return Polygon(np.stack([x + edge * np.cos(angle), y + edge * np.sin(angle)], axis=1))


def slide_of(picture, folder, mpp=MPP):
    path = folder / "slide.png"
    Image.fromarray(np.clip(np.round(picture), 0, 255).astype(np.uint8)).save(path, compress_level=1)
    return Slide(path, mpp=mpp)


def agreement(rois, outline_px, mpp=MPP):
    """Return the intersection over union of what was found and what was drawn."""
    truth = shapely.transform(outline_px, lambda xy: xy * mpp)
    found = shapely.union_all([roi.outline_um for roi in rois])
    return found.intersection(truth).area / found.union(truth).area


@MANY
@given(st.integers(190, 250), st.floats(0.93, 1.0), st.floats(0.055, 0.6))
def test_tissue_is_found_whatever_the_light_and_however_pale(tmp_path, white, warm, od):
    tissue = blob(480, 350, 200)
    picture = stain(glass((white, white, white * warm)), tissue, od)
    rois = find_tissue(slide_of(picture, tmp_path))
    assert [roi.name for roi in rois] == ["tissue 1"]
    assert agreement(rois, tissue) > 0.93
    assert rois[0].outline_um.is_valid


@MANY
@given(st.integers(170, 254), st.floats(0.8, 1.0))
def test_glass_alone_is_no_tissue(tmp_path, white, warm):
    assert find_tissue(slide_of(glass((white, white, white * warm)), tmp_path)) == []


@pytest.mark.parametrize("level", [255, 0, 180])
def test_an_even_picture_is_no_tissue(tmp_path, level):
    assert find_tissue(slide_of(np.full((60, 50, 3), level), tmp_path)) == []


@pytest.mark.parametrize("ink", INKS)
def test_pen_is_no_tissue(tmp_path, ink):
    picture = glass()
    tissue = blob(600, 350, 180)
    pen = np.zeros((HEIGHT, WIDTH), np.float32)
    cv2.polylines(pen, [np.array([[60, 60], [250, 200], [180, 640], [330, 660]], np.int32)], False, 1.0, 60)
    cover = cv2.GaussianBlur(pen, (0, 0), 1.5)[..., None] * 0.95
    picture = stain(picture * (1 - cover) + np.array(INKS[ink]) * cover, tissue, 0.1)
    rois = find_tissue(slide_of(picture, tmp_path))
    assert len(rois) == 1
    assert agreement(rois, tissue) > 0.93


def test_dust_borders_and_the_edge_of_the_glass_are_no_tissue(tmp_path):
    picture = glass()
    rng = np.random.default_rng(3)
    for x, y in rng.integers(40, 660, (30, 2)):
        cv2.circle(picture, (int(x), int(y)), int(rng.integers(1, 5)), (60, 60, 65), -1)
    picture[:, 960:985] *= 0.8  # the edge of the glass, seen as a grey strip
    picture[:, 985:] *= 0.97
    picture[:25] = 4  # what the scanner did not scan
    tissue = blob(500, 360, 180)
    rois = find_tissue(slide_of(stain(picture, tissue, 0.1), tmp_path))
    assert len(rois) == 1
    assert agreement(rois, tissue) > 0.93


def test_a_dark_edge_without_tissue_is_nothing(tmp_path):
    picture = glass()
    picture[:, :20] *= 0.7
    picture[:, -12:] = 0
    assert find_tissue(slide_of(picture, tmp_path)) == []


def test_pieces_are_named_by_size_and_crumbs_left_out(tmp_path):
    shapes = [blob(200, 350, 80), blob(600, 350, 200), Point(900, 100).buffer(3.0)]
    picture = glass()
    for shape in shapes:
        picture = stain(picture, shape, 0.2)
    rois = find_tissue(slide_of(picture, tmp_path))
    assert [roi.name for roi in rois] == ["tissue 1", "tissue 2"]
    assert rois[0].area_mm2 > 2 * rois[1].area_mm2
    assert rois[0].outline_um.contains(Point(600 * MPP, 350 * MPP))


def test_lumens_stay_tissue_and_large_holes_do_not(tmp_path):
    lumen, cavity = Point(450, 350).buffer(7), Point(560, 350).buffer(40)
    tissue = blob(500, 350, 200).difference(lumen).difference(cavity)
    picture = stain(glass(), blob(500, 350, 200), 0.2)
    for hole in (lumen, cavity):
        cv2.fillPoly(picture, [shapely.get_coordinates(hole).round().astype(np.int32)], (240, 238, 236))
    rois = find_tissue(slide_of(picture, tmp_path))
    assert len(rois) == 1
    assert len(rois[0].outline_um.interiors) == 1
    assert rois[0].outline_um.contains(Point(450 * MPP, 350 * MPP))
    assert not rois[0].outline_um.contains(Point(560 * MPP, 350 * MPP))
    assert agreement(rois, tissue) > 0.93


@MANY
@given(st.floats(0.08, 0.5), st.floats(0.4, 0.9), st.integers(0, 9))
def test_a_field_full_of_tissue_is_returned_whole(tmp_path, od, spread, seed):
    rng = np.random.default_rng(seed)
    patchy = cv2.GaussianBlur(rng.normal(0, 1, (300, 400)).astype(np.float32), (0, 0), 3)
    amount = od * np.exp(spread * patchy / patchy.std())
    picture = glass(height=300, width=400) * 10 ** -(amount[..., None] * HEMATOXYLIN)
    rois = find_tissue(slide_of(picture, tmp_path, mpp=0.5))
    assert len(rois) == 1
    assert agreement(rois, shapely.box(0, 0, 400, 300), 0.5) > 0.97


def test_outlines_lie_on_the_slide_and_have_a_sane_number_of_corners(tmp_path):
    rng = np.random.default_rng(5)
    ragged = cv2.GaussianBlur(rng.normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32), (0, 0), 12)
    amount = 0.2 * (ragged > 0.2 * ragged.std()) * rng.uniform(0.5, 1.5, ragged.shape)
    rois = find_tissue(slide_of(glass() * 10 ** -(amount[..., None] * HEMATOXYLIN), tmp_path))
    assert rois
    slide_um = shapely.box(0, 0, WIDTH * MPP, HEIGHT * MPP)
    for roi in rois:
        assert roi.outline_um.is_valid
        assert slide_um.covers(roi.outline_um)
        assert len(shapely.get_coordinates(roi.outline_um)) < roi.outline_um.length / 20


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "mpp", "least", "most"),
    [
        ("wsi/OS-2-vsi.ome.tif", None, 0.85, 0.97),  # glass in two corners
        ("wsi/cmu-1-small-region.svs", None, 0.40, 0.52),
        ("deepliif/ihc/6_2.png", 0.25, 0.95, 1.0),
        ("deepliif/ihc/799_2.png", 0.25, 0.80, 0.92),  # pale, and glass in one corner
        ("shidc/p1_0300_2.jpg", 0.2, 0.95, 1.0),
        ("glioma/caseA-1.jpg", 0.085, 0.95, 1.0),
        ("net/1.tif", 0.25, 0.95, 1.0),
    ],
)
def test_real_slides(shared, name, mpp, least, most):
    slide = Slide(shared / "data" / name, mpp=mpp)
    found = sum(roi.area_mm2 for roi in find_tissue(slide))
    assert least <= found / (slide.width_px * slide.height_px * slide.mpp**2 / 1e6) <= most
