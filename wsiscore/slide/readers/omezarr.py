"""An OME-Zarr image: a virtual stain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wsiscore.errors import SlideError
from wsiscore.slide.readers.base import DECODE_ERRORS, UM_OF_UNIT, Level, Pixels, Reader, VirtualStain

__all__ = ["OmeZarrReader", "is_virtual"]

_CHANNELS = ["red", "green", "blue"]


class OmeZarrReader(Reader):
    """An OME-Zarr image (0.5, or 0.4) with red, green and blue: a virtual stain."""

    @classmethod
    def reads(cls, path: Path, head: bytes) -> bool:
        """Accept any folder."""
        return path.is_dir()

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            group = _zarr().open_group(path, mode="r")
            attributes: dict[str, Any] = group.attrs.asdict()
            ome = attributes.get("ome", attributes)
            image = ome["multiscales"][0]
            self._arrays = [group[dataset["path"]] for dataset in image["datasets"]]
            scales = [
                next(t["scale"] for t in dataset["coordinateTransformations"] if t["type"] == "scale")
                for dataset in image["datasets"]
            ]
            axes = [axis["name"] for axis in image["axes"]]
            unit = UM_OF_UNIT.get(image["axes"][-1].get("unit", ""))
        except FileNotFoundError as error:
            raise SlideError(f"{path} is a folder but not an OME-Zarr image; wanted a slide's file") from error
        except (*DECODE_ERRORS, StopIteration) as error:
            raise SlideError(f"{path} is not a complete OME-Zarr image ({error!r})") from error
        first = self._arrays[0]
        own = attributes.get("wsiscore")
        channels = own.get("channels", _CHANNELS) if own else _CHANNELS
        if axes != ["c", "y", "x"] or first.dtype != np.uint8 or first.shape[0] != len(channels):
            raise SlideError(f"{path} holds {first.dtype} {first.shape}; wanted red, green, blue of 8 bits")
        if not set(channels).issuperset(_CHANNELS):
            raise SlideError(f"{path} holds maps of {', '.join(channels)}; wanted red, green, blue")
        self._planes = [channels.index(name) for name in _CHANNELS]  # others may stand beside them
        if own and not attributes.get("complete", True):
            raise SlideError(f"{path} is not finished; run the `wsiscore infer` that began it once more")
        self.levels = tuple(
            Level(array.shape[2], array.shape[1], scale[2] / scales[0][2])
            for array, scale in zip(self._arrays, scales, strict=True)
        )
        self.mpp_xy = (scales[0][2] * unit, scales[0][1] * unit) if unit else None
        self.format = "OME-Zarr"
        self.virtual = _painted_by(own) if own else None
        self.properties = {"vendor": "wsiscore" if own else "OME-Zarr"}

    def files(self) -> list[Path]:
        """Return every file of the image: its metadata first, then the chunks by name."""
        first = self.path / ("zarr.json" if (self.path / "zarr.json").is_file() else ".zattrs")
        return [first, *sorted(file for file in self.path.rglob("*") if file.is_file() and file != first)]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) RGB of a rectangle inside a level."""
        try:
            planes = self._arrays[level][:, y : y + height, x : x + width]
        except DECODE_ERRORS as error:
            raise self._undecodable(level, x, y, error) from error
        return np.ascontiguousarray(np.moveaxis(planes[self._planes], 0, -1))


def is_virtual(path: Path) -> bool:
    """Tell whether a folder is a mosaic of wsiscore that is a picture, and so a slide; reads its metadata alone."""
    try:
        about = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]["wsiscore"]
        return bool(about["output"] == "image")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _painted_by(own: dict[str, Any]) -> VirtualStain:
    """Return what a mosaic's own metadata says of the model that painted it."""
    model, tiles = own.get("model", {}), own.get("tiles", {})
    return VirtualStain(
        str(model.get("name", "unnamed")),
        str(tiles.get("slide", "unknown")),
        str(model.get("version", "")),
        model.get("weights_sha256"),
    )


def _zarr() -> Any:
    import zarr  # half a second, and seldom needed

    return zarr
