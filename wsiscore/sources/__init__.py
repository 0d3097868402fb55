"""What a slide's pixels come from: OpenSlide, TIFF, a camera picture or an OME-Zarr image.

`open_source` looks at what a file holds, never at its suffix, and returns one of four sources. A source gives
pixels of its own levels and says what the file says of itself; resampling and the choice of level are
`wsiscore.slide.Slide`'s. Every source may be read from several threads at once.
"""

from __future__ import annotations

from pathlib import Path

import openslide

from wsiscore.errors import SlideError
from wsiscore.sources.picture import PictureSource
from wsiscore.sources.scanner import OpenSlideSource
from wsiscore.sources.source import VIRTUAL_STAIN, Level, Pixels, Source, VirtualStain
from wsiscore.sources.tiff import ForeignTiffError, TiffSource
from wsiscore.sources.virtual import ZarrSource, is_virtual

__all__ = ["VIRTUAL_STAIN", "Level", "Pixels", "Source", "VirtualStain", "is_virtual", "open_source"]


def open_source(path: Path) -> Source:
    """Open whatever `path` is, by content.

    Raises
    ------
    SlideError
        If there is nothing, or nothing that is a slide.
    """
    if path.is_dir():
        return ZarrSource(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise SlideError(f"{path} cannot be opened: {error.strerror}") from error
    if not head:
        raise SlideError(f"{path} is an empty file; wanted a slide")
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor not in (None, "generic-tiff"):  # plain TIFF: tifffile finds more levels and more resolutions
        scanner = OpenSlideSource(path)
        return _faster_aperio(scanner) if vendor == "aperio" else scanner
    if head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffSource(path)
    return PictureSource(path)


def _faster_aperio(scanner: OpenSlideSource) -> Source:
    """Return the same slide with its pixels through tifffile, where that can be: the same values, sooner."""
    try:
        pixels = TiffSource(scanner.path)
    except ForeignTiffError:
        return scanner
    if pixels.levels != scanner.levels:
        return scanner
    pixels.format, pixels.mpp_xy, pixels.properties = scanner.format, scanner.mpp_xy, scanner.properties
    scanner.close()
    return pixels
