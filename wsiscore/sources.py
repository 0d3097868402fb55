"""What a slide's pixels come from: OpenSlide, TIFF, a camera picture or an OME-Zarr image.

`open_source` looks at what a file holds, never at its suffix, and returns one of four sources. A source gives
pixels of its own levels and says what the file says of itself; resampling and the choice of level are
`wsiscore.slide.Slide`'s. Every source may be read from several threads at once.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import openslide
import tifffile
from PIL import Image, UnidentifiedImageError

from wsiscore.errors import SlideError

__all__ = ["Level", "Pixels", "Source", "open_source"]

Pixels = npt.NDArray[np.uint8]

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our errors say it, once

_VENDORS = {"mirax": "MIRAX", "dicom": "DICOM", "philips-tiff": "Philips TIFF"}
_PICTURES = ("JPEG", "PNG", "BMP", "WEBP", "JPEG2000")
_UM: dict[str, float] = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", "\\u00B5m"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("inch", "in"), 25400.0),
}
_SEGMENT_CACHE_BYTES = 64 << 20
_DECODE_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)  # what decoders raise on broken bytes; imagecodecs' and numcodecs' are RuntimeErrors


class Level(NamedTuple):
    """Size of one level in its own pixels, and how many level-0 pixels one of them is wide."""

    width: int
    height: int
    downsample: float


class Source:
    """Where pixels come from; its levels start at 0 and share their top left corner."""

    format: str
    levels: tuple[Level, ...]
    mpp_xy: tuple[float, float] | None = None
    """What the file says, plausible or not."""
    origin_px: tuple[int, int] = (0, 0)
    virtual: str | None = None
    properties: dict[str, str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.properties = {}

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) RGB in 0..255 of a rectangle inside a level.

        Raises
        ------
        SlideError
            If it cannot be decoded; other places can still be read.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back the file, where one is held open."""

    def _undecodable(self, level: int, x: int, y: int, why: object) -> SlideError:
        reason = str(why).split("\n", 1)[0] or type(why).__name__
        return SlideError(
            f"{self.path}: the pixels near x={x}, y={y} of level {level} cannot be decoded ({reason}); "
            "the file is damaged there, copy it again from the scanner"
        )


def open_source(path: Path) -> Source:
    """Open whatever `path` is, by content.

    Raises
    ------
    SlideError
        If there is nothing, or nothing that is a slide.
    """
    try:
        head = b"" if path.is_dir() else path.open("rb").read(4)
    except OSError as error:
        raise SlideError(f"{path}: cannot be opened: {error.strerror}") from error
    if path.is_dir():
        return ZarrSource(path)
    if not head:
        raise SlideError(f"{path}: is an empty file; wanted a slide")
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor not in (None, "generic-tiff"):  # plain TIFF: tifffile finds more levels and more resolutions
        return OpenSlideSource(path)
    if head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffSource(path)
    return PictureSource(path)


def _on_white(rgba: Pixels) -> Pixels:
    """Blend (h, w, 4) over white; (h, w, 3) comes back as it is."""
    if rgba.shape[2] == 3:
        return rgba
    rgb, alpha = rgba[..., :3], rgba[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _downsample(full: tuple[int, int], level: tuple[int, int]) -> float:
    """Return how much smaller a level is; a whole number wherever its size allows one."""
    longest = 0 if full[0] >= full[1] else 1
    ratio = full[longest] / level[longest]
    whole = round(ratio)
    fits = all(abs(size / whole - own) <= 1 for size, own in zip(full, level, strict=True))
    return float(whole) if fits else ratio


class OpenSlideSource(Source):
    """A scanner's file, through OpenSlide; cropped to the scanned bounds where the format has them.

    A read on level k > 0 is placed to the nearest level-0 pixel, as OpenSlide takes whole numbers there.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._slide = self._open()
        told = self._slide.properties
        self.format = _VENDORS.get(vendor := told["openslide.vendor"], vendor.capitalize())
        self.properties = {"vendor": vendor}
        if "openslide.objective-power" in told:
            self.properties["objective"] = told["openslide.objective-power"]
        mpp = (told.get("openslide.mpp-x"), told.get("openslide.mpp-y"))
        self.mpp_xy = (float(mpp[0]), float(mpp[1])) if mpp[0] and mpp[1] else None
        full = self._slide.level_dimensions[0]
        left, top, width, height = (
            int(told.get(f"openslide.bounds-{name}", default))
            for name, default in zip(("x", "y", "width", "height"), (0, 0, *full), strict=True)
        )
        self.origin_px = (left, top)
        self._scales: tuple[float, ...] = self._slide.level_downsamples  # OpenSlide's own, for addressing only
        levels = []
        for size in self._slide.level_dimensions:
            down = _downsample(full, size)
            levels.append(Level(math.ceil(width / down), math.ceil(height / down), down))
        self.levels = tuple(levels)

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path}: OpenSlide cannot open it ({error}); is it complete?") from error

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        down = self.levels[level].downsample
        at = (
            round((x + self.origin_px[0] / down) * self._scales[level]),
            round((y + self.origin_px[1] / down) * self._scales[level]),
        )
        try:
            picture = self._slide.read_region(at, level, (width, height))
        except openslide.OpenSlideError:
            # After one error a handle refuses everything, also in other threads: try again on a fresh one.
            fresh = self._open()
            try:
                picture = fresh.read_region(at, level, (width, height))
            except openslide.OpenSlideError as error:
                self._slide = self._open()
                raise self._undecodable(level, x, y, error) from error
            self._slide = fresh
        return _on_white(np.asarray(picture))

    def close(self) -> None:
        self._slide.close()


class TiffSource(Source):
    """A TIFF or OME-TIFF with 8-bit RGB, striped or tiled, with its pyramid, through tifffile."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._tiff = tifffile.TiffFile(path)
            pages = self._rgb_pages()
        except (*_DECODE_ERRORS, ElementTree.ParseError) as error:
            if isinstance(error, SlideError):
                raise
            raise SlideError(f"{path}: is a broken TIFF ({error}); is it complete?") from error
        self.format = "OME-TIFF" if self._tiff.is_ome else "TIFF"
        self.properties = {"vendor": self._tiff.pages.first.software or self.format}
        self._pages = pages
        full = (pages[0].imagewidth, pages[0].imagelength)
        self.levels = tuple(
            Level(page.imagewidth, page.imagelength, _downsample(full, (page.imagewidth, page.imagelength)))
            for page in pages
        )
        self.mpp_xy = _tiff_mpp(self._tiff, pages[0])
        self._maps = [page.asarray(out="memmap") if page.is_memmappable else None for page in pages]
        tile_bytes = 4 * pages[0].tilelength * pages[0].tilewidth or 4 << 20
        self._segment = functools.lru_cache(max(4, _SEGMENT_CACHE_BYTES // tile_bytes))(self._decode)

    def _rgb_pages(self) -> list[Any]:
        """Return one page a level of the largest RGB series; SlideError if there is none."""
        found = [s for s in self._tiff.series if s.dtype == np.uint8 and s.axes in ("YXS", "SYX")]
        found = [s for s in found if s.keyframe.samplesperpixel in (3, 4)]
        if not found:
            first = self._tiff.series[0]
            raise SlideError(f"{self.path}: holds {first.dtype} {first.axes}; wanted 8-bit RGB")
        pages = [level.keyframe for level in max(found, key=lambda s: s.size).levels]
        size = self.path.stat().st_size
        for page in pages:
            if page.compression not in tifffile.TIFF.DECOMPRESSORS:
                raise SlideError(f"{self.path}: TIFF compression {int(page.compression)} is unknown")
            if page.photometric != 2 and not (page.photometric == 6 and page.compression in (6, 7)):
                raise SlideError(f"{self.path}: holds {page.photometric!s} colours; wanted 8-bit RGB")
            ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))
            if max(ends, default=0) > size:
                raise SlideError(f"{self.path}: is cut short at {size} bytes; copy it again")
        return pages

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        page, mapped = self._pages[level], self._maps[level]
        planar = page.planarconfig == 2
        if mapped is not None:
            whole = np.moveaxis(mapped, 0, -1) if planar else mapped
            return _on_white(np.ascontiguousarray(whole[y : y + height, x : x + width]))
        tile_h = page.tilelength or min(page.rowsperstrip, page.imagelength)
        tile_w = page.tilewidth or page.imagewidth
        rows, columns = -(-page.imagelength // tile_h), -(-page.imagewidth // tile_w)
        out = np.full((height, width, page.samplesperpixel), 255, np.uint8)
        for row in range(y // tile_h, (y + height - 1) // tile_h + 1):
            for column in range(x // tile_w, (x + width - 1) // tile_w + 1):
                top, left = row * tile_h, column * tile_w
                inside = np.s_[max(y - top, 0) : y + height - top, max(x - left, 0) : x + width - left]
                for plane in range(page.samplesperpixel if planar else 1):
                    try:
                        segment = self._segment(level, (plane * rows + row) * columns + column)
                    except _DECODE_ERRORS as error:
                        raise self._undecodable(level, left, top, error) from error
                    if segment is None:
                        continue
                    part = segment[inside]
                    y0, x0 = max(top - y, 0), max(left - x, 0)
                    target = out[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
                    target[..., plane : plane + 1 if planar else None] = part
        return _on_white(out)

    def _decode(self, level: int, index: int) -> Pixels | None:
        """Return one decoded tile or strip, or None where the file has left it out."""
        page = self._pages[level]
        count = page.databytecounts[index]
        if not count:
            return None
        data = os.pread(self._tiff.filehandle.fileno(), count, page.dataoffsets[index])
        segment, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        pixels: Pixels = segment[0, : shape[1], : shape[2]]
        return pixels

    def close(self) -> None:
        self._tiff.close()


def _tiff_mpp(tiff: tifffile.TiffFile, page: Any) -> tuple[float, float] | None:
    """Return what the OME-XML, ImageJ's description or the resolution tags say, in this order."""
    if tiff.is_ome:
        for pixels in ElementTree.fromstring(str(tiff.ome_metadata)).iterfind(".//{*}Pixels"):
            x, y = pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeY")
            unit_x, unit_y = (_UM.get(pixels.get(f"PhysicalSize{a}Unit", "µm")) for a in "XY")
            same = pixels.get("SizeX") == str(page.imagewidth)
            if same and x and unit_x:
                return float(x) * unit_x, float(y) * unit_y if y and unit_y else float(x) * unit_x
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution", "ResolutionUnit")]
    if not tags[0] or not tags[1]:
        return None
    across, down = (tag.value[0] / tag.value[1] if tag.value[1] else 0.0 for tag in tags[:2])
    unit = {2: 25400.0, 3: 1e4}.get(tags[2].value if tags[2] else 2)
    if tiff.is_imagej:
        unit = _UM.get(str((tiff.imagej_metadata or {}).get("unit")))
    return (unit / across, unit / down) if unit and across and down else None


class PictureSource(Source):
    """A camera picture, whole in memory; its dpi tags say nothing of the specimen and are not believed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(path, formats=_PICTURES)
            self.format = str(picture.format)
            if picture.mode not in ("RGB", "RGBA", "P", "PA", "L", "LA", "CMYK", "YCbCr"):
                raise SlideError(f"{path}: holds {picture.mode} pixels; wanted 8-bit RGB")
            alpha = picture.has_transparency_data
            pixels = _on_white(np.array(picture.convert("RGBA" if alpha else "RGB")))
        except UnidentifiedImageError as error:
            raise SlideError(
                f"{path}: is not a slide that can be read; wanted a scanner's file, TIFF, OME-TIFF, "
                "JPEG, PNG, or an OME-Zarr folder"
            ) from error
        except Image.DecompressionBombError as error:
            raise SlideError(f"{path}: is too large for a picture in one piece; make it a tiled TIFF") from error
        except (OSError, SyntaxError) as error:
            raise SlideError(f"{path}: is a broken picture ({error}); is it complete?") from error
        self._pixels = (pixels,)
        self.levels = (Level(pixels.shape[1], pixels.shape[0], 1.0),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self._pixels[level][y : y + height, x : x + width]


class ZarrSource(Source):
    """An OME-Zarr image (0.5, or 0.4) with red, green and blue: a virtual stain."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            group = _zarr().open_group(path, mode="r")
            attributes: dict[str, Any] = group.attrs.asdict()
            ome = attributes.get("ome", attributes)
            image = ome["multiscales"][0]
            self._arrays = [group[dataset["path"]] for dataset in image["datasets"]]
            scales = [
                next(t["scale"] for t in dataset["coordinateTransformations"] if t["type"] == "scale")
                for dataset in image["datasets"]
            ]
            axes = [axis["name"] for axis in image["axes"]]
            unit = _UM.get(image["axes"][-1].get("unit", ""))
        except FileNotFoundError as error:
            raise SlideError(f"{path}: is a folder but not an OME-Zarr image; wanted a slide") from error
        except (*_DECODE_ERRORS, StopIteration) as error:
            raise SlideError(f"{path}: is not a complete OME-Zarr image ({error!r})") from error
        first = self._arrays[0]
        if axes != ["c", "y", "x"] or first.dtype != np.uint8 or first.shape[0] != 3:
            raise SlideError(f"{path}: holds {first.dtype} {first.shape}; wanted red, green, blue of 8 bits")
        self.levels = tuple(
            Level(array.shape[2], array.shape[1], scale[2] / scales[0][2])
            for array, scale in zip(self._arrays, scales, strict=True)
        )
        self.mpp_xy = (scales[0][2] * unit, scales[0][1] * unit) if unit else None
        self.format = "OME-Zarr"
        self.virtual = attributes.get("wsiscore", {}).get("model", {}).get("name")
        self.properties = {"vendor": "wsiscore" if "wsiscore" in attributes else "OME-Zarr"}

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        try:
            planes = self._arrays[level][:, y : y + height, x : x + width]
        except _DECODE_ERRORS as error:
            raise self._undecodable(level, x, y, error) from error
        return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _zarr() -> Any:
    import zarr  # half a second, and seldom needed

    return zarr
