"""Slide: geometry exact at any scale, the resolution believed or refused, and broken files one clear line."""

from __future__ import annotations

import contextlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsiscore.errors import ResolutionError, SlideError
from wsiscore.regions import Region
from wsiscore.slide import slide as slide_module
from wsiscore.slide.readers import registry
from wsiscore.slide.readers.base import VirtualStain
from wsiscore.slide.slide import Slide

MPP = 0.25
WIDTH, HEIGHT = 123, 101
APERIO = "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] (64x64) LZW|AppMag = 40|MPP = {mpp}"

law = settings(deadline=None)
scales = st.one_of(st.sampled_from([0.25, 0.5, 0.75, 1.0, 2.0, 0.2501]), st.floats(0.1, 2.5))


def ramp(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Red rises by 2 a pixel to the right, green by 2 a pixel down, blue is flat."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 2 * y, np.full_like(x, 77)], axis=-1).astype(np.uint8)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def shrink(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Average whole blocks; what is left over at the right and bottom is lost, as in scanners' pyramids."""
    height, width = (n // factor for n in pixels.shape[:2])
    return cv2.resize(pixels[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)


def write_tiff(path: Path, levels: list[np.ndarray], mpp: float | None = MPP, **options: object) -> Path:
    options = {"tile": (32, 48), "compression": "lzw", "photometric": "rgb"} | options
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(levels[0], subifds=len(levels) - 1, metadata=None, **options, **resolution)
        for level in levels[1:]:
            file.write(level, subfiletype=1, metadata=None, **options)
    return path


def write_aperio(path: Path, levels: list[np.ndarray], **options: object) -> Path:
    """Write level 0, the thumbnail, then the other levels, as Aperio does."""
    height, width = levels[0].shape[:2]
    text = APERIO.format(w=width, h=height, mpp=MPP)
    options = {"tile": (64, 64), "compression": "lzw", "photometric": "rgb", "metadata": None} | options
    with tifffile.TiffWriter(path) as file:
        file.write(levels[0], description=text, **options)
        file.write(shrink(levels[0], 4), description=text, **(options | {"tile": None}))
        for level in levels[1:]:
            file.write(level, description=text, **options)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def ramp_slide(folder: Path) -> Slide:
    """Three levels of truncated size: 123 × 101, 61 × 50, 30 × 25."""
    return Slide(write_tiff(folder / "ramp.tif", [ramp(), shrink(ramp(), 2), shrink(ramp(), 4)]))


@pytest.fixture(scope="module")
def noise_slide(folder: Path) -> Slide:
    pixels = noise(WIDTH, HEIGHT)
    return Slide(write_tiff(folder / "noise.tif", [pixels, shrink(pixels, 2)]))


@pytest.fixture(scope="module")
def scanner_slides(folder: Path) -> list[Slide]:
    """One Aperio slide, read through tifffile and through OpenSlide."""
    pixels = noise(515, 390)
    fast = Slide(write_aperio(folder / "a.svs", [pixels, shrink(pixels, 4)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_aperio_by_tifffile", lambda scanner: scanner)
        return [fast, Slide(fast.path)]


# Geometry


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


# Sources


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


def write_virtual(path: Path, version: int, unit: str = "micrometer", **own: object) -> np.ndarray:
    pixels = noise(90, 70)
    group = zarr.open_group(path, mode="w", zarr_format=version)
    datasets = []
    for level in (0, 1):
        planes = np.moveaxis(shrink(pixels, 2**level), -1, 0)
        group.create_array(str(level), shape=planes.shape, chunks=(3, 32, 32), dtype="uint8")[:] = planes
        scale = [1.0, 0.5 * 2**level, 0.5 * 2**level]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": "c", "type": "channel"}] + [{"name": n, "type": "space", "unit": unit} for n in "yx"]
    ome = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs.update(({"ome": ome} if version == 3 else ome) | ({"wsiscore": own, "complete": True} if own else {}))
    return pixels


@pytest.mark.parametrize("version", [2, 3])
def test_a_virtual_stain_opens_like_any_slide(tmp_path: Path, version: int) -> None:
    pixels = write_virtual(
        tmp_path / "v.ome.zarr", version, model={"name": "stainer"}, channels=["red", "green", "blue"]
    )
    slide = Slide(tmp_path / "v.ome.zarr")
    assert slide.virtual == VirtualStain("stainer", "unknown")
    assert (slide.format, slide.level_mpp) == ("OME-Zarr", (0.5, 1.0))
    assert np.array_equal(slide.read(Region(0, 0, 90, 70, 0.5)), pixels)
    assert np.array_equal(slide.read(Region(3, 2, 20, 20, 1.0)), shrink(pixels, 2)[2:22, 3:23])


def test_maps_of_cells_are_no_slide(tmp_path: Path) -> None:
    write_virtual(tmp_path / "v.ome.zarr", 3, channels=["center", "positive", "negative"])
    with pytest.raises(SlideError, match="center"):
        Slide(tmp_path / "v.ome.zarr")


def test_other_maps_may_stand_beside_a_picture(tmp_path: Path) -> None:
    rgb = noise(24, 20)
    more = np.moveaxis(np.concatenate([255 - rgb[..., :1], rgb[..., ::-1]], axis=-1), -1, 0)
    group = zarr.open_group(tmp_path / "v.ome.zarr", mode="w", zarr_format=3)
    group.create_array("0", shape=more.shape, chunks=(4, 16, 16), dtype="uint8")[:] = more
    axes = [{"name": "c", "type": "channel"}] + [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]}]
    own = {"model": {"name": "stainer"}, "channels": ["density", "blue", "green", "red"]}
    ome = {"multiscales": [{"axes": axes, "datasets": levels}]}
    group.attrs.update({"ome": ome, "wsiscore": own, "complete": True})
    assert np.array_equal(Slide(tmp_path / "v.ome.zarr").read(Region(0, 0, 24, 20, 0.5)), rgb)


def test_a_foreign_zarr_image_is_not_called_virtual(tmp_path: Path) -> None:
    write_virtual(tmp_path / "v.ome.zarr", 3, unit="nanometer")
    assert Slide(tmp_path / "v.ome.zarr", mpp=0.5).virtual is None
    with pytest.raises(ResolutionError):
        Slide(tmp_path / "v.ome.zarr")


# Resolution


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


# Workers


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


# What is broken


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


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


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


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(60, 60)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 60 - 1)
    Slide(tmp_path / "a.png", mpp=0.5)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 60 // 2 - 1)
    with pytest.raises(SlideError, match="too large"):
        Slide(tmp_path / "a.png", mpp=0.5)


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


# Real slides


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
