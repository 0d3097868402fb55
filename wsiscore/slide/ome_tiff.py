"""A virtual stain as pyramidal OME-TIFF, for viewers that read no OME-Zarr."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import tifffile

from wsiscore.files import replacing
from wsiscore.slide.readers.base import VIRTUAL_STAIN, Pixels, Reader
from wsiscore.slide.readers.registry import open_reader

__all__ = ["write_ome_tiff"]

_TILE_PX = 512


def write_ome_tiff(path: Path, picture: Path) -> None:
    """Write a virtual stain as a pyramidal OME-TIFF, without loss, strip by strip in flat memory.

    Tiles of 512 px, deflate; the levels are those of the mosaic. The OME-XML gives the physical size of a pixel, and
    says that the stain is virtual, by which model and from which slide: `wsiscore.slide.Slide` reads both back.

    Parameters
    ----------
    path
        The file to write; its name should end in ``.ome.tif``.
    picture
        A finished mosaic of ``red``, ``green``, ``blue``.

    Raises
    ------
    SlideError
        If `picture` is not that.
    OutputError
        If the file cannot be written.
    """
    source = open_reader(picture)
    with replacing(path) as part, tifffile.TiffWriter(part, bigtiff=True, ome=True) as writer:
        for level, (width, height, downsample) in enumerate(source.levels):
            x_um, y_um = source.mpp_xy or (0, 0)
            writer.write(
                _tiles(source, level),
                shape=(height, width, 3),
                dtype="uint8",
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="adobe_deflate",
                predictor=True,
                resolution=(1e4 / (x_um * downsample), 1e4 / (y_um * downsample)) if x_um else None,
                resolutionunit="CENTIMETER",
                software="wsiscore",
                subifds=0 if level else len(source.levels) - 1,
                subfiletype=1 if level else 0,
                metadata=None if level else _ome(source, path.name),
            )


def _tiles(source: Reader, level: int) -> Iterator[Pixels]:
    """Yield the tiles of a level in reading order, smaller at its right and lower edge."""
    width, height, _ = source.levels[level]
    for top in range(0, height, _TILE_PX):
        strip = source.read(level, 0, top, width, min(_TILE_PX, height - top))
        for left in range(0, width, _TILE_PX):
            yield strip[:, left : left + _TILE_PX]


def _ome(source: Reader, name: str) -> dict[str, object]:
    """Return what the OME-XML says, as tifffile takes it."""
    about: dict[str, object] = {"axes": "YXS", "Name": name}
    if source.mpp_xy:
        about |= {"PhysicalSizeX": source.mpp_xy[0], "PhysicalSizeY": source.mpp_xy[1]}
        about |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    if source.virtual:
        told = {
            key: str(value or "").encode("utf-8", "backslashreplace").decode("utf-8")
            for key, value in asdict(source.virtual).items()
        }
        about["Description"] = f"Virtual stain painted by {told['model']} from {told['slide']}; not a stained slide."
        about["MapAnnotation"] = {"Namespace": VIRTUAL_STAIN, **told}
    return about
