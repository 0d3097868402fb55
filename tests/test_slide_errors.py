"""What is not a slide, is broken or too large is one clear line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from slides import (
    noise,
    ramp_slide_in,
    shrink,
    write_aperio,
    write_tiff,
    written,
)

from wsiscore.errors import SlideError
from wsiscore.regions import Region
from wsiscore.slide.readers import registry
from wsiscore.slide.slide import Slide


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def ramp_slide(folder: Path) -> Slide:
    return ramp_slide_in(folder)


@pytest.mark.parametrize("reader", ["tifffile", "openslide"])
def test_a_broken_tile_leaves_the_rest(tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(320, 256)
    path = write_aperio(tmp_path / "a.svs", [pixels], compression="jpeg")
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[6], file.pages[0].databytecounts[6]  # x 64..127, y 64..127
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(count)
    path.write_bytes(data)
    if reader == "openslide":
        monkeypatch.setattr(registry, "_aperio_by_tifffile", lambda scanner: scanner)
    with Slide(path) as slide:
        before = slide.read(Region(192, 128, 64, 64, 0.25))
        for _ in range(2):
            with pytest.raises(SlideError, match=r"a\.svs.* x=64, y=64 .*level 0"):
                slide.read(Region(64, 64, 64, 64, 0.25))
            assert np.array_equal(slide.read(Region(192, 128, 64, 64, 0.25)), before)
        assert before.std() > 10


def test_what_is_no_slide_is_one_clear_line(tmp_path: Path, ramp_slide: Slide) -> None:
    Image.fromarray(noise(60, 60)).save(tmp_path / "a.png")
    whole = ramp_slide.path.read_bytes()
    picture = (tmp_path / "a.png").read_bytes()
    striped = write_tiff(tmp_path / "striped.tif", [noise(60, 60)], tile=None, compression=None).read_bytes()
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, np.zeros((32, 32, 3), np.uint16), photometric="rgb")
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(grey, np.zeros((32, 32), np.uint8))
    wanted = {
        tmp_path / "missing.svs": "No such file",
        tmp_path: "folder",
        written(tmp_path / "empty.svs", b""): "empty",
        written(tmp_path / "text.svs", b"this is no slide\n" * 99): "not a slide",
        written(tmp_path / "cut.png", picture[: len(picture) // 2]): "complete",
        written(tmp_path / "cut.tif", whole[: len(whole) // 2]): "complete|cut short",
        written(tmp_path / "head.tif", whole[:8]): "complete",
        written(tmp_path / "strip.tif", striped[: len(striped) // 2]): "cut short",
        deep: "uint16.*8-bit RGB",
        grey: "YX.*8-bit RGB",
    }
    for path, text in wanted.items():
        with pytest.raises(SlideError, match=text) as caught:
            Slide(path, mpp=0.5)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def sound(folder: Path) -> dict[str, bytes]:
    pixels = noise(64, 48)
    Image.fromarray(pixels).save(folder / "s.png")
    Image.fromarray(pixels).save(folder / "s.jpg")
    write_tiff(folder / "s.tif", [pixels, shrink(pixels, 2)])
    write_aperio(folder / "s.svs", [pixels])
    return {name: (folder / name).read_bytes() for name in ("s.png", "s.jpg", "s.tif", "s.svs")}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["s.png", "s.jpg", "s.tif", "s.svs"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damage_is_a_slide_error_or_harmless(
    folder: Path, sound: dict[str, bytes], name: str, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(sound[name])
    for place, value in changes:
        data[int(place * len(data))] = value
    path = written(folder / f"damaged-{name}", bytes(data[: int(kept * len(data))]))
    with contextlib.suppress(SlideError), Slide(path, mpp=0.5) as slide:
        assert slide.read(Region(0, 0, 32, 24, 1.0)).shape == (24, 32, 3)
