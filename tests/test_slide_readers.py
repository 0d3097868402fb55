"""The readers of slides: every format gives the same pixels, and the resolution in the file is used or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from slides import (
    HEIGHT,
    MPP,
    WIDTH,
    noise,
    ramp_slide_in,
    scanner_slides_in,
    shrink,
    write_aperio,
)

from wsiscore.errors import ResolutionError, SlideError
from wsiscore.regions import Region
from wsiscore.slide.readers import registry
from wsiscore.slide.slide import Slide


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def ramp_slide(folder: Path) -> Slide:
    return ramp_slide_in(folder)


@pytest.fixture(scope="module")
def scanner_slides(folder: Path) -> list[Slide]:
    return scanner_slides_in(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": None},
        {"compression": None, "tile": None},
        {"compression": None, "tile": None, "planarconfig": "separate"},
        {"tile": None, "rowsperstrip": 7},
        {"compression": "deflate", "predictor": True},
        {"planarconfig": "separate"},
        {"byteorder": ">", "bigtiff": True},
    ],
    ids=str,
)
def test_every_layout_of_tiff_gives_the_same_pixels(tmp_path: Path, options: dict[str, object]) -> None:
    pixels = noise(WIDTH, HEIGHT)
    kind = {key: options.pop(key) for key in ("byteorder", "bigtiff") if key in options}
    options = {"tile": (32, 48), "compression": "lzw"} | options
    stored = np.moveaxis(pixels, -1, 0) if options.get("planarconfig") == "separate" else pixels
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, **kind) as file:
        file.write(stored, photometric="rgb", metadata=None, **options)
    with Slide(path, mpp=MPP) as slide:
        assert np.array_equal(slide.read(Region(-5, 9, 100, 80, MPP))[:, 5:], pixels[9:89, :95])


def test_openslide_and_tifffile_give_the_same_aperio(scanner_slides: list[Slide]) -> None:
    fast, slow = scanner_slides
    assert type(fast._source) is not type(slow._source)
    for region in (Region(-3, 5, 300, 200, 0.25), Region(11, 12, 130, 90, 0.5), Region(100, 80, 200, 200, 0.31)):
        assert np.array_equal(fast.read(region), slow.read(region))
    assert (fast.format, fast.properties["objective"]) == ("Aperio", "40")


def test_openslide_levels_are_unshifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSlide addresses a level by its average ratio: over 1,900 px that would be four pixels of level 1."""
    monkeypatch.setattr(registry, "_aperio_by_tifffile", lambda scanner: scanner)
    x = np.broadcast_to(np.arange(1903) // 8, (67, 1903))
    pixels = np.stack([x, x, x], axis=-1).astype(np.uint8)
    with Slide(write_aperio(tmp_path / "a.svs", [pixels, shrink(pixels, 4)])) as slide:
        far = slide.read(Region(400, 2, 60, 8, 1.0)).astype(float).mean(axis=(0, 2))
    wanted = pixels[0, 1600:1840, 0].reshape(60, 4).mean(axis=1)
    assert abs(far - wanted).mean() < 0.5 * 0.25  # a pixel of level 1 is half a grey value: under a quarter pixel


def test_a_slide_is_cropped_to_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(200, 160)
    path = write_aperio(tmp_path / "a.svs", [pixels, shrink(pixels, 4)])
    bounds = {"x": "40", "y": "24", "width": "100", "height": "80"}
    told = {"openslide.vendor": "mirax", "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}
    told |= {f"openslide.bounds-{name}": value for name, value in bounds.items()}
    monkeypatch.setattr(registry, "_aperio_by_tifffile", lambda scanner: scanner)
    monkeypatch.setattr(openslide.OpenSlide, "properties", told)
    with Slide(path) as slide:
        assert (slide.width_px, slide.height_px, slide.origin_px) == (100, 80, (40, 24))
        assert np.array_equal(slide.read(Region(0, 0, 100, 80, 0.25)), pixels[24:104, 40:140])
        assert (slide.read(Region(100, 0, 5, 5, 0.25)) == 255).all()
        assert np.array_equal(slide.read(Region(0, 0, 25, 20, 1.0)), shrink(pixels, 4)[6:26, 10:35])


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.svs", "PNG"), ("a.jpg", "JPEG"), ("b.svs", "JPEG")])
def test_a_picture_is_known_by_its_content(tmp_path: Path, name: str, kind: str) -> None:
    pixels = np.full((30, 40, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, format=kind, dpi=(300, 300), quality=95)
    with pytest.raises(ResolutionError, match="--mpp"):
        Slide(tmp_path / name)
    slide = Slide(tmp_path / name, mpp=0.5)
    assert (slide.format, slide.width_px, slide.height_px, slide.origin_px) == (kind, 40, 30, (0, 0))
    assert abs(slide.read(Region(0, 0, 20, 15, 1.0)) - pixels[0, 0].astype(int)).max() <= 2


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = Slide(tmp_path / "a.png", mpp=0.5).read(Region(0, 0, 4, 4, 0.5))
    assert (read[:2] == 0).all()
    assert (read[2:] == 255).all()


@pytest.mark.parametrize(
    ("size", "unit", "mpp"), [(0.3461, "µm", 0.3461), (346.1, "nm", 0.3461), (0.00025, "mm", 0.25), (0.5, None, 0.5)]
)
def test_ome_xml_gives_the_resolution_in_its_unit(tmp_path: Path, size: float, unit: str | None, mpp: float) -> None:
    about = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    about |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit} if unit else {}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, noise(64, 64), photometric="rgb", tile=(32, 32), metadata=about)
    slide = Slide(path)
    assert slide.mpp == pytest.approx(mpp)
    assert (slide.format, slide.properties["mpp_source"]) == ("OME-TIFF", "file")


def test_ome_pyramids_are_found(tmp_path: Path) -> None:
    pixels = noise(128, 96)
    about = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(pixels, subifds=1, photometric="rgb", tile=(32, 32), metadata=about)
        file.write(shrink(pixels, 2), subfiletype=1, photometric="rgb", tile=(32, 32))
    slide = Slide(tmp_path / "a.ome.tif")
    assert slide.level_mpp == (0.25, 0.5)
    assert np.array_equal(slide.read(Region(0, 0, 64, 48, 0.5)), shrink(pixels, 2))


def test_imagej_writes_pixels_a_micron(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, noise(64, 64), imagej=True, resolution=(4.0, 4.0), metadata={"unit": "micron", "axes": "YXS"}
    )
    assert Slide(path).mpp == pytest.approx(0.25)


def test_the_given_resolution_wins(ramp_slide: Slide) -> None:
    with Slide(ramp_slide.path, mpp=0.5) as slide:
        assert (slide.mpp, slide.level_mpp, slide.properties["mpp_source"]) == (0.5, (0.5, 1.0, 2.0), "given")


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan"), 250.0])
def test_an_implausible_given_resolution_is_refused(ramp_slide: Slide, mpp: float) -> None:
    with pytest.raises(ResolutionError, match=str(mpp)):
        Slide(ramp_slide.path, mpp=mpp)


@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_a_cameras_dpi_is_no_resolution(tmp_path: Path, dpi: int) -> None:
    path = tmp_path / "field.tif"
    tifffile.imwrite(
        path, noise(32, 32), photometric="rgb", resolution=(dpi, dpi), resolutionunit="INCH", metadata=None
    )
    with pytest.raises(ResolutionError, match=r"field\.tif .*--mpp"):
        Slide(path)


def test_pixels_that_are_not_square_are_refused_with_both_sizes(tmp_path: Path) -> None:
    options = {"photometric": "rgb", "resolutionunit": "CENTIMETER", "metadata": None}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(32, 32), resolution=(1e4 / 0.25, 1e4 / 0.3), **options)
    with pytest.raises(ResolutionError, match=r"0\.25 .* 0\.3 "):
        Slide(path)
    tifffile.imwrite(path, noise(32, 32), resolution=(1e4 / 0.25, 1e4 / 0.252), **options)
    assert Slide(path).mpp == pytest.approx(0.251)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "kind", "size", "mpp"),
    [
        ("OS-2-vsi.ome.tif", "OME-TIFF", (1445, 1445), 0.34605),
        ("OS-1-detail.ome.tif", "OME-TIFF", (1101, 1101), 0.2271),
        ("cmu-1-small-region.svs", "Aperio", (2220, 2967), 0.499),
        ("small.svs", "Aperio", (16, 16), 0.499),
        ("boxes_0.dcm", "DICOM", (16, 16), 0.499),
    ],
)
def test_real_slides(shared: Path, name: str, kind: str, size: tuple[int, int], mpp: float) -> None:
    with Slide(shared / "data" / "wsi" / name) as slide:
        assert (slide.format, (slide.width_px, slide.height_px)) == (kind, size)
        assert slide.mpp == pytest.approx(mpp, abs=1e-4)
        assert slide.thumbnail(300).std() > 3


@pytest.mark.shared
def test_a_real_aperio_is_the_same_through_openslide(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared / "data" / "wsi" / "cmu-1-small-region.svs"
    region = Region(500, 700, 800, 600, 0.499)
    with Slide(path) as fast:
        monkeypatch.setattr(registry, "_aperio_by_tifffile", lambda scanner: scanner)
        with Slide(path) as slow:
            assert np.array_equal(fast.read(region), slow.read(region))


@pytest.mark.shared
def test_real_slides_that_lack_something(shared: Path) -> None:
    wsi = shared / "data" / "wsi"
    with pytest.raises(ResolutionError, match="--mpp"):
        Slide(wsi / "boxes.tiff")
    assert len(Slide(wsi / "boxes.tiff", mpp=0.25).level_mpp) == 4
    with pytest.raises(SlideError, match="52479"):
        Slide(wsi / "broken" / "unopenable.tiff")
    with Slide(wsi / "broken" / "unreadable.svs") as slide, pytest.raises(SlideError, match="cannot be decoded"):
        slide.read(Region(0, 0, 16, 16, 0.499))
    with pytest.raises(ResolutionError):
        Slide(shared / "data" / "fields" / "field_17925.jpg")
