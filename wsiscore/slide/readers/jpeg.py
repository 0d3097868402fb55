"""A JPEG of a TIFF at half its size, decoded in the cosine domain.

Each block of 8 × 8 pixels is the sum of 64 cosines. Its inverse transform with the 4 × 4 slowest of them gives the
block at half its size, without the finer pixels ever being computed (ISO/IEC 10918-1; libjpeg's ``scale_denom``).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["decode_half"]

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES, _SCAN = (b"\xff\xc0", b"\xff\xc1"), b"\xff\xda"
_JFIF, _ADOBE = b"\xff\xe0", b"\xff\xee"
_COLOURS = _ADOBE + b"\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # and 0 for RGB, 1 for YCbCr


def decode_half(data: bytes, tables: bytes | None, *, in_rgb: bool) -> npt.NDArray[np.uint8] | None:
    """Return an image at half its size, (h, w, 3) RGB; None where its colours are not certain or it cannot be decoded.

    Parameters
    ----------
    data
        A JPEG stream, perhaps without its tables.
    tables
        The stream that has them.
    in_rgb
        Whether the TIFF calls its colours RGB, which is YCbCr all the same where the stream is a JFIF file.
    """
    ends = data.rstrip(b"\x00").endswith(_END)  # libjpeg fills what is missing with grey
    if not data.startswith(_START) or not ends or (tables and not tables.startswith(_START)):
        return None
    whole = tables.removesuffix(_END) + data[2:] if tables else data
    markers = _markers(whole)
    if _ADOBE in markers or not any(frame in markers for frame in _FRAMES):
        return None
    if _JFIF not in markers:
        whole = _START + _COLOURS + bytes([not in_rgb]) + whole[2:]
    try:
        flags = cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION
        found = cv2.imdecode(np.frombuffer(whole, np.uint8), flags)
    except cv2.error:
        return None
    return None if found is None else np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _markers(stream: bytes) -> set[bytes]:
    """Return the markers before the first scan; none of a stream that is broken there."""
    found, place = set[bytes](), 2
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place : place + 2]
        if marker == _SCAN:
            return found
        found.add(marker)
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return set()
