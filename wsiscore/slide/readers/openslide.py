"""A scanner's own file, through OpenSlide."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import openslide

from wsiscore.errors import SlideError
from wsiscore.slide.readers.base import Level, Pixels, Reader, downsample, on_white

__all__ = ["OpenSlideReader"]

_HEAD_BYTES = 1 << 16  # of a DICOM file, enough for the identifier of its series
_INDEX_BYTES = 1 << 20  # of a VMS file, which names the files it consists of
_VENDORS = {"mirax": "MIRAX", "dicom": "DICOM", "philips-tiff": "Philips TIFF"}


class OpenSlideReader(Reader):
    """A scanner's file, through OpenSlide, cropped to the scanned area where the format states it.

    A read on level k > 0 is placed to the nearest level-0 pixel, as OpenSlide takes whole numbers there.
    """

    @classmethod
    def reads(cls, path: Path, head: bytes) -> bool:
        """Accept what OpenSlide recognises, except generic TIFF, of which tifffile reads more."""
        return bool(head) and openslide.OpenSlide.detect_format(path) not in (None, "generic-tiff")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._slide = self._open()
        properties = self._slide.properties
        self.vendor = properties["openslide.vendor"]
        self.format = _VENDORS.get(self.vendor, self.vendor.capitalize())
        self.properties = {"vendor": self.vendor}
        if "openslide.objective-power" in properties:
            self.properties["objective"] = properties["openslide.objective-power"]
        mpp = (properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"))
        self.mpp_xy = (float(mpp[0]), float(mpp[1])) if mpp[0] and mpp[1] else None
        full = self._slide.level_dimensions[0]
        left, top, width, height = (
            int(properties.get(f"openslide.bounds-{name}", default))
            for name, default in zip(("x", "y", "width", "height"), (0, 0, *full), strict=True)
        )
        self.origin_px = (left, top)
        self._scales: tuple[float, ...] = self._slide.level_downsamples  # OpenSlide's own, for addressing only
        levels = []
        for across, high in self._slide.level_dimensions:
            down = downsample(full, (across, high))
            kept = min(math.ceil(width / down), across - math.floor(left / down))
            levels.append(Level(kept, min(math.ceil(height / down), high - math.floor(top / down)), down))
        self.levels = tuple(levels)

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path} cannot be opened by OpenSlide ({error}); is it complete?") from error

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) RGB of a rectangle inside a level."""
        down = self.levels[level].downsample
        at = (
            round((x + self.origin_px[0] / down) * self._scales[level]),
            round((y + self.origin_px[1] / down) * self._scales[level]),
        )
        try:
            picture = self._slide.read_region(at, level, (width, height))
        except openslide.OpenSlideError:
            # After one error a handle refuses all reads, also in other threads: try again with a new one.
            fresh = self._open()
            try:
                picture = fresh.read_region(at, level, (width, height))
            except openslide.OpenSlideError as error:
                raise self._undecodable(level, x, y, error) from error
            self._slide = fresh
        return on_white(picture)

    def files(self) -> list[Path]:
        """Return every file of the slide: MIRAX and Hamamatsu VMS have several, and so may a DICOM series."""
        others: Iterable[Path] = ()
        if self.vendor == "mirax":
            others = (file for file in self.path.with_suffix("").rglob("*") if file.is_file())
        elif self.vendor == "dicom":
            series = self._slide.properties.get("dicom.SeriesInstanceUID", "").encode()
            others = (file for file in self.path.parent.iterdir() if file.is_file() and _is_of_series(file, series))
        elif self.vendor == "hamamatsu":
            named = self.path.read_bytes()[:_INDEX_BYTES] if self.path.suffix.lower() in (".vms", ".vmu") else b""
            others = (file for file in self.path.parent.iterdir() if file.is_file() and os.fsencode(file.name) in named)
        return [self.path, *sorted(set(others) - {self.path})]

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


def _is_of_series(path: Path, series: bytes) -> bool:
    """Return whether a file is DICOM and of this series."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return head[128:132] == b"DICM" and series in head
