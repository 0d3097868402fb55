"""Thumbnails: a rectangle of a slide as a picture small enough to show."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsiscore.errors import SlideError
from wsiscore.files import replacing
from wsiscore.regions import Region
from wsiscore.slide.slide import Slide
from wsiscore.threads import in_threads

__all__ = ["MOST_BYTES", "THUMBNAIL", "Thumbnail", "jpeg", "read_region", "read_thumbnail", "write_thumbnail"]

THUMBNAIL = "thumbnail.jpg"
"""Name of the small picture in a slide's folder."""
MOST_BYTES = 7_400
"""Size of that picture at most: as an address in a page it is shorter than 10 kB."""

_SIDE_PX = 144


_BLOCK_PX = 256  # side of what is lost if a place cannot be read
_UNREADABLE = 190  # grey


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Pixels and where they lie on the slide.

    Parameters
    ----------
    pixels
        (height, width, 3) RGB in 0..255.
    region
        The same rectangle on the slide.
    """

    pixels: npt.NDArray[np.uint8]
    region: Region

    def x_px(self, x_um: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return where on the picture, in pixels from its left edge, micrometres of the slide lie."""
        return np.asarray(x_um, np.float64) / self.region.mpp - self.region.x

    def y_px(self, y_um: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return where on the picture, in pixels from its top edge, micrometres of the slide lie."""
        return np.asarray(y_um, np.float64) / self.region.mpp - self.region.y

    @property
    def data_uri(self) -> str:
        """The picture as a JPEG in a ``data:`` address."""
        return "data:image/jpeg;base64," + base64.b64encode(jpeg(self.pixels, quality=86)).decode("ascii")


def read_thumbnail(
    slide: Slide, bounds_um: tuple[float, float, float, float], *, max_px: int, mpp: float = 0
) -> Thumbnail:
    """Read a rectangle of the slide at a size to show; what cannot be read is grey.

    Parameters
    ----------
    slide
        The slide.
    bounds_um
        Left, top, right, bottom in micrometres from its top left.
    max_px
        Longest side of the picture.
    mpp
        Finest resolution wanted; never finer than the slide itself.
    """
    left, top, right, bottom = bounds_um
    mpp = max(slide.mpp, mpp, max(right - left, bottom - top) / max_px)
    region = Region.around_um(left, top, right, bottom, mpp)
    return Thumbnail(read_region(slide, region), region)


def read_region(slide: Slide, region: Region) -> npt.NDArray[np.uint8]:
    """Return the (height, width, 3) RGB pixels of a region; blocks that cannot be read are grey."""
    pixels = np.empty((region.height, region.width, 3), np.uint8)

    def fill(y: int) -> None:
        for x in range(0, region.width, _BLOCK_PX):
            block = pixels[y : y + _BLOCK_PX, x : x + _BLOCK_PX]
            where = Region(region.x + x, region.y + y, block.shape[1], block.shape[0], region.mpp)
            try:
                block[:] = slide.read(where)
            except SlideError:  # named among the run's warnings; the rest of the slide can still be shown
                block[:] = _UNREADABLE

    rows = range(0, region.height, _BLOCK_PX)
    if len(rows) == 1:
        fill(0)
    else:
        in_threads(fill, rows)
    return pixels


def write_thumbnail(path: Path, slide: Slide) -> None:
    """Write the whole slide as a JPEG of at most `MOST_BYTES`; OutputError if that cannot be done."""
    whole = (0.0, 0.0, slide.width_px * slide.mpp, slide.height_px * slide.mpp)
    pixels = read_thumbnail(slide, whole, max_px=_SIDE_PX).pixels
    encoded = (jpeg(pixels, quality=quality) for quality in (80, 60, 40, 20, 5))
    data = next((data for data in encoded if len(data) <= MOST_BYTES), jpeg(pixels[::2, ::2], quality=5))
    with replacing(path) as part:
        part.write_bytes(data)


def jpeg(pixels: npt.NDArray[np.uint8], *, quality: int, half_colour: bool = False) -> bytes:
    """Encode (height, width, 3) RGB as JPEG, with colour at full or, for half the bytes, at half resolution."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=2 if half_colour else 0)
    return stream.getvalue()
