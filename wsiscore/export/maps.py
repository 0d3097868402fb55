"""The maps of a mosaic as pyramidal OME-TIFF, for QuPath and others that read no OME-Zarr 0.5."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr

from wsiscore.errors import MosaicError
from wsiscore.export.results import SlideResults
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import CHANNEL_COLOURS
from wsiscore.pyramid import levels

__all__ = ["write_maps"]

_TILE_PX = 512
_DENSITIES = {"dab_od": 100.0}  # of optical density; 255 stands for 2.55 and more
_FRACTION = 255.0


def write_maps(path: Path, results: SlideResults) -> None:
    """Write the maps of a slide as 8-bit planes of a pyramidal OME-TIFF, strip by strip in flat memory.

    A value of 255 is 1 in maps of fractions, and an optical density of 2.55 in ``dab_od``; the names of the channels
    say that. Tiles of 512 px, deflate; the levels are those of the mosaic, and the OME-XML has the size of a pixel.

    Raises
    ------
    MosaicError
        If the mosaic is not there, unfinished or damaged.
    """
    mosaic = results.mosaic
    if mosaic.missing():
        raise MosaicError(f"{mosaic.path} is unfinished; score the slide again")
    numbers = range(len(levels(mosaic.grid)))
    arrays = [zarr.open_array(mosaic.path / str(level), mode="r", zarr_format=3) for level in numbers]
    mpp = mosaic.grid.mpp
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        for level, array in enumerate(arrays):
            writer.write(
                _tiles(mosaic, array, level),
                shape=array.shape,
                dtype="uint8",
                tile=(_TILE_PX, _TILE_PX),
                photometric="minisblack",
                compression="adobe_deflate",
                resolution=(1e4 / (mpp * 2**level), 1e4 / (mpp * 2**level)),
                resolutionunit="CENTIMETER",
                software="wsiscore",
                subifds=0 if level else len(arrays) - 1,
                subfiletype=1 if level else 0,
                metadata=None if level else _ome(mosaic, results.score.slide),
            )


def _tiles(mosaic: Mosaic, array: Any, level: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the tiles of a level, channel by channel in reading order."""
    _, height, width = array.shape
    for number, name in enumerate(mosaic.channels):
        top_value = _DENSITIES.get(name, _FRACTION)
        for top in range(0, height, _TILE_PX):
            rows = min(_TILE_PX, height - top)
            if level:
                stored = np.asarray(array[number : number + 1, top : top + rows])
                strip = np.asarray(mosaic.values(stored, [name])[0])
            else:  # which notices damage
                strip = np.asarray(mosaic.read(0, top, width, rows, [name])[0])
            if strip.dtype != np.uint8:
                strip = np.rint(np.clip(strip.astype(np.float32) * top_value, 0, 255)).astype(np.uint8)
            for left in range(0, width, _TILE_PX):
                yield strip[:, left : left + _TILE_PX]


def _ome(mosaic: Mosaic, name: str) -> dict[str, Any]:
    """Return the metadata of the OME-XML, in the form that tifffile takes."""
    named = [f"{each} (OD × 100)" if each in _DENSITIES else each for each in mosaic.channels]
    return {
        "axes": "CYX",
        "Name": name.encode("utf-8", "backslashreplace").decode("utf-8"),
        "PhysicalSizeX": mosaic.grid.mpp,
        "PhysicalSizeY": mosaic.grid.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": named, "Color": [_colour(each) for each in mosaic.channels]},
    }


def _colour(channel: str) -> int:
    """Return the colour of a channel as OME has it: RGBA in a signed whole number of 32 bits."""
    rgba = int(CHANNEL_COLOURS.get(channel.split("_")[-1], "FFFFFF") + "FF", 16)
    return rgba - 2**32 if rgba >= 2**31 else rgba
