"""The readers, in the order in which they are tried: a new format is one module and one entry here."""

from __future__ import annotations

from pathlib import Path

from wsiscore.errors import SlideError
from wsiscore.slide.readers.base import Reader
from wsiscore.slide.readers.image import ImageReader
from wsiscore.slide.readers.omezarr import OmeZarrReader
from wsiscore.slide.readers.openslide import OpenSlideReader
from wsiscore.slide.readers.tiff import TiffReader, UnsupportedTiffError

__all__ = ["READERS", "open_reader"]

READERS: tuple[type[Reader], ...] = (OmeZarrReader, OpenSlideReader, TiffReader, ImageReader)
"""The first whose `Reader.reads` accepts a file opens it; the last accepts everything."""
_HEAD_BYTES = 16


def open_reader(path: Path) -> Reader:
    """Open a slide by what the file holds, never by its suffix.

    Raises
    ------
    SlideError
        If there is nothing at `path`, or nothing that is a slide.
    """
    head = b"" if path.is_dir() else _head(path)
    reader = next(kind for kind in READERS if kind.reads(path, head))(path)
    return _aperio_by_tifffile(reader) if isinstance(reader, OpenSlideReader) and reader.vendor == "aperio" else reader


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SlideError(f"{path} cannot be opened: {error.strerror}") from error
    if not head:
        raise SlideError(f"{path} is an empty file; wanted a slide")
    return head


def _aperio_by_tifffile(scanner: OpenSlideReader) -> Reader:
    """Return the same slide read by tifffile, which gives the same pixels faster, where tifffile can read it."""
    try:
        pixels = TiffReader(scanner.path)
    except UnsupportedTiffError:
        return scanner
    if pixels.levels != scanner.levels:
        return scanner
    pixels.format, pixels.mpp_xy, pixels.properties = scanner.format, scanner.mpp_xy, scanner.properties
    scanner.close()
    return pixels
