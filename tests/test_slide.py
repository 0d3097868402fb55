"""Slide: geometry is exact at any scale, in threads and in other processes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slides import (
    HEIGHT,
    MPP,
    WIDTH,
    noise,
    ramp,
    ramp_slide_in,
    scanner_slides_in,
    shrink,
    write_aperio,
    write_tiff,
)

from wsiscore.regions import Region
from wsiscore.slide import slide as slide_module
from wsiscore.slide.slide import Slide

law = settings(deadline=None)
scales = st.one_of(st.sampled_from([0.25, 0.5, 0.75, 1.0, 2.0, 0.2501]), st.floats(0.1, 2.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def ramp_slide(folder: Path) -> Slide:
    return ramp_slide_in(folder)


@pytest.fixture(scope="module")
def noise_slide(folder: Path) -> Slide:
    pixels = noise(WIDTH, HEIGHT)
    return Slide(write_tiff(folder / "noise.tif", [pixels, shrink(pixels, 2)]))


@pytest.fixture(scope="module")
def scanner_slides(folder: Path) -> list[Slide]:
    return scanner_slides_in(folder)


def shift_px(slide: Slide, region: Region) -> float:
    """Return the largest mean displacement, in output pixels, of a ramp read at a region inside the slide."""
    ratio = region.mpp / slide.mpp
    got = slide.read(region).astype(float)
    right = 2 * ((region.x + np.arange(region.width) + 0.5) * ratio - 0.5)
    down = 2 * ((region.y + np.arange(region.height) + 0.5) * ratio - 0.5)
    assert abs(got[..., 0] - right).max() < 1.5, "off by more than two roundings"
    assert abs(got[..., 1] - down[:, None]).max() < 1.5
    assert (got[..., 2] == 77).all()
    return max(abs((got[..., 0] - right).mean()), abs((got[..., 1] - down[:, None]).mean())) / (2 * ratio)


@law
@given(mpp=scales, left=st.floats(0.05, 0.45), top=st.floats(0.05, 0.45))
def test_a_ramp_reads_back_unshifted_at_any_scale(ramp_slide: Slide, mpp: float, left: float, top: float) -> None:
    width_um, height_um = WIDTH * MPP, HEIGHT * MPP
    x, y = int(left * width_um / mpp) + 1, int(top * height_um / mpp) + 1
    region = Region(x, y, int(0.9 * width_um / mpp) - x, int(0.9 * height_um / mpp) - y, mpp)
    assert shift_px(ramp_slide, region) < 0.26  # both levels and output are rounded to 1/2 of a grey value


@pytest.mark.parametrize("mpp", [0.25, 0.3, 0.5, 0.77, 1.0, 1.37, 2.0])
def test_the_ramp_is_not_shifted_on_average(ramp_slide: Slide, mpp: float) -> None:
    inside = int(0.6 * HEIGHT * MPP / mpp)
    shifts = [shift_px(ramp_slide, Region(x, x, inside, inside, mpp)) for x in (1, 2, 3)]
    assert np.mean(shifts) < 0.13


@law
@given(
    mpp=scales, x=st.integers(-20, 40), y=st.integers(-20, 40), cut=st.tuples(st.integers(1, 60), st.integers(1, 60))
)
def test_pieces_are_the_whole(noise_slide: Slide, mpp: float, x: int, y: int, cut: tuple[int, int]) -> None:
    whole = noise_slide.read(Region(x, y, 61, 61, mpp))
    right, down = cut
    rows = [
        np.hstack(
            [
                noise_slide.read(Region(x, top, right, high, mpp)),
                noise_slide.read(Region(x + right, top, 61 - right, high, mpp)),
            ]
        )
        for top, high in ((y, down), (y + down, 61 - down))
    ]
    assert np.array_equal(np.vstack(rows), whole)


@settings(deadline=None, max_examples=30)
@given(mpp=scales, block=st.integers(15, 60))
def test_the_size_of_blocks_does_not_matter(noise_slide: Slide, mpp: float, block: int) -> None:
    region = Region(-3, -2, 70, 66, mpp)
    whole = noise_slide.read(region)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slide_module, "_BLOCK_PX", block)
        assert np.array_equal(noise_slide.read(region), whole)


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_the_quick_way_is_the_exact_way(noise_slide: Slide, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region(-4, -5, 150 // times, 140 // times, times * MPP)
    quick = noise_slide.read(region).astype(int)
    monkeypatch.setattr(slide_module, "_DRIFT_PX", -1.0)
    assert abs(noise_slide.read(region) - quick).max() <= 1


@law
@given(mpp=st.floats(0.26, 2.5), x=st.integers(-30, 130), y=st.integers(-30, 130))
def test_a_pixel_is_the_area_average(noise_slide: Slide, mpp: float, x: int, y: int) -> None:
    """Against a direct sum over level 0, white beyond the slide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_slide, "level_mpp", noise_slide.level_mpp[:1])
        got = noise_slide.read(Region(x, y, 1, 1, mpp))[0, 0]
    ratio = mpp / MPP
    left, top = int(np.floor(x * ratio)), int(np.floor(y * ratio))
    side = int(np.ceil(ratio)) + 1
    canvas = np.full((side, side, 3), 255.0)
    pixels = noise(WIDTH, HEIGHT)
    weights = []
    for first, start in ((y, top), (x, left)):
        edges = np.arange(start, start + side + 1)
        low, high = first * ratio, (first + 1) * ratio
        weights.append(np.diff(np.clip(edges, low, high)) / ratio)
    for row in range(side):
        for column in range(side):
            if 0 <= top + row < HEIGHT and 0 <= left + column < WIDTH:
                canvas[row, column] = pixels[top + row, left + column]
    wanted = np.einsum("r,c,rck->k", weights[0], weights[1], canvas)
    assert abs(got - wanted).max() < 0.51


@law
@given(mpp=scales, x=st.integers(-400, 400), y=st.integers(-400, 400))
def test_outside_is_white(noise_slide: Slide, mpp: float, x: int, y: int) -> None:
    region = Region(x, y, 20, 20, mpp)
    pixels = noise_slide.read(region)
    left, top, right, bottom = region.bounds_um
    if right <= 0 or bottom <= 0 or left >= WIDTH * MPP or top >= HEIGHT * MPP:
        assert (pixels == 255).all()
    columns, rows = ((start + np.arange(20)) * mpp for start in (x, y))
    assert (pixels[:, (columns + mpp <= 0) | (columns >= WIDTH * MPP)] == 255).all()
    assert (pixels[(rows + mpp <= 0) | (rows >= HEIGHT * MPP)] == 255).all()


def test_an_edge_pixel_is_mixed_with_white_by_how_much_it_covers(tmp_path: Path) -> None:
    slide = Slide(write_tiff(tmp_path / "black.tif", [np.zeros((100, 101, 3), np.uint8)]))
    row = slide.read(Region(0, 0, 51, 1, 2 * MPP))[0, :, 0]
    assert row[49] == 0
    assert row[50] in (127, 128)


def test_a_slide_is_equally_large_on_all_its_levels(tmp_path: Path) -> None:
    """The levels of 103 px are cut to 51 and 25 px, but white begins at 103 px on each."""
    black = np.zeros((103, 103, 3), np.uint8)
    slide = Slide(write_tiff(tmp_path / "black.tif", [black, shrink(black, 2), shrink(black, 4)]))
    for level_mpp in slide.level_mpp:
        last = 103 * MPP / level_mpp
        row = slide.read(Region(0, 0, int(last) + 2, 1, level_mpp))[0, :, 0].astype(float)
        assert abs((1 - row / 255).sum() - last) < 0.01


def test_levels_are_whole_multiples_where_their_size_allows(ramp_slide: Slide, scanner_slides: list[Slide]) -> None:
    assert ramp_slide.level_mpp == (0.25, 0.5, 1.0)
    assert [slide.level_mpp for slide in scanner_slides] == [(0.25, 1.0)] * 2


@pytest.mark.parametrize(("mpp", "grey"), [(0.25, 0), (0.4999, 0), (0.5, 100), (0.99, 100), (1.0, 200), (9.0, 200)])
def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path: Path, mpp: float, grey: int) -> None:
    levels = [np.full((160 // k, 240 // k, 3), shade, np.uint8) for k, shade in ((1, 0), (2, 100), (4, 200))]
    with Slide(write_tiff(tmp_path / "a.tif", levels)) as slide:
        assert (slide.read(Region(0, 0, 2, 2, mpp)) == grey).all()


def test_a_level_of_no_whole_ratio_is_unshifted_too(tmp_path: Path) -> None:
    wide = ramp(125, 100)
    between = cv2.resize(wide.astype(np.float32), (50, 40), interpolation=cv2.INTER_AREA).round().astype(np.uint8)
    slide = Slide(write_aperio(tmp_path / "ramp.svs", [wide, between]))
    assert slide.level_mpp == (0.25, 0.625)
    assert shift_px(slide, Region(3, 2, 40, 30, 0.7)) < 0.2


def test_the_thumbnail_is_the_whole_slide_and_no_longer_than_asked(ramp_slide: Slide) -> None:
    assert ramp_slide.thumbnail(40).shape == (33, 40, 3)
    assert np.array_equal(ramp_slide.thumbnail(5000), ramp())
    assert np.array_equal(ramp_slide.thumbnail(40), ramp_slide.read(ramp_slide.overview(40)))


def test_a_slide_arrives_whole_in_a_worker(ramp_slide: Slide) -> None:
    region = Region(3, 4, 40, 30, 0.4)
    with Slide(ramp_slide.path, mpp=0.3) as slide, pickle.loads(pickle.dumps(slide)) as other:
        assert (other.path, other.mpp, other.level_mpp) == (slide.path, 0.3, slide.level_mpp)
        assert np.array_equal(other.read(region), slide.read(region))


@pytest.mark.parametrize("which", [0, 1], ids=["tifffile", "openslide"])
def test_threads_read_what_one_reads(scanner_slides: list[Slide], which: int) -> None:
    slide = scanner_slides[which]
    regions = [Region(37 * i % 400, 53 * i % 300, 90, 80, mpp) for i in range(24) for mpp in (0.25, 0.4, 1.1)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(slide.read, regions))
    for region, pixels in zip(regions, together, strict=True):
        assert np.array_equal(slide.read(region), pixels)
