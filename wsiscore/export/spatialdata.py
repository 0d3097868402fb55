"""Cells, regions and a picture as a SpatialData store: its layout on disk (Zarr 3), written without that library."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import shapely
import zarr

from wsiscore import __version__
from wsiscore.errors import SlideError
from wsiscore.export.results import SlideResults
from wsiscore.report.tables import geo_metadata
from wsiscore.report.thumbnail import read_thumbnail
from wsiscore.slide.slide import Slide

__all__ = ["write_spatialdata"]

# Versions of the layout, of SpatialData 0.5 and newer
_CONTAINER, _POINTS, _SHAPES, _IMAGES = "0.2", "0.2", "0.3", "0.3"
_SYSTEM = "global"
_PICTURE_PX = 2000  # longest side

_log = logging.getLogger("wsiscore")


def write_spatialdata(path: Path, results: SlideResults) -> None:
    """Write a store with the points ``cells`` and the shapes ``regions``, in micrometres from the slide's top left.

    The points have the columns of ``cells.parquet``, positions as ``x`` and ``y``; the feature key is ``class``. Where
    the slide can be read, the image ``slide`` shows it with at most 2000 px on the longer side.
    """
    about: dict[str, Any] = {"version": _CONTAINER, "spatialdata_software_version": f"wsiscore {__version__}"}
    zarr.open_group(path, mode="w", zarr_format=3, attributes={"spatialdata_attrs": about})
    for kind in ("points", "shapes"):
        zarr.open_group(path / kind, mode="w", zarr_format=3)
    _element(path / "points" / "cells", "ngff:points", {"version": _POINTS, "feature_key": "class"})
    table = results.cells
    columns = ["x", "y", *(name for name in table.column_names if name not in {"x_um", "y_um"})]
    table = table.rename_columns({"x_um": "x", "y_um": "y"}).select(columns).replace_schema_metadata(None)
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(number, field.name, table[field.name].dictionary_encode())
    (path / "points" / "cells" / "points.parquet").mkdir()
    with (path / "points" / "cells" / "points.parquet" / "part.0.parquet").open("wb") as file:
        pa.parquet.write_table(table, file)
    _element(path / "shapes" / "regions", "ngff:shapes", {"version": _SHAPES})
    outlines = np.array([roi.outline_um for roi in results.regions], dtype=object)
    shapes = pa.table(
        {
            "name": [roi.name for roi in results.regions],
            "class": [roi.class_name for roi in results.regions],
            "geometry": pa.array(shapely.to_wkb(outlines), pa.binary()),
        }
    )
    kinds = sorted({outline.geom_type for outline in outlines})
    shapes = shapes.replace_schema_metadata(geo_metadata(kinds, shapely.total_bounds(outlines).tolist()))
    with (path / "shapes" / "regions" / "shapes.parquet").open("wb") as file:
        pa.parquet.write_table(shapes, file)
    _write_picture(path / "images", results)


def _write_picture(path: Path, results: SlideResults) -> None:
    about = results.run["slide"]
    given = results.mpp if about.get("mpp_source") == "given" else None
    try:
        with Slide(Path(str(about.get("path"))), given) as slide:
            if about.get("sha256") not in (None, slide.sha256):
                raise SlideError(f"{slide.path} is another file than was scored")
            extent = (0.0, 0.0, slide.width_px * slide.mpp, slide.height_px * slide.mpp)
            picture = read_thumbnail(slide, extent, max_px=_PICTURE_PX)
    except SlideError as error:
        _log.warning("%s: written without a picture of the slide: %s", path.parent, error)
        return
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx")]
    scale = {"type": "scale", "scale": [1.0, picture.region.mpp, picture.region.mpp]}
    image = {
        "name": "/images/slide",
        "axes": [{"name": axis["name"], "type": axis["type"]} for axis in axes],
        "datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}],
        "coordinateTransformations": [
            scale | {"input": {"name": "cyx", "axes": axes}, "output": {"name": _SYSTEM, "axes": axes}}
        ],
    }
    colours = {"channels": [{"label": label} for label in ("red", "green", "blue")]}
    ome = {"version": "0.5-dev-spatialdata", "omero": colours, "multiscales": [image]}
    zarr.open_group(path, mode="w", zarr_format=3)
    attributes: dict[str, Any] = {"ome": ome, "spatialdata_attrs": {"version": _IMAGES}}
    zarr.open_group(path / "slide", mode="w", zarr_format=3, attributes=attributes)
    planes = np.ascontiguousarray(np.moveaxis(picture.pixels, -1, 0))
    zarr.create_array(path / "slide" / "s0", data=planes, chunks=(3, 512, 512), dimension_names=("c", "y", "x"))


def _element(path: Path, encoding: str, about: dict[str, Any]) -> None:
    """Write the metadata of an element whose coordinates are those of the slide."""
    attributes: dict[str, Any] = {
        "encoding-type": encoding,
        "axes": ["x", "y"],
        "coordinateTransformations": [{"type": "identity", "input": _axes("xy"), "output": _axes(_SYSTEM)}],
        "spatialdata_attrs": about,
    }
    zarr.open_group(path, mode="w", zarr_format=3, attributes=attributes)


def _axes(name: str, axes: Sequence[str] = ("x", "y")) -> dict[str, Any]:
    return {"name": name, "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in axes]}
