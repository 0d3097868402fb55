"""OME-Zarr images: any standard layout of 8-bit RGB is a slide, and damage is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from slides import noise, shrink, write_zarr

from wsiscore.errors import ResolutionError, SlideError
from wsiscore.regions import Region
from wsiscore.slide.readers.base import VirtualStain
from wsiscore.slide.slide import Slide


@pytest.mark.parametrize("version", [2, 3])
def test_a_virtual_stain_opens_like_any_slide(tmp_path: Path, version: int) -> None:
    pixels = write_zarr(tmp_path / "v.ome.zarr", version, model={"name": "stainer"}, channels=["red", "green", "blue"])
    slide = Slide(tmp_path / "v.ome.zarr")
    assert slide.virtual == VirtualStain("stainer", "unknown")
    assert (slide.format, slide.level_mpp) == ("OME-Zarr", (0.5, 1.0))
    assert np.array_equal(slide.read(Region(0, 0, 90, 70, 0.5)), pixels)
    assert np.array_equal(slide.read(Region(3, 2, 20, 20, 1.0)), shrink(pixels, 2)[2:22, 3:23])


def test_maps_of_cells_are_no_slide(tmp_path: Path) -> None:
    write_zarr(tmp_path / "v.ome.zarr", 3, channels=["center", "positive", "negative"])
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
    write_zarr(tmp_path / "v.ome.zarr", 3, unit="nanometer")
    assert Slide(tmp_path / "v.ome.zarr", mpp=0.5).virtual is None
    with pytest.raises(ResolutionError):
        Slide(tmp_path / "v.ome.zarr")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["tczyx", "czyx", "tcyx", "cyx"])
def test_a_standard_image_is_a_slide_whatever_its_axes(tmp_path: Path, version: int, axes: str) -> None:
    pixels = write_zarr(tmp_path / "a.zarr", version, axes=axes)
    with Slide(tmp_path / "a.zarr") as slide:
        assert (slide.level_mpp, slide.virtual) == ((0.5, 1.0), None)
        assert np.array_equal(slide.read(Region(0, 0, 90, 70, 0.5)), pixels)
        assert np.array_equal(slide.read(Region(3, 2, 20, 20, 1.0)), shrink(pixels, 2)[2:22, 3:23])
        assert len(slide.sha256) == 64


def test_an_image_without_a_unit_needs_a_given_resolution(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a.zarr", axes="tczyx", unit=None)
    with pytest.raises(ResolutionError, match="--mpp"):
        Slide(tmp_path / "a.zarr")
    assert Slide(tmp_path / "a.zarr", mpp=0.3).level_mpp == (0.3, 0.6)


def change(path: Path, change_image: Callable[[dict[str, Any]], object]) -> None:
    group = zarr.open_group(path, mode="r+")
    ome = dict(group.attrs["ome"])
    change_image(ome["multiscales"][0])
    group.attrs["ome"] = ome


def test_images_older_than_their_scales_are_read_too(tmp_path: Path) -> None:
    """OME-Zarr 0.1 to 0.3 has axes as plain names or none at all, and no transformations."""
    pixels = write_zarr(tmp_path / "a.zarr", axes="tczyx")

    def older(image: dict[str, Any]) -> None:
        del image["axes"]
        for dataset in image["datasets"]:
            del dataset["coordinateTransformations"]

    change(tmp_path / "a.zarr", older)
    slide = Slide(tmp_path / "a.zarr", mpp=0.25)
    assert slide.level_mpp == (0.25, 0.5)
    assert np.array_equal(slide.read(Region(0, 0, 90, 70, 0.25)), pixels)


def test_a_scale_of_the_whole_image_counts(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a.zarr")
    common = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    change(tmp_path / "a.zarr", lambda image: image.update(coordinateTransformations=common))
    assert Slide(tmp_path / "a.zarr").level_mpp == (0.25, 0.5)


@pytest.mark.parametrize("scale", [0.0, 3.0, -1.0, "inf", "wide"])
def test_a_scale_that_does_not_fit_the_size_of_its_level_is_refused(tmp_path: Path, scale: object) -> None:
    write_zarr(tmp_path / "a.zarr")
    wrong = [{"type": "scale", "scale": [1.0, scale, scale]}]
    change(tmp_path / "a.zarr", lambda image: image["datasets"][1].update(coordinateTransformations=wrong))
    with pytest.raises(SlideError, match=r"level 1 is 45 px wide|not a complete OME-Zarr image"):
        Slide(tmp_path / "a.zarr")


def empty(path: Path, shape: tuple[int, ...], axes: str, dtype: str = "uint8", chunk_px: int = 32) -> Path:
    """Write the metadata of an OME-Zarr image of this shape, and no pixels."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    chunks = (*(1 for _ in shape[:-2]), chunk_px, chunk_px)
    group.create_array("0", shape=shape, chunks=chunks, dtype=dtype)
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5] * len(shape)}]}]
    listed = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in axes]
    group.attrs["ome"] = {"multiscales": [{"axes": listed, "datasets": levels}]}
    return path


@pytest.mark.parametrize(
    ("shape", "axes", "dtype", "text"),
    [
        ((1, 3, 1, 64, 64), "tczyx", "uint16", "holds uint16 tczyx .*; wanted red, green, blue of 8 bits"),
        ((3, 64, 64), "cyx", "float32", "holds float32 cyx .*; wanted red, green, blue of 8 bits"),
        ((1, 3, 5, 64, 64), "tczyx", "uint8", "wanted one plane and one time point"),
        ((2, 3, 1, 64, 64), "tczyx", "uint8", "wanted one plane and one time point"),
        ((1, 1, 1, 64, 64), "tczyx", "uint8", "wanted red, green, blue"),
        ((64, 64), "yx", "uint8", "wanted red, green, blue"),
        ((3, 64, 64), "cxy", "uint8", "wanted red, green, blue"),
        ((3, 0, 64), "cyx", "uint8", "wanted at least one pixel|not a complete OME-Zarr image"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, shape: tuple[int, ...], axes: str, dtype: str, text: str
) -> None:
    with pytest.raises(SlideError, match=text) as caught:
        Slide(empty(tmp_path / "a.zarr", shape, axes, dtype), mpp=0.5)
    assert "\n" not in str(caught.value)


def test_an_image_may_not_claim_more_pixels_than_any_slide_has(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"claims 1000000 × 1000000 px; wanted at most 400 gigapixels"):
        Slide(empty(tmp_path / "a.zarr", (3, 10**6, 10**6), "cyx", chunk_px=4096), mpp=0.05)
    with pytest.raises(SlideError, match=r"stores 100000 × 100000 px in one chunk"):
        Slide(empty(tmp_path / "a.zarr", (3, 10**5, 10**5), "cyx", chunk_px=10**5), mpp=0.25)


def test_a_collection_of_images_says_which_to_give(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    with pytest.raises(SlideError, match=r"give one of them, such as .*a\.zarr/0"):
        Slide(tmp_path / "a.zarr")
