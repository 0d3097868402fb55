"""A camera picture: JPEG, PNG and their like, through Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsiscore.errors import SlideError
from wsiscore.slide.readers.base import DECODE_ERRORS, LARGEST_PIECE_PX, Level, Pixels, Reader, on_white

__all__ = ["ImageReader"]

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "JPEG2000")
_STRIP_PX = 1024
_MODES = ("RGB", "RGBA", "P", "PA", "L", "LA", "CMYK", "YCbCr")


class ImageReader(Reader):
    """A camera picture, whole in memory, of at most 144 megapixels.

    Its dpi tags are not used: they describe a print or a screen, not the specimen.
    """

    @classmethod
    def reads(cls, path: Path, head: bytes) -> bool:
        """Accept any file: what Pillow cannot read is no slide."""
        return bool(head)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with Image.open(path, formats=_FORMATS) as picture:
                if picture.mode not in _MODES:
                    raise SlideError(f"{path} holds {picture.mode} pixels; wanted 8-bit RGB")
                if picture.width * picture.height > LARGEST_PIECE_PX:
                    raise Image.DecompressionBombError(f"{picture.width} × {picture.height} px")
                self.format = str(picture.format)
                pixels = _pixels(picture)
        except SlideError:
            raise
        except UnidentifiedImageError as error:
            raise SlideError(
                f"{path} is not a slide that can be read; wanted a scanner's file, TIFF, OME-TIFF, JPEG, PNG, "
                "or an OME-Zarr folder"
            ) from error
        except Image.DecompressionBombError as error:
            raise SlideError(
                f"{path} is too large for a picture in one piece: wanted at most "
                f"{LARGEST_PIECE_PX // 10**6} megapixels; make it a tiled TIFF"
            ) from error
        except (*DECODE_ERRORS, SyntaxError) as error:
            raise SlideError(f"{path} is a broken picture ({error}); is it complete?") from error
        self._pixels = (pixels,)
        self.levels = (Level(pixels.shape[1], pixels.shape[0], 1.0),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) RGB of a rectangle inside the picture."""
        return self._pixels[level][y : y + height, x : x + width]


def _pixels(picture: Image.Image) -> Pixels:
    """Return (h, w, 3) of a picture, converted strip by strip: beside the decoded picture only one copy is held."""
    out = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, _STRIP_PX):
        bottom = min(top + _STRIP_PX, picture.height)
        out[top:bottom] = on_white(picture.crop((0, top, picture.width, bottom)))
    return out
