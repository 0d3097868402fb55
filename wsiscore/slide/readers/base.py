"""The interface of a reader, and what several readers need."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsiscore.errors import SlideError

__all__ = [
    "DECODE_ERRORS",
    "LARGEST_PIECE_PX",
    "LARGEST_SLIDE_PX",
    "UM_OF_UNIT",
    "VIRTUAL_STAIN",
    "Level",
    "Pixels",
    "Reader",
    "VirtualStain",
    "downsample",
    "on_white",
    "refuse_too_large",
]

Pixels = npt.NDArray[np.uint8]

LARGEST_PIECE_PX = 12_000 * 12_000
"""Most pixels that are decoded as one piece: a JPEG or PNG, a tile or strip of a TIFF, a chunk of a Zarr array."""
LARGEST_SLIDE_PX = 400_000_000_000
"""Most pixels of a slide: 76 × 52 mm, the largest common glass, at 0.1 µm/px."""
UM_OF_UNIT: dict[str, float] = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", "\\u00B5m"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("inch", "in"), 25400.0),
}
DECODE_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What decoders raise on broken bytes; those of imagecodecs and numcodecs are RuntimeErrors."""

VIRTUAL_STAIN = "wsiscore/virtual-stain"
"""Namespace of the OME-XML annotation that holds the fields of `VirtualStain`."""


class Level(NamedTuple):
    """Size of one level in its own pixels, and how many level-0 pixels one of them is wide."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True, slots=True)
class VirtualStain:
    """The origin of a virtual stain: a picture that a network generated from another slide.

    Parameters
    ----------
    model
        Name of the model that generated it.
    slide
        Path of the slide it was generated from, at that time.
    version
        Version of the model, from its card.
    weights_sha256
        Hexadecimal; None for a model without weights.
    """

    model: str
    slide: str
    version: str = ""
    weights_sha256: str | None = None


class Reader(ABC):
    """Pixels and metadata of one file; level 0 is the finest, and all levels have the same top left corner."""

    format: str
    levels: tuple[Level, ...]
    mpp_xy: tuple[float, float] | None = None
    """Micrometres per pixel in x and y as stated in the file, plausible or not; None if not stated."""
    origin_px: tuple[int, int] = (0, 0)
    virtual: VirtualStain | None = None
    properties: dict[str, str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.properties = {}

    @classmethod
    @abstractmethod
    def reads(cls, path: Path, head: bytes) -> bool:
        """Return whether this reader takes the file at `path`, which begins with `head` (empty for a folder)."""

    @abstractmethod
    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) RGB in 0..255 of a rectangle inside a level.

        Raises
        ------
        SlideError
            If it cannot be decoded; other places can still be read.
        """

    def read_half(self, level: int, x: int, y: int, width: int, height: int) -> Pixels | None:
        """Return (height, width, 3) RGB of a rectangle in pixels twice as wide as the level's, white outside the level.

        None where this is no faster than to read the level and to average it. SlideError as `read`.
        """
        return None

    def files(self) -> list[Path]:
        """Return every file the slide consists of, the opened one first."""
        return [self.path]

    def close(self) -> None:  # noqa: B027 - most readers hold no file open
        """Close the file, if one is open."""

    def _undecodable(self, level: int, x: int, y: int, why: object) -> SlideError:
        reason = str(why).split("\n", 1)[0] or type(why).__name__
        return SlideError(
            f"{self.path}: the pixels near x={x}, y={y} of level {level} cannot be decoded ({reason}); "
            "the file is damaged there, copy it again from the scanner"
        )


def refuse_too_large(path: Path, width: int, height: int) -> None:
    """Raise a SlideError if a file states a size that no slide has."""
    if width < 1 or height < 1 or width * height > LARGEST_SLIDE_PX:
        raise SlideError(
            f"{path} claims {width} × {height} px; wanted at most {LARGEST_SLIDE_PX // 10**9} gigapixels; "
            "is it damaged?"
        )


def on_white(picture: Image.Image) -> Pixels:
    """Return (h, w, 3) of a picture of any 8-bit mode, blended over white where it is transparent."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def downsample(full: tuple[int, int], level: tuple[int, int]) -> float:
    """Return how much smaller a level is; a whole number wherever its size allows one."""
    longest = 0 if full[0] >= full[1] else 1
    ratio = full[longest] / level[longest]
    whole = round(ratio)
    fits = all(abs(size / whole - own) <= 1 for size, own in zip(full, level, strict=True))
    return float(whole) if fits else ratio
