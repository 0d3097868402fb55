"""Slide: open anything, know its micrometres per pixel, read any region at any scale."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from wsiscore.errors import ResolutionError, SlideError
from wsiscore.regions import Region
from wsiscore.slide.content import sha256_of, state_of
from wsiscore.slide.readers.base import Pixels
from wsiscore.slide.readers.registry import open_reader

__all__ = ["Slide"]

_PLAUSIBLE_MPP = (0.05, 20.0)
_LARGEST_MM = 250.0
_MOST_SOURCE_PX = 20_000_000_000  # that one read may decode
_ANISOTROPY = 0.02  # largest relative difference of the resolutions in x and y
_SAME_SCALE = 1e-6  # relative: a level that is coarser by less is fine enough
_DRIFT_PX = 1e-3  # source pixels over a block: a ratio that is off by less is a whole number
_BLOCK_PX = 2048  # side of the largest piece of a level in memory at once
_STRIP_PX = 32  # rows that are averaged at a time, so that what lies between stays in the processor's cache
_WHITE = 255


class Slide:
    """A slide, a camera field or a virtual stain, as a continuous picture that can be read at any scale.

    Pixel i at a scale of m µm/px covers [i·m, (i+1)·m) µm from the slide's top left. It is the mean of the source
    pixels there, weighted by their overlap, from the coarsest level that is fine enough; of a tiled JPEG, pixels just
    twice as wide are decoded at that size. A slide that is coarser than asked is interpolated linearly. Outside the
    slide all is white.

    May be read from several threads at once. A pickled slide opens its file again where it arrives.

    Parameters
    ----------
    path
        A file that OpenSlide reads, a TIFF or OME-TIFF, a JPEG or PNG, or an OME-Zarr folder.
    mpp
        Micrometres per pixel of level 0; used instead of the file's own.

    Attributes
    ----------
    path
        The file or folder.
    width_px, height_px
        Size of level 0.
    mpp
        Micrometres per pixel of level 0.
    level_mpp
        The same for each level, finest first.
    origin_px
        Top left in the scanner's own level-0 pixels; (0, 0) unless the format is cropped to the scanned area.
    virtual
        The model and the slide that a virtual stain was generated from; None for a stained slide.
    format
        Short name: ``Aperio``, ``OME-TIFF``, ``JPEG``.
    properties
        Vendor, objective, and the source of `mpp`, ``file`` or ``given``.

    Raises
    ------
    SlideError
        If it cannot be opened, or is larger than 250 mm a side or 400 gigapixels.
    ResolutionError
        If neither the file nor `mpp` gives a plausible resolution.
    """

    def __init__(self, path: str | Path, mpp: float | None = None) -> None:
        self.path = Path(path)
        self._given_mpp = mpp
        self._opened = state_of([self.path])
        self._source = source = open_reader(self.path)
        self.width_px, self.height_px, _ = source.levels[0]
        self.origin_px = source.origin_px
        self.virtual = source.virtual
        self.format = source.format
        try:
            self.mpp = _resolution(self.path, mpp, source.mpp_xy)
            _refuse_too_wide(self.path, self.width_px, self.height_px, self.mpp)
        except SlideError:
            source.close()
            raise
        self.properties = {**source.properties, "mpp_source": "file" if mpp is None else "given"}
        self.level_mpp = tuple(self.mpp * level.downsample for level in source.levels)

    def read(self, region: Region) -> Pixels:
        """Read a region at its scale.

        Parameters
        ----------
        region
            May lie partly or wholly outside the slide.

        Returns
        -------
        ndarray
            (height, width, 3) RGB in 0..255, white outside the slide.

        Raises
        ------
        SlideError
            If the pixels cannot be decoded, or no level is coarse enough to read so much; other places can be read.
        """
        level = max((i for i, own in enumerate(self.level_mpp) if own <= region.mpp * (1 + _SAME_SCALE)), default=0)
        step = region.mpp / self.level_mpp[level]
        self._refuse_slow(region, level, step)
        side = max(1, int(_BLOCK_PX / max(step, 1.0)))
        out = np.full((region.height, region.width, 3), _WHITE, np.uint8)
        for top in range(0, region.height, side):
            for left in range(0, region.width, side):
                block = out[top : top + side, left : left + side]
                self._fill(block, level, step, region.x + left, region.y + top)
        return out

    def overview(self, max_px: int) -> Region:
        """Return the whole slide as a region.

        Parameters
        ----------
        max_px
            Largest number of pixels on the longer side; the scale is never finer than that of level 0.
        """
        longer = max(self.width_px, self.height_px)
        right, bottom = self.width_px * self.mpp, self.height_px * self.mpp
        return Region.around_um(0, 0, right, bottom, self.mpp * max(1.0, longer / max_px))

    def thumbnail(self, max_px: int) -> Pixels:
        """Return the whole slide as a small picture.

        Parameters
        ----------
        max_px
            Largest number of pixels on the longer side.

        Returns
        -------
        (h, w, 3) RGB in 0..255, at the scale of ``overview(max_px)``.

        Raises
        ------
        SlideError
            If the pixels cannot be decoded.
        """
        return self.read(self.overview(max_px))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content of all its files, as `wsiscore.slide.content.sha256_of`; read once."""
        files = self._source.files()
        self._hashed = state_of(files)
        sha256 = sha256_of(files)
        if state_of([self.path]) != self._opened:
            raise self._changed()
        return sha256

    def refuse_changed(self) -> None:
        """Raise a SlideError if the files are others than when the slide was opened and hashed."""
        sha256, files = self.sha256, self._source.files()
        if state_of(files) != self._hashed and sha256_of(files) != sha256:
            raise self._changed()

    def _changed(self) -> SlideError:
        return SlideError(f"{self.path} changed while it was read; once it is whole, score it again")

    def close(self) -> None:
        """Close the file; the slide cannot be read any more."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Slide], tuple[Path, float | None]]:
        return type(self), (self.path, self._given_mpp)

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r}, {self.width_px} × {self.height_px} px at {self.mpp:.4g} µm/px)"

    def _refuse_slow(self, region: Region, level: int, step: float) -> None:
        """Raise a SlideError if a read of a slide without pyramid would take hours."""
        size = self._source.levels[level]
        decoded = min(size.width, region.width * step) * min(size.height, region.height * step)
        if decoded > _MOST_SOURCE_PX:
            raise SlideError(
                f"{self.path} has no level between {self.level_mpp[level]:.4g} and {region.mpp:.4g} µm/px, so that "
                f"{decoded:.2g} px would have to be decoded at once; save it with a pyramid"
            )

    def _fill(self, out: Pixels, level: int, step: float, x: int, y: int) -> None:
        """Fill `out` with what lies at (x, y) in pixels `step` times as wide as the level's."""
        height, width = out.shape[:2]
        size = self._source.levels[level]
        extent = (self.width_px / size.downsample, self.height_px / size.downsample)
        whole = max(1, round(step))
        farthest = max(abs(x), abs(y), abs(x + width), abs(y + height))
        if extent[0] == size.width and extent[1] == size.height and abs(step - whole) * farthest < _DRIFT_PX:
            if whole == 2 and (half := self._source.read_half(level, x, y, width, height)) is not None:
                out[:] = half
                return
            pixels = self._level_pixels(level, x * whole, y * whole, width * whole, height * whole)
            out[:] = pixels if whole == 1 else cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            return
        across = _axis(x, width, step, size.width, extent[0])
        strips = [out[top : top + _STRIP_PX] for top in range(0, height, _STRIP_PX)]
        downs = [_axis(y + i * _STRIP_PX, len(own), step, size.height, extent[1]) for i, own in enumerate(strips)]
        on_slide = [(own, down) for own, down in zip(strips, downs, strict=True) if down.stop > down.start]
        if across.stop == across.start or not on_slide:
            return
        top, bottom = on_slide[0][1].start, on_slide[-1][1].stop
        source = self._source.read(level, across.start, top, across.stop - across.start, bottom - top)
        for strip, down in on_slide:
            strip[:] = _averaged(source[down.start - top : down.stop - top], across, down)

    def _level_pixels(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return a rectangle of a level, white outside."""
        size = self._source.levels[level]
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, size.width), min(y + height, size.height)
        if (x0, y0, x1, y1) == (x, y, x + width, y + height):
            return self._source.read(level, x, y, width, height)
        out = np.full((height, width, 3), _WHITE, np.uint8)
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._source.read(level, x0, y0, x1 - x0, y1 - y0)
        return out


def _resolution(path: Path, given: float | None, stated: tuple[float, float] | None) -> float:
    """Return the resolution to use, in µm/px; ResolutionError if there is none."""
    low, high = _PLAUSIBLE_MPP
    if given is not None:
        if low <= given <= high:
            return given
        raise ResolutionError(f"{path} cannot have --mpp {given}; wanted {low} to {high} µm/px")
    if stated is None or not all(low <= value <= high for value in stated):
        raise ResolutionError(
            f"{path} does not say how many µm a pixel is; ask for it where it was taken, and give it with --mpp"
        )
    if abs(stated[0] - stated[1]) > _ANISOTROPY * min(stated):
        raise ResolutionError(
            f"{path} has pixels {stated[0]:.4g} µm wide and {stated[1]:.4g} µm high; "
            "wanted square pixels, or give the resolution with --mpp"
        )
    return (stated[0] + stated[1]) / 2


def _refuse_too_wide(path: Path, width: int, height: int, mpp: float) -> None:
    wide, high = width * mpp / 1000, height * mpp / 1000
    if max(wide, high) > _LARGEST_MM:
        raise SlideError(
            f"{path} is {wide:.0f} × {high:.0f} mm at {mpp:.4g} µm/px; wanted at most {_LARGEST_MM:.0f} mm a side; "
            "is the resolution right? --mpp gives another"
        )


class _Axis(NamedTuple):
    """The weights with which source pixels start..stop-1 form the output pixels of one axis."""

    start: int
    stop: int
    weights: csr_array  # (output, stop - start)
    covered: npt.NDArray[np.float32]  # fraction of each output pixel that lies on the slide


def _averaged(source: Pixels, across: _Axis, down: _Axis) -> Pixels:
    """Return the weighted means of source pixels start..stop-1 of either axis, white where the slide does not reach."""
    height, width = len(down.covered), len(across.covered)
    rows = down.weights @ source.astype(np.float32).reshape(len(source), -1)
    turned = cv2.transpose(rows.reshape(height, -1, 3)).reshape(source.shape[1], -1)
    mean = cv2.transpose((across.weights @ turned).reshape(width, height, 3))
    outside = 1 - down.covered[:, None] * across.covered
    if outside.any():
        mean += _WHITE * outside[..., None]
    return np.asarray(cv2.convertScaleAbs(mean), dtype=np.uint8)  # rounds


def _axis(first: int, count: int, step: float, size: int, extent: float) -> _Axis:
    """Return the weights of source pixels in output pixels first..first+count-1, each `step` source pixels wide.

    The slide ends at `extent`, from which a level's whole-pixel `size` may differ by a fraction of a pixel. The last
    pixel is stretched or cut to end there, so that a slide has the same size on all its levels.
    """
    edges = np.clip(np.arange(first, first + count + 1) * step, 0, extent)
    low, high = edges[:-1], edges[1:]
    covered = (high - low) / step
    if step >= 1:
        begin = np.minimum(np.floor(low).astype(np.int64), size - 1)
        source = begin[:, None] + np.arange(math.ceil(step) + 1)
        right = np.where(source == size - 1, extent, source + 1)
        overlap = np.minimum(high[:, None], right) - np.maximum(low[:, None], source)
        weights = np.where(source < size, np.maximum(overlap, 0), 0) / step
    else:
        centre = np.clip((np.arange(first, first + count) + 0.5) * step - 0.5, 0, size - 1)
        begin = np.minimum(np.floor(centre).astype(np.int64), max(size - 2, 0))
        source = begin[:, None] + np.arange(2)
        near = (centre - begin)[:, None]
        weights = np.where(source < size, np.concatenate([1 - near, near], axis=1), 0) * covered[:, None]
    used = source[weights > 0]
    start, stop = (int(used.min()), int(used.max()) + 1) if used.size else (0, 0)
    taps = weights.shape[1]
    columns = np.clip(source - start, 0, max(stop - start - 1, 0))
    matrix = csr_array(
        (weights.ravel().astype(np.float32), columns.ravel(), np.arange(0, count * taps + 1, taps)),
        shape=(count, max(stop - start, 1)),
    )
    return _Axis(start, stop, matrix, covered.astype(np.float32))
