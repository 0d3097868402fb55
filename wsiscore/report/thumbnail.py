"""Thumbnails: a rectangle of a slide as a picture small enough to show."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsiscore.errors import SlideError
from wsiscore.regions import Region
from wsiscore.slide.slide import Slide

__all__ = ["Thumbnail", "jpeg", "read_thumbnail"]

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
    pixels = np.empty((region.height, region.width, 3), np.uint8)
    for y in range(0, region.height, _BLOCK_PX):
        for x in range(0, region.width, _BLOCK_PX):
            block = pixels[y : y + _BLOCK_PX, x : x + _BLOCK_PX]
            where = Region(region.x + x, region.y + y, block.shape[1], block.shape[0], mpp)
            try:
                block[:] = slide.read(where)
            except SlideError:  # named among the run's warnings; the rest of the slide can still be shown
                block[:] = _UNREADABLE
    return Thumbnail(pixels, region)


def jpeg(pixels: npt.NDArray[np.uint8], *, quality: int) -> bytes:
    """Encode (height, width, 3) RGB as JPEG with colour at full resolution."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()
