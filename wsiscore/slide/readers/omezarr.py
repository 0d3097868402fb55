"""OME-Zarr images of 8-bit RGB, and the virtual stains of wsiscore among them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiscore.errors import SlideError
from wsiscore.slide.readers.base import (
    DECODE_ERRORS,
    LARGEST_PIECE_PX,
    UM_OF_UNIT,
    Level,
    Pixels,
    Reader,
    VirtualStain,
    downsample,
)

__all__ = ["OmeZarrReader", "is_virtual"]

_CHANNELS = ["red", "green", "blue"]
_OLD_AXES = ["t", "c", "z", "y", "x"]  # of OME-Zarr 0.1 and 0.2, which do not name them
_SHARDED = ("wsiscore-mosaic-2", "wsiscore-mosaic-3")  # formats of a mosaic in which every written shard is a file
_WRITTEN = 1  # in ``done``, see `wsiscore.mosaic.TileState`
_SIZE_TOLERANCE = 0.02  # relative difference of a level's size from what its scale says


class OmeZarrReader(Reader):
    """An OME-Zarr image, version 0.5 or older, of one time point and one plane with three 8-bit channels.

    The axes may be ``tczyx``, ``czyx`` or ``cyx``. A mosaic of wsiscore may hold other maps beside the picture; where
    a shard of it is missing or has the wrong checksum, reading is an error.
    """

    @classmethod
    def reads(cls, path: Path, head: bytes) -> bool:
        """Accept any folder."""
        return not head

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            group = _zarr().open_group(path, mode="r")
            attributes: dict[str, Any] = group.attrs.asdict()
            ome = attributes.get("ome", attributes)
            if "multiscales" not in ome and "bioformats2raw.layout" in ome:
                raise SlideError(f"{path} is a collection of OME-Zarr images; give one of them, such as {path / '0'}")
            image = ome["multiscales"][0]
            self._arrays = [group[dataset["path"]] for dataset in image["datasets"]]
            self._axes = [axis if isinstance(axis, str) else axis["name"] for axis in image.get("axes", _OLD_AXES)]
            self.mpp_xy = _stated_mpp(image)
            own = attributes.get("wsiscore")
            self._planes = self._rgb_planes(own.get("channels", _CHANNELS) if own else _CHANNELS)
            self.levels = tuple(self._levels(image["datasets"]))
            if own and not attributes.get("complete", True):
                raise SlideError(f"{path} is not finished; run the `wsiscore infer` that began it once more")
            self._written = np.asarray(group["done"][:]) == _WRITTEN if own and own.get("format") in _SHARDED else None
            self.virtual = _virtual_stain(own) if own else None
        except SlideError:
            raise
        except FileNotFoundError as error:
            raise SlideError(f"{path} is a folder but not an OME-Zarr image; wanted a slide's file") from error
        except (*DECODE_ERRORS, StopIteration) as error:
            raise SlideError(f"{path} is not a complete OME-Zarr image ({_reason(error)})") from error
        self.format = "OME-Zarr"
        self.properties = {"vendor": "wsiscore" if own else "OME-Zarr"}

    def _rgb_planes(self, channels: list[str]) -> list[int]:
        """Return the indices of red, green and blue among the channels, or raise a SlideError."""
        first = self._arrays[0]
        found = f"{self.path} holds {first.dtype} {''.join(self._axes)} {first.shape}"
        sizes = dict(zip(self._axes, first.shape, strict=True))
        if first.dtype != np.uint8 or self._axes[-2:] != ["y", "x"] or sizes.get("c") != len(channels):
            raise SlideError(f"{found}; wanted red, green, blue of 8 bits")
        if any(size != 1 for axis, size in sizes.items() if axis not in "cyx"):
            raise SlideError(f"{found}; wanted one plane and one time point, so save that image alone")
        if not set(channels).issuperset(_CHANNELS):
            raise SlideError(f"{self.path} holds maps of {', '.join(channels)}; wanted red, green, blue")
        for level, array in enumerate(self._arrays):
            if array.dtype != first.dtype or array.shape[:-2] != first.shape[:-2]:
                raise SlideError(f"{self.path}: level {level} is {array.dtype} {array.shape}, unlike level 0")
            if math.prod(array.chunks[-2:]) > LARGEST_PIECE_PX:
                size = " × ".join(map(str, reversed(array.chunks[-2:])))
                raise SlideError(f"{self.path} stores {size} px in one chunk; save it with smaller chunks")
        return [channels.index(name) for name in _CHANNELS]

    def _levels(self, datasets: list[Mapping[str, Any]]) -> list[Level]:
        sizes = [(array.shape[-1], array.shape[-2]) for array in self._arrays]
        scales = [_scale(dataset) for dataset in datasets]
        levels = []
        for number, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
            if min(size) < 1:
                raise SlideError(f"{self.path}: level {number} is {size[0]} × {size[1]} px; wanted at least one pixel")
            if scale is None or scales[0] is None:
                levels.append(Level(*size, downsample(sizes[0], size)))
                continue
            ratio = float(scale[-1]) / float(scales[0][-1])
            if not abs(sizes[0][0] / ratio - size[0]) <= max(2, _SIZE_TOLERANCE * size[0]):  # also where it is nan
                raise SlideError(
                    f"{self.path}: level {number} is {size[0]} px wide, but by its scale {ratio:g} times smaller than"
                    f" level 0 of {sizes[0][0]} px; write the image again"
                )
            levels.append(Level(*size, ratio))
        return levels

    def files(self) -> list[Path]:
        """Return every file of the image: its metadata first, then the chunks by name."""
        first = self.path / ("zarr.json" if (self.path / "zarr.json").is_file() else ".zattrs")
        return [first, *sorted(file for file in self.path.rglob("*") if file.is_file() and file != first)]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) RGB of a rectangle inside a level."""
        if self._written is not None:
            self._refuse_missing(self._written, level, x, y, width, height)
        others = [slice(None) if axis == "c" else 0 for axis in self._axes[:-2]]
        try:
            planes = np.asarray(self._arrays[level][(*others, slice(y, y + height), slice(x, x + width))])
        except DECODE_ERRORS as error:
            raise self._undecodable(level, x, y, error) from error
        return np.ascontiguousarray(np.moveaxis(planes[self._planes], 0, -1))

    def _refuse_missing(
        self, written: npt.NDArray[np.bool_], level: int, x: int, y: int, width: int, height: int
    ) -> None:
        """Raise a SlideError if the file of a written shard is missing or empty, which Zarr would read as white."""
        array = self._arrays[level]
        side = array.shards[-1]
        tiles = side * 2**level // self._arrays[0].chunks[-1]  # of level 0 that a shard covers, on each side
        for row in range(y // side, (y + height - 1) // side + 1):
            for col in range(x // side, (x + width - 1) // side + 1):
                if not written[row * tiles : (row + 1) * tiles, col * tiles : (col + 1) * tiles].any():
                    continue
                name = f"{array.path}/{array.metadata.encode_chunk_key((0, row, col))}"
                file = self.path / name
                if not (file.is_file() and file.stat().st_size):
                    found = "empty" if file.is_file() else "missing"
                    raise SlideError(f"{self.path} is damaged: {name} is {found}; copy it again, or infer it again")


def is_virtual(path: Path) -> bool:
    """Return whether a folder is a mosaic of wsiscore that holds a picture; reads its metadata alone."""
    try:
        about = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]["wsiscore"]
        return bool(about["output"] == "image")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _stated_mpp(image: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return (x, y) in µm per pixel of level 0; None if the scale or its unit is missing."""
    if (scale := _scale(image["datasets"][0])) is None:
        return None
    whole = _scale(image) or [1.0] * len(scale)  # of all levels
    units = [UM_OF_UNIT.get(str(axis.get("unit", ""))) if isinstance(axis, dict) else None for axis in image["axes"]]
    x, y = (
        None if unit is None else float(own) * float(common) * unit
        for own, common, unit in list(zip(scale, whole, units, strict=True))[:-3:-1]
    )
    return None if x is None or y is None else (x, y)


def _scale(described: Mapping[str, Any]) -> list[Any] | None:
    """Return the scale among the coordinate transformations of an image or a level, one number an axis."""
    transforms = described.get("coordinateTransformations", [])
    return next((transform["scale"] for transform in transforms if transform["type"] == "scale"), None)


def _virtual_stain(own: Mapping[str, Any]) -> VirtualStain:
    """Return the model and the slide in a mosaic's own metadata."""
    model, tiles = own.get("model", {}), own.get("tiles", {})
    return VirtualStain(
        str(model.get("name", "unnamed")),
        str(tiles.get("slide", "unknown")),
        str(model.get("version", "")),
        model.get("weights_sha256"),
    )


def _reason(error: BaseException) -> str:
    return " ".join(repr(error).split())[:200]


def _zarr() -> Any:
    import zarr  # half a second, and seldom needed

    return zarr
