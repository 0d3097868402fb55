"""Small slide files for tests, with every pixel known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import zarr

from wsiscore.slide.readers import registry
from wsiscore.slide.slide import Slide

MPP = 0.25
WIDTH, HEIGHT = 123, 101
APERIO = "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] (64x64) LZW|AppMag = 40|MPP = {mpp}"


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


def write_zarr(
    path: Path,
    version: int = 3,
    *,
    axes: str = "cyx",
    unit: str | None = "micrometer",
    dtype: str = "uint8",
    **own: object,
) -> np.ndarray:
    """Write an OME-Zarr image of 90 × 70 px with two levels at 0.5 µm/px, and return its pixels."""
    pixels = noise(90, 70)
    group = zarr.open_group(path, mode="w", zarr_format=version)
    datasets = []
    for level in (0, 1):
        planes = np.moveaxis(shrink(pixels, 2**level), -1, 0)
        shape = tuple({"c": 3, "y": planes.shape[1], "x": planes.shape[2]}.get(axis, 1) for axis in axes)
        chunks = tuple(min(size, 32) for size in shape)
        group.create_array(str(level), shape=shape, chunks=chunks, dtype=dtype)[:] = planes.reshape(shape)
        scale = [1.0] * (len(axes) - 2) + [0.5 * 2**level] * 2
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    listed = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in listed:
        if unit and axis["type"] == "space":
            axis["unit"] = unit
    ome = {"multiscales": [{"axes": listed, "datasets": datasets}]}
    group.attrs.update(({"ome": ome} if version == 3 else ome) | ({"wsiscore": own, "complete": True} if own else {}))
    return pixels


def ramp_slide_in(folder: Path) -> Slide:
    """Return a slide of three levels of truncated size: 123 × 101, 61 × 50, 30 × 25."""
    return Slide(write_tiff(folder / "ramp.tif", [ramp(), shrink(ramp(), 2), shrink(ramp(), 4)]))


def scanner_slides_in(folder: Path) -> list[Slide]:
    """Return one Aperio slide, read through tifffile and through OpenSlide."""
    pixels = noise(515, 390)
    fast = Slide(write_aperio(folder / "a.svs", [pixels, shrink(pixels, 4)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_aperio_by_tifffile", lambda scanner: scanner)
        return [fast, Slide(fast.path)]


def written(path: Path, content: bytes) -> Path:
    """Write bytes and return the path."""
    path.write_bytes(content)
    return path
