"""Files that claim too much, names that no file has, and what is no file: one line, at once."""

from __future__ import annotations

import logging
import os
import socket
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from slides import noise, written

from wsiscore.errors import SlideError
from wsiscore.regions import Region
from wsiscore.roi.tissue import find_tissue
from wsiscore.slide import slide as slide_module
from wsiscore.slide.readers import image
from wsiscore.slide.slide import Slide


def refused(path: Path, text: str, mpp: float = 0.5) -> None:
    with pytest.raises(SlideError, match=text) as caught:
        Slide(path, mpp=mpp)
    assert "\n" not in str(caught.value)


# Pictures


def png(path: Path, side: int) -> Path:
    """Write a black PNG of this many pixels a side, a thousandth of its size on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return written(path, b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", 13_300)
    tracemalloc.start()
    refused(path, "too large for a picture in one piece: wanted at most 144 megapixels; make it a tiled TIFF")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_the_limit_of_a_picture_is_a_number_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(60, 60)).save(tmp_path / "a.png")
    monkeypatch.setattr(image, "LARGEST_PIECE_PX", 60 * 60)
    Slide(tmp_path / "a.png", mpp=0.5)
    monkeypatch.setattr(image, "LARGEST_PIECE_PX", 60 * 60 - 1)
    refused(tmp_path / "a.png", "too large")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK"])
def test_a_picture_is_the_same_whatever_its_strips(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(noise(60, 50)).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(noise(60, 50)[..., 0]))
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    once = Slide(path, mpp=0.5).read(Region(0, 0, 60, 50, 0.5))
    monkeypatch.setattr(image, "_STRIP_PX", 7)
    assert np.array_equal(Slide(path, mpp=0.5).read(Region(0, 0, 60, 50, 0.5)), once)


# Claims without data


def claim(path: Path, side: int, tile: int, stored: int = 1) -> Path:
    """Write a TIFF that claims this many pixels a side, of whose tiles only the first ones are stored."""
    count = (-(-side // tile)) ** 2
    data = zlib.compress(np.full((tile, tile, 3), 200, np.uint8).tobytes())
    options = {"photometric": "rgb", "compression": "adobe_deflate", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        tiles = (data if number < stored else b"" for number in range(count))
        file.write(tiles, shape=(side, side, 3), dtype="uint8", tile=(tile, tile), **options)
    return path


def test_a_tiff_may_not_claim_more_pixels_than_any_slide_has(tmp_path: Path) -> None:
    refused(claim(tmp_path / "a.tif", 10**6, 4096), r"claims 1000000 × 1000000 px; wanted at most 400 gigapixels", 0.05)


def test_a_slide_may_not_be_larger_than_any_glass(tmp_path: Path) -> None:
    path = claim(tmp_path / "a.tif", 600_000, 4096)
    refused(path, r"is 300 × 300 mm at 0\.5 µm/px; wanted at most 250 mm a side; is the resolution right\?")
    with Slide(path, mpp=0.25) as slide:
        assert slide.read(Region(0, 0, 2, 2, 0.25)).tolist() == [[[200] * 3] * 2] * 2


def test_a_tiff_that_stores_nothing_is_refused(tmp_path: Path) -> None:
    refused(claim(tmp_path / "a.tif", 4096, 1024, stored=0), "claims 4096 × 4096 px but stores none")


def test_a_read_that_would_take_hours_is_refused(tmp_path: Path) -> None:
    """Tissue, thumbnails and overlays are read at a scale for which a slide of this size needs a pyramid."""
    with Slide(claim(tmp_path / "a.tif", 300_000, 4096), mpp=0.25) as slide:
        with pytest.raises(SlideError, match=r"no level between 0\.25 and .* µm/px.*9e\+10 px.*save it with a pyramid"):
            find_tissue(slide)
        with pytest.raises(SlideError, match="save it with a pyramid"):
            slide.thumbnail(1000)


def test_the_limit_of_a_read_counts_the_pixels_it_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(64, 48)).save(tmp_path / "a.png")
    with Slide(tmp_path / "a.png", mpp=0.5) as slide:
        monkeypatch.setattr(slide_module, "_MOST_SOURCE_PX", 64 * 48)
        assert slide.read(Region(-100, -100, 600, 600, 1.0)).shape == (600, 600, 3)
        monkeypatch.setattr(slide_module, "_MOST_SOURCE_PX", 64 * 48 - 1)
        with pytest.raises(SlideError, match="pyramid"):
            slide.read(Region(0, 0, 32, 24, 1.0))
        slide.read(Region(0, 0, 31, 24, 1.0))


# Names, and what is no file


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.svs")
    refused(tmp_path / "fifo.svs", r"fifo\.svs is a FIFO, not a regular file or folder")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        refused(tmp_path / "s", "is a socket, not a regular file or folder")
    refused(Path("/dev/null"), "is a device, not a regular file or folder")


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / ("a" * 300 + ".svs"), "cannot be opened: File name too long")
    refused(tmp_path / "a\0b.svs", r"a\\x00b\.svs' cannot be the name of a file: embedded null byte")
    refused(tmp_path / "none" / "a.svs", "cannot be opened: No such file")
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    refused(tmp_path / "loop.svs", "cannot be opened: Too many levels of symbolic links")


@pytest.mark.parametrize("kind", ["tif", "png", "txt"])
def test_a_name_that_is_not_utf8_is_a_name_like_any(tmp_path: Path, kind: str) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff." + kind.encode()))
    pixels = noise(40, 30)
    if kind == "txt":
        path.write_text("no slide")
        refused(path, "is not a slide that can be read")
        return
    with path.open("wb") as file:
        if kind == "tif":
            tifffile.imwrite(file, pixels, photometric="rgb", metadata=None)
        else:
            Image.fromarray(pixels).save(file, format="PNG")
    with Slide(path, mpp=0.5) as slide:
        assert np.array_equal(slide.read(Region(0, 0, 40, 30, 0.5)), pixels)
        assert len(slide.sha256) == 64


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_may_not_be_read_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may enter any folder, so the system's answer is given here."""
    path = tmp_path / "a.svs"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"x")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(*(("zarr.open_group",) if kind == "folder" else (Path, "stat")), forbidden)
    refused(path, "Permission denied")


# Messages of libraries


def test_what_tifffile_logs_is_neither_in_our_log_nor_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 48), photometric="rgb", metadata=None)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<HH", 282, 5)) + 2] = 99  # XResolution of a type that there is not
    path.write_bytes(data)
    root, records = logging.getLogger(), []
    handler = logging.Handler()
    handler.emit = records.append
    root.addHandler(handler)
    try:
        Slide(path, mpp=0.5).read(Region(0, 0, 8, 8, 0.5))
    finally:
        root.removeHandler(handler)
    assert not records
    assert capfd.readouterr().err == ""


def test_a_warning_of_a_library_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(64, 48)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Slide(tmp_path / "a.png", mpp=0.5)
