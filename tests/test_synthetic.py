"""Rendered fields and slides agree with their nuclei."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import openslide
import pytest
import shapely
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiscore.cli.render import render
from wsiscore.errors import OutputError
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import render_field
from wsiscore.synthetic.ground import Layout, smooth_noise
from wsiscore.synthetic.slides import Truth, read_truth, render_slide, write_svs

seeds = st.integers(0, 2**32)


def field_of(seed, difficulty=1.0, index=30.0, side=160, mpp=0.5, **more):
    rng = np.random.default_rng(seed)
    return render_field(rng, side, side, mpp, appearance=Appearance.random(rng, difficulty), index=index, **more)


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0.25, 0.5, 0.7]))
def test_every_centre_lies_in_its_own_label(seed, mpp):
    field = field_of(seed, mpp=mpp)
    found = field.labels[(field.y_um / mpp).astype(int), (field.x_um / mpp).astype(int)]
    np.testing.assert_array_equal(found, np.arange(1, len(field.x_um) + 1))


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_same_seed_same_field(seed):
    one, other = field_of(seed), field_of(seed)
    np.testing.assert_array_equal(one.rgb, other.rgb)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert not np.array_equal(one.rgb, field_of(seed + 1).rgb)


@settings(max_examples=15, deadline=None)
@given(seeds, st.floats(0, 100))
def test_index_is_met_to_the_nearest_nucleus(seed, index):
    field = field_of(seed, index=index)
    if field.counted.any():
        assert field.ki67_index == pytest.approx(index, abs=100 / field.counted.sum() + 1e-6)


def test_index_without_nuclei_is_nan():
    glass = Layout(np.ones((64, 64), np.float32), np.ones((64, 64), np.float32))
    field = field_of(0, side=64, layout=glass)
    assert not len(field.x_um)
    assert np.isnan(field.ki67_index)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_positive_nuclei_are_browner(seed):
    tumour = Layout(np.ones((256, 256), np.float32), np.zeros((256, 256), np.float32))
    rng = np.random.default_rng(seed)
    appearance = Appearance.random(rng, 0.3)
    field = render_field(rng, 256, 256, 0.5, appearance=appearance, index=40, layout=tumour)
    od = -np.log10((field.rgb + 1.0) / (np.array(appearance.glass) + 1.0))
    third = np.cross(appearance.hematoxylin, appearance.dab)
    dab = (od @ np.linalg.inv(np.array([appearance.hematoxylin, appearance.dab, third])))[..., 1]
    row, column = (field.y_um / 0.5).astype(int), (field.x_um / 0.5).astype(int)
    at = dab[row, column]
    assert at[field.positive].mean() > 4 * abs(at[~field.positive].mean())


def test_no_nucleus_in_glass_and_kinds_follow_the_layout():
    tumour = np.zeros((256, 256), np.float32)
    tumour[:, :128] = 1
    clear = np.zeros((256, 256), np.float32)
    clear[200:] = 1
    rng = np.random.default_rng(3)
    appearance = replace(Appearance.random(rng, 0.2), artefacts=0.0)
    field = render_field(rng, 256, 256, 0.5, appearance=appearance, index=20, layout=Layout(tumour, clear))
    assert field.y_um.max() <= 100
    assert not field.counted[field.x_um > 64].any()
    assert field.counted[field.x_um < 64].mean() > 0.9


def test_nuclei_keep_off_the_margin():
    field = field_of(4, margin_um=12.0)
    assert len(field.x_um)
    border = np.concatenate([field.labels[0], field.labels[-1], field.labels[:, 0], field.labels[:, -1]])
    assert not border.any()


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0.5, 200))
def test_noise_has_unit_variance_at_every_scale(seed, scale):
    rng = np.random.default_rng(seed)
    values = np.array([smooth_noise(rng, (24, 40), scale)[7, 11] for _ in range(300)])
    assert 0.6 < values.std() < 1.4


def test_svs_is_a_pyramid_for_openslide(tmp_path):
    path = tmp_path / "a.svs"
    rgb = np.random.default_rng(0).integers(0, 255, (1100, 1301, 3), np.uint8)
    write_svs(path, lambda top, bottom: rgb[top:bottom], 1301, 1100, 0.2634)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.2634
        assert float(slide.properties["openslide.mpp-y"]) == 0.2634
        assert slide.level_dimensions == ((1301, 1100), (325, 275))
        assert "thumbnail" in slide.associated_images


def test_thumbnail_of_a_level_size_is_no_level(tmp_path):
    path = tmp_path / "a.svs"
    write_svs(path, lambda top, bottom: np.full((bottom - top, 3600, 3), 240, np.uint8), 3600, 1200, 0.5)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((3600, 1200), (900, 300))
        assert slide.associated_images["thumbnail"].size == (900, 300)


def test_svs_written_in_blocks_is_the_svs_written_whole(tmp_path):
    rng = np.random.default_rng(1)
    block = np.kron(rng.integers(0, 255, (8, 8, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
    whole = np.tile(block, (5, 4, 1))[:1200, :1000]
    asked = []

    def strip(top, bottom):
        asked.append(bottom - top)
        return np.tile(block[np.arange(top, bottom) % 256], (1, 4, 1))[:, :1000]

    write_svs(tmp_path / "blocks.svs", strip, 1000, 1200, 0.25, quality=95)
    write_svs(tmp_path / "whole.svs", lambda top, bottom: whole[top:bottom], 1000, 1200, 0.25, quality=95)
    assert (tmp_path / "blocks.svs").read_bytes() == (tmp_path / "whole.svs").read_bytes()
    assert max(asked) <= 256
    with openslide.OpenSlide(tmp_path / "blocks.svs") as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, (1000, 1200)))[..., :3].astype(int)
    assert np.abs(pixels - whole).mean() < 8


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return render_slide(
        tmp_path_factory.mktemp("slides"), "s", index=30, width_px=1400, height_px=1200, mpp=0.5, seed=7
    )


def test_slide_has_its_truth_and_its_roi(slide):
    truth = read_truth(slide.with_suffix(".truth.csv"))
    [feature] = json.loads(slide.with_suffix(".geojson").read_text())["features"]
    outline = shapely.geometry.shape(feature["geometry"])
    assert outline.is_valid
    assert len(outline.interiors) == 1
    assert outline.within(shapely.box(0, 0, 1400, 1200))
    inside = shapely.contains_xy(outline.buffer(-1), truth.x_um / 0.5, truth.y_um / 0.5)
    assert set(truth.roi[inside]) == {"Tumour"}
    counted = (truth.roi == "Tumour") & (truth.kind == "tumour")
    assert counted.sum() > 200
    assert counted.sum() > 0.95 * (truth.roi == "Tumour").sum()
    assert truth.ki67_index == pytest.approx(30, abs=5)


def test_slide_is_white_around_and_dark_at_positive_nuclei(slide):
    truth = read_truth(slide.with_suffix(".truth.csv"))
    with openslide.OpenSlide(slide) as opened:
        pixels = np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("L")).astype(int)
    corners = pixels[[5, 5, -5, -5], [5, -5, 5, -5]]
    assert corners.min() > 180
    at = pixels[(truth.y_um / 0.5).astype(int), (truth.x_um / 0.5).astype(int)]
    assert np.median(at[truth.positive]) < np.median(at[~truth.positive]) < corners.min()


def test_same_seed_same_slide(slide, tmp_path):
    again = render_slide(tmp_path / "new", "s", index=30, width_px=1400, height_px=1200, mpp=0.5, seed=7)
    for suffix in (".svs", ".geojson", ".truth.csv"):
        assert again.with_suffix(suffix).read_bytes() == slide.with_suffix(suffix).read_bytes()


def test_mirrored_slide_keeps_its_truth(tmp_path, monkeypatch):
    monkeypatch.setattr("wsiscore.synthetic.slides._BLOCK_PX", 512)
    path = render_slide(tmp_path, "m", index=50, width_px=1500, height_px=1300, mpp=0.5, seed=2)
    truth = read_truth(path.with_suffix(".truth.csv"))
    with openslide.OpenSlide(path) as opened:
        pixels = np.asarray(opened.read_region((0, 0), 0, opened.dimensions))[..., :3].astype(int)
    for column in range(3):
        mine = (truth.roi != "") & (truth.x_um // 256 == column)
        at = pixels[(truth.y_um[mine] / 0.5).astype(int), (truth.x_um[mine] / 0.5).astype(int)]
        assert np.median(at[truth.positive[mine]][:, 2]) < np.median(at[~truth.positive[mine]][:, 2]) - 30
    assert np.abs(pixels[400:900, 511] - pixels[400:900, 512]).mean() < 6


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.booleans()), max_size=5))
def test_truth_reads_back(tmp_path_factory, rows):
    x, y = (np.array([row[i] for row in rows], float) for i in range(2))
    positive = np.array([row[2] for row in rows], bool)
    roi = {"Tumour, left": shapely.box(0, 0, 5e3, 5e3)}
    truth = Truth.inside(x, y, positive, np.full(len(rows), "tumour"), roi)
    path = tmp_path_factory.getbasetemp() / "truth.csv"
    truth.write(path)
    back = read_truth(path)
    np.testing.assert_allclose(back.x_um, x, atol=0.006)
    np.testing.assert_array_equal(back.positive, positive)
    np.testing.assert_array_equal(back.roi, truth.roi)


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        render_slide(tmp_path / "file", "s", index=30, width_px=600, height_px=600, seed=0)


def test_command_prints_the_path(tmp_path):
    result = CliRunner().invoke(render, [str(tmp_path), "--size", "600", "--index", "10", "--name", "a"])
    assert result.exit_code == 0
    assert result.output.strip() == str(tmp_path / "a.svs")


def test_command_writes_pairs_and_their_nuclei(tmp_path):
    words = ["--pairs", "2", "--stains", "he,segmentation", "--mpp", "0.5", "--index", "40", "--seed", "3"]
    result = CliRunner().invoke(render, [str(tmp_path / "p"), *words])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(tmp_path / "p")
    for number in range(2):
        name = f"rendered-{number:04d}"
        assert cv2.imread(str(tmp_path / "p" / "he" / f"{name}.png")).shape == (512, 512, 3)
        mask = cv2.imread(str(tmp_path / "p" / "segmentation" / f"{name}.png"))[..., ::-1]
        truth = read_truth(tmp_path / "p" / "truth" / f"{name}.csv")
        at = mask[(truth.y_um / 0.5).astype(int), (truth.x_um / 0.5).astype(int)]
        assert (at[truth.positive, 2] == 0).all()
        assert (at[~truth.positive, 0] == 0).all()
        tumour = truth.kind == "tumour"
        assert truth.positive[tumour].sum() == pytest.approx(0.4 * tumour.sum(), abs=1)
    first = (tmp_path / "p" / "he" / "rendered-0001.png").read_bytes()
    CliRunner().invoke(render, [str(tmp_path / "again"), *words[:4], "--mpp", "0.5", "--index", "40", "--seed", "3"])
    assert (tmp_path / "again" / "he" / "rendered-0001.png").read_bytes() == first


def test_an_unknown_stain_is_a_usage_error(tmp_path):
    result = CliRunner().invoke(render, [str(tmp_path), "--pairs", "1", "--stains", "he,pas"])
    assert result.exit_code == 2
    assert "unknown stain 'pas'; choose from he, ihc" in result.output
