"""A camera picture: JPEG, PNG and their like, through Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from wsiscore.errors import SlideError
from wsiscore.slide.readers.base import DECODE_ERRORS, Level, Pixels, Reader, on_white

__all__ = ["ImageReader"]

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "JPEG2000")
_MODES = ("RGB", "RGBA", "P", "PA", "L", "LA", "CMYK", "YCbCr")


class ImageReader(Reader):
    """A camera picture, whole in memory; its dpi tags say nothing of the specimen and are not believed."""

    @classmethod
    def reads(cls, path: Path, head: bytes) -> bool:
        """Accept any file: what Pillow cannot read is no slide."""
        return bool(head)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's error, at twice that, holds
                opened = Image.open(path, formats=_FORMATS)
            with opened as picture:
                pixels = on_white(picture)
        except UnidentifiedImageError as error:
            raise SlideError(
                f"{path} is not a slide that can be read; wanted a scanner's file, TIFF, OME-TIFF, JPEG, PNG, "
                "or an OME-Zarr folder"
            ) from error
        except Image.DecompressionBombError as error:
            raise SlideError(f"{path} is too large for a picture in one piece; make it a tiled TIFF") from error
        except (*DECODE_ERRORS, SyntaxError) as error:
            raise SlideError(f"{path} is a broken picture ({error}); is it complete?") from error
        if picture.mode not in _MODES:
            raise SlideError(f"{path} holds {picture.mode} pixels; wanted 8-bit RGB")
        self.format = str(picture.format)
        self._pixels = (pixels,)
        self.levels = (Level(pixels.shape[1], pixels.shape[0], 1.0),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) RGB of a rectangle inside the picture."""
        return self._pixels[level][y : y + height, x : x + width]
