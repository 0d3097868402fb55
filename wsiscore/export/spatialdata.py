"""The cells and regions as a SpatialData store: its layout on disk (Zarr 3), written without that library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import shapely
import zarr

from wsiscore import __version__
from wsiscore.export.results import SlideResults
from wsiscore.report.tables import geo_metadata

__all__ = ["write_spatialdata"]

_CONTAINER, _POINTS, _SHAPES = "0.2", "0.2", "0.3"  # versions of the layout, of SpatialData 0.5 and newer
_SYSTEM = "global"


def write_spatialdata(path: Path, results: SlideResults) -> None:
    """Write a store with the points ``cells`` and the shapes ``regions``, in micrometres from the slide's top left.

    The points have the columns of ``cells.parquet``, positions as ``x`` and ``y``; the feature key is ``class``.
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
