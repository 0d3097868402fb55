"""TIFF and OME-TIFF, with their pyramids, through tifffile."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import tifffile
from PIL import Image

from wsiscore.errors import SlideError
from wsiscore.slide.readers.base import (
    DECODE_ERRORS,
    LARGEST_PIECE_PX,
    UM_OF_UNIT,
    VIRTUAL_STAIN,
    Level,
    Pixels,
    Reader,
    VirtualStain,
    downsample,
    on_white,
    refuse_too_large,
)
from wsiscore.slide.readers.jpeg import decode_half

__all__ = ["TiffReader", "UnsupportedTiffError"]

_tifffile_log = logging.getLogger("tifffile")  # what matters of its messages is in our errors
_tifffile_log.addHandler(logging.NullHandler())
_tifffile_log.propagate = False

_RGB, _YCBCR = tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR
_JPEG, _APERIO_YCBCR = tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.APERIO_JP2000_YCBC
_CACHE_BYTES = 128 << 20  # of decoded tiles, for neighbouring reads
_UM_OF_TAG = {2: 25400.0, 3: 10000.0}  # ResolutionUnit inch, centimetre


class UnsupportedTiffError(SlideError):
    """A TIFF whose colours or compression are not supported here."""


class TiffReader(Reader):
    """A TIFF or OME-TIFF with 8-bit RGB, striped or tiled, and its pyramid.

    Only the tiles that a read touches are decoded; an uncompressed strip file is mapped, not read.
    """

    @classmethod
    def reads(cls, path: Path, head: bytes) -> bool:
        """Accept TIFF and BigTIFF of either byte order."""
        return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._tiff = tifffile.TiffFile(path)
            self._pages = self._rgb_pages()
            self._maps = [page.asarray(out="memmap") if page.is_memmappable else None for page in self._pages]
            self.mpp_xy = _stated_mpp(self._tiff, self._pages[0])
            sizes = [(page.imagewidth, page.imagelength) for page in self._pages]
            self.levels = tuple(Level(*size, downsample(sizes[0], size)) for size in sizes)
            height, width = _tile_shape(self._pages[0])
            self._tile = functools.lru_cache(max(1, _CACHE_BYTES // (3 * height * width)))(self._decode)
            self._half_tile = functools.lru_cache(max(1, _CACHE_BYTES // (height * width)))(self._decode_half)
        except SlideError:
            self.close()
            raise
        except (*DECODE_ERRORS, ElementTree.ParseError) as error:
            self.close()
            raise SlideError(f"{path} is a broken TIFF ({error}); is it complete?") from error
        self.format = "OME-TIFF" if self._tiff.is_ome else "TIFF"
        software = self._tiff.pages.first.software
        self.properties = {"vendor": software} if software else {}
        self.virtual = _virtual_stain(self._tiff) if self._tiff.is_ome else None

    def _rgb_pages(self) -> list[Any]:
        """Return one page a level of the largest RGB series, with all that reading needs loaded."""
        series = self._tiff.series
        if not series:
            raise SlideError(f"{self.path} is a TIFF without an image; is it complete?")
        found = [s for s in series if s.dtype == np.uint8 and s.axes in ("YXS", "SYX")]
        found = [s for s in found if s.keyframe.samplesperpixel in (3, 4)]
        if not found:
            raise UnsupportedTiffError(f"{self.path} holds {series[0].dtype} {series[0].axes}; wanted 8-bit RGB")
        pages = [level.keyframe for level in max(found, key=lambda s: s.size).levels]
        size = self.path.stat().st_size
        for page in pages:
            coding, colours = page.compression, page.photometric
            if coding not in tifffile.TIFF.DECOMPRESSORS:
                raise UnsupportedTiffError(
                    f"{self.path} is compressed in a way (TIFF {int(coding)}) that is not supported; "
                    "save it with JPEG, LZW or deflate"
                )
            if (colours != _RGB and (colours, coding) != (_YCBCR, _JPEG)) or coding == _APERIO_YCBCR:
                raise UnsupportedTiffError(f"{self.path} holds {colours!s} colours; wanted 8-bit RGB")
            refuse_too_large(self.path, page.imagewidth, page.imagelength)
            height, width = _tile_shape(page)
            if not 0 < height * width <= LARGEST_PIECE_PX:
                raise SlideError(f"{self.path} stores {width} × {height} px in one piece; save it as a tiled TIFF")
            if max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))) > size:
                raise SlideError(f"{self.path} is cut short at {size} bytes; copy it again")
            if not any(page.databytecounts):
                raise SlideError(
                    f"{self.path} claims {page.imagewidth} × {page.imagelength} px but stores none of them"
                )
        return pages

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) RGB of a rectangle inside a level."""
        page, mapped = self._pages[level], self._maps[level]
        planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        if mapped is not None:
            whole = np.moveaxis(mapped, 0, -1) if planar else mapped
            return _opaque(np.array(whole[y : y + height, x : x + width]))
        tile_h, tile_w = _tile_shape(page)
        out = np.full((height, width, page.samplesperpixel), 255, np.uint8)
        for top in range(y // tile_h * tile_h, y + height, tile_h):
            for left in range(x // tile_w * tile_w, x + width, tile_w):
                part = self._tile(level, top, left)
                part = part[max(y - top, 0) : y + height - top, max(x - left, 0) : x + width - left]
                y0, x0 = max(top - y, 0), max(left - x, 0)
                out[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
        return _opaque(out)

    def read_half(self, level: int, x: int, y: int, width: int, height: int) -> Pixels | None:
        """Return a rectangle as `Reader.read_half`, of tiled JPEG.

        JPEG is decoded at half its size, which leaves out the cosines that only finer pixels show. On slides the
        result differs from the mean of 2 × 2 pixels by a third of a grey level on average.
        """
        page = self._pages[level]
        if not _halves(page):
            return None
        tile_h, tile_w = (side // 2 for side in _tile_shape(page))
        out = np.full((height, width, 3), 255, np.uint8)
        for top in range(y // tile_h * tile_h, y + height, tile_h):
            for left in range(x // tile_w * tile_w, x + width, tile_w):
                if not (0 <= 2 * top < page.imagelength and 0 <= 2 * left < page.imagewidth):
                    continue
                part = self._half_tile(level, 2 * top, 2 * left)
                part = part[max(y - top, 0) : y + height - top, max(x - left, 0) : x + width - left]
                y0, x0 = max(top - y, 0), max(left - x, 0)
                out[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
        return out

    def _decode_half(self, level: int, top: int, left: int) -> Pixels:
        """Return the tile whose corner this is at half its size; one that the image ends in is averaged, on white."""
        page = self._pages[level]
        tile_h, tile_w = _tile_shape(page)
        index = top // tile_h * -(-page.imagewidth // tile_w) + left // tile_w
        inside = top + tile_h <= page.imagelength and left + tile_w <= page.imagewidth
        if inside and (count := page.databytecounts[index]):
            data = os.pread(self._tiff.filehandle.fileno(), count, page.dataoffsets[index])
            found = decode_half(data, page.jpegtables, in_rgb=page.photometric == _RGB)
            if found is not None and found.shape == (tile_h // 2, tile_w // 2, 3):
                return found
        whole = self._decode(level, top, left)  # which says what is wrong with a tile that cannot be decoded
        whole[max(page.imagelength - top, 0) :] = 255
        whole[:, max(page.imagewidth - left, 0) :] = 255
        return np.asarray(cv2.resize(whole, (tile_w // 2, tile_h // 2), interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _decode(self, level: int, top: int, left: int) -> Pixels:
        """Return the (h, w, samples) tile or strip whose corner this is; white where the file leaves it out."""
        page = self._pages[level]
        tile_h, tile_w = _tile_shape(page)
        rows, columns = -(-page.imagelength // tile_h), -(-page.imagewidth // tile_w)
        planes = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
        out = np.full((tile_h, tile_w, page.samplesperpixel), 255, np.uint8)
        for plane in range(planes):
            index = (plane * rows + top // tile_h) * columns + left // tile_w
            try:
                count, offset = page.databytecounts[index], page.dataoffsets[index]
                if not count:
                    continue
                data = os.pread(self._tiff.filehandle.fileno(), count, offset)  # needs no lock, unlike seek
                pixels, _, (_, height, width, _) = page.decode(
                    data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
                )
                target = out[:height, :width] if planes == 1 else out[:height, :width, plane : plane + 1]
                target[:] = pixels[0, :height, :width]
            except DECODE_ERRORS as error:
                raise self._undecodable(level, left, top, error) from error
        return out

    def close(self) -> None:
        """Close the file."""
        if hasattr(self, "_tiff"):
            self._tiff.close()

    def __del__(self) -> None:
        self.close()


def _tile_shape(page: Any) -> tuple[int, int]:
    """Return (height, width) of a page's tiles or strips."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _halves(page: Any) -> bool:
    """Return whether the tiles of a page are JPEGs that `TiffReader.read_half` decodes at half their size."""
    tiled = page.is_tiled and page.tilelength % 2 == page.tilewidth % 2 == 0
    contiguous = page.samplesperpixel == 3 and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
    return bool(tiled and contiguous and page.compression == _JPEG)


def _opaque(pixels: Pixels) -> Pixels:
    return pixels if pixels.shape[2] == 3 else on_white(Image.fromarray(pixels))


def _stated_mpp(tiff: tifffile.TiffFile, page: Any) -> tuple[float, float] | None:
    """Return (x, y) in µm per pixel from the OME-XML, else from the resolution tags (ImageJ has its own unit)."""
    if tiff.is_ome:
        for pixels in ElementTree.fromstring(str(tiff.ome_metadata)).iterfind(".//{*}Pixels"):
            x = pixels.get("PhysicalSizeX")
            y = pixels.get("PhysicalSizeY", x)
            unit_x, unit_y = (UM_OF_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY")
            if pixels.get("SizeX") == str(page.imagewidth) and x and y and unit_x and unit_y:
                return float(x) * unit_x, float(y) * unit_y
    unit = _UM_OF_TAG.get(page.tags.valueof("ResolutionUnit", 2))
    if tiff.is_imagej:
        unit = UM_OF_UNIT.get(str((tiff.imagej_metadata or {}).get("unit")))
    (across, per_x), (down, per_y) = (page.tags.valueof(name, (0, 1)) for name in ("XResolution", "YResolution"))
    return (unit * per_x / across, unit * per_y / down) if unit and across and down else None


def _virtual_stain(tiff: tifffile.TiffFile) -> VirtualStain | None:
    """Return the model and the slide in the OME-XML of a virtual stain; None for any other image."""
    for note in ElementTree.fromstring(str(tiff.ome_metadata)).iterfind(".//{*}MapAnnotation"):
        if note.get("Namespace") == VIRTUAL_STAIN:
            entries = {str(entry.get("K")): entry.text or "" for entry in note.iterfind(".//{*}M")}
            sha = entries.get("weights_sha256") or None
            return VirtualStain(
                entries.get("model", "unnamed"), entries.get("slide", "unknown"), entries.get("version", ""), sha
            )
    return None
