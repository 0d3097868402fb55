"""The readers, in the order in which they are tried: a new format is one module and one entry here."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

from wsiscore.errors import SlideError
from wsiscore.slide.readers.base import DECODE_ERRORS, Reader, refuse_too_large
from wsiscore.slide.readers.image import ImageReader
from wsiscore.slide.readers.omezarr import OmeZarrReader
from wsiscore.slide.readers.openslide import OpenSlideReader
from wsiscore.slide.readers.tiff import TiffReader, UnsupportedTiffError

__all__ = ["READERS", "open_reader"]

READERS: tuple[type[Reader], ...] = (OmeZarrReader, OpenSlideReader, TiffReader, ImageReader)
"""The first whose `Reader.reads` accepts a file opens it; the last accepts everything."""
_HEAD_BYTES = 16
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def open_reader(path: Path) -> Reader:
    """Open a slide by its content, whatever its suffix.

    The warnings of the libraries about odd files are not shown: what matters of them is in the error.

    Raises
    ------
    SlideError
        If there is no file or folder at `path`, or it is not a slide.
    """
    head = _head(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader = next(kind for kind in READERS if kind.reads(path, head))(path)
        except SlideError:
            raise
        except DECODE_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SlideError(f"{path} cannot be opened ({reason}); is it complete?") from error
        if isinstance(reader, OpenSlideReader) and reader.vendor == "aperio":
            reader = _aperio_by_tifffile(reader)
    try:
        refuse_too_large(path, *reader.levels[0][:2])
    except SlideError:
        reader.close()
        raise
    return reader


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, none of a folder; never waits, as reading a FIFO would."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return b""
        if not stat.S_ISREG(mode):
            raise SlideError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something')}, not a regular file or folder")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SlideError(f"{path} cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name, or a character that the file system's encoding lacks
        if isinstance(error, SlideError):
            raise
        raise SlideError(f"{str(path)!r} cannot be the name of a file: {error}") from error
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
