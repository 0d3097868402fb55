"""Tiled JPEG at half its size: nearly the mean of 2 × 2 pixels, the same in any rectangle, and exact where in doubt."""

from __future__ import annotations

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsiscore.regions import Region
from wsiscore.slide.readers.jpeg import decode_half
from wsiscore.slide.readers.tiff import TiffReader
from wsiscore.slide.slide import Slide

HEIGHT, WIDTH = 210, 315  # neither a multiple of a tile; the last tiles are cut


def picture() -> npt.NDArray[np.uint8]:
    """Return dark spots on a bright ground, with noise as of a camera."""
    rng = np.random.default_rng(0)
    spots = cv2.GaussianBlur(rng.random((HEIGHT, WIDTH, 3)).astype(np.float32), (0, 0), 5)
    spots = 230 - 1200 * np.clip(spots - 0.5, 0, 0.1) + rng.normal(0, 1, spots.shape)
    return np.clip(spots, 0, 255).astype(np.uint8)


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    options = {"photometric": "ycbcr", "subsampling": (2, 2), "compressionargs": {"level": 85}}
    resolution = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", picture(), tile=(64, 64), compression="jpeg", **options, **resolution)
    return Slide(tmp_path / "a.tif")


def means(slide: Slide) -> npt.NDArray[np.float64]:
    """Return the mean of 2 × 2 pixels of the decoded slide, white beyond its edge."""
    full = np.full((HEIGHT, WIDTH + 1, 3), 255.0)
    full[:, :WIDTH] = slide.read(Region(0, 0, WIDTH, HEIGHT, 0.25))
    return full.reshape(HEIGHT // 2, 2, -1, 2, 3).mean(axis=(1, 3))


def test_it_is_the_mean_within_half_a_grey_level(slide: Slide) -> None:
    found = slide.read(Region(0, 0, (WIDTH + 1) // 2, HEIGHT // 2, 0.5)).astype(float)
    difference = np.abs(found - means(slide))
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.99) <= 3
    assert difference[96:].max() <= 1, "tiles that the image ends in are averaged"
    assert difference[:96, :128].max() > 1, "the others are decoded at half their size"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.integers(-20, 150), y=st.integers(-20, 100), width=st.integers(1, 60), height=st.integers(1, 60))
def test_a_rectangle_is_a_part_of_the_whole(slide: Slide, x: int, y: int, width: int, height: int) -> None:
    whole = slide.read(Region(-20, -20, 240, 190, 0.5))
    part = slide.read(Region(x, y, width, height, 0.5))
    assert np.array_equal(part, whole[y + 20 : y + 20 + height, x + 20 : x + 20 + width])


@pytest.mark.parametrize("colours", ["RGB", "YCBCR"])
def test_without_a_marker_the_tiff_says_the_colours(colours: str) -> None:
    """Scanners write streams that do not say whether they are RGB or YCbCr."""
    whole = imagecodecs.jpeg8_encode(picture()[:208, :304], level=90, colorspace="RGB", outcolorspace=colours)
    length = int.from_bytes(whole[4:6], "big")
    bare = whole[:2] + whole[4 + length :]  # without the marker of Adobe or JFIF
    found = decode_half(bare, None, in_rgb=colours == "RGB")
    assert found is not None
    full = imagecodecs.jpeg8_decode(bare, colorspace=colours, outcolorspace="RGB")
    wanted = full.reshape(104, 2, 152, 2, 3).mean(axis=(1, 3))
    assert np.abs(found - wanted).mean() < 1


def test_what_is_not_certain_is_not_decoded_so() -> None:
    stream = imagecodecs.jpeg8_encode(picture(), level=90)
    assert decode_half(stream, None, in_rgb=False) is not None
    assert decode_half(stream[:-2], None, in_rgb=False) is None, "its end is missing"
    assert decode_half(stream[2:], None, in_rgb=False) is None
    assert decode_half(imagecodecs.jpeg8_encode(picture(), outcolorspace="RGB"), None, in_rgb=True) is None


def test_only_tiled_jpeg_of_even_sides_is_read_so(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), tile=(64, 64), compression="deflate", photometric="rgb")
    assert TiffReader(tmp_path / "a.tif").read_half(0, 0, 0, 10, 10) is None
