"""What other systems read: each file opened by the reader it is for, where that is installed."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import shapely
from reports import result_of, scattered, whole_roi

from wsiscore.cells.marked import read_marked
from wsiscore.report import writers
from wsiscore.report.qupath import write_detections
from wsiscore.report.tables import write_cells_table


@pytest.mark.parametrize("n", [0, 50])
def test_the_table_of_cells_is_geoparquet(tmp_path: Path, n: int) -> None:
    cells = scattered(n)
    write_cells_table(tmp_path / "cells.parquet", cells, [whole_roi()])
    table = pyarrow.parquet.read_table(tmp_path / "cells.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert (geo["version"], column["encoding"], column["geometry_types"]) == ("1.1.0", "WKB", ["Point"])
    schema = pyarrow.parquet.ParquetFile(tmp_path / "cells.parquet").schema
    assert schema.column(schema.names.index("geometry")).physical_type == "BYTE_ARRAY"
    points = shapely.from_wkb(table["geometry"].to_pylist())
    assert np.array_equal(shapely.get_coordinates(points), np.column_stack([cells.x_um, cells.y_um]))
    if n:
        assert column["bbox"] == list(shapely.total_bounds(points))


def test_geopandas_opens_the_cells(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    cells = scattered(50)
    write_cells_table(tmp_path / "cells.parquet", cells, [whole_roi()])
    frame = geopandas.read_parquet(tmp_path / "cells.parquet")
    assert np.array_equal(frame.geometry.x, cells.x_um)
    assert np.array_equal(frame["class"] == "positive", cells.positive)
    assert frame.crs is None
    for name in ("cells.geojson", "cells.geojson.zip"):
        write_detections(tmp_path / name, cells, mpp=0.5)
        frame = geopandas.read_file(tmp_path / name)
        assert np.allclose(frame.geometry.x, cells.x_um / 0.5, atol=1e-3)
        found = [json.loads(one)["name"] if isinstance(one, str) else one["name"] for one in frame["classification"]]
        assert np.array_equal(np.array(found) == "Positive", cells.positive)
        assert (frame["radius"] == 8).all()


@pytest.mark.filterwarnings("ignore")
def test_lazyslide_reads_the_cells(tmp_path: Path) -> None:
    """LazySlide makes shapes of SpatialData of what geopandas reads, the class in columns of its own."""
    geopandas, models = pytest.importorskip("geopandas"), pytest.importorskip("spatialdata.models")
    write_detections(tmp_path / "cells.geojson", scattered(50), mpp=0.5)
    frame = geopandas.read_file(tmp_path / "cells.geojson").set_crs(None, allow_override=True)
    shapes = models.ShapesModel.parse(frame.explode().reset_index(drop=True).drop(columns="classification"))
    assert (len(shapes), set(shapes.geom_type)) == (50, {"Point"})


def test_an_archive_holds_the_same_cells(tmp_path: Path) -> None:
    """QuPath opens an archive whose name ends in .zip, with a file in it that ends in .geojson; none ending in .gz."""
    cells = scattered(50)
    for name in ("cells.geojson", "cells.geojson.zip"):
        write_detections(tmp_path / name, cells, mpp=0.5)
    with zipfile.ZipFile(tmp_path / "cells.geojson.zip") as archive:
        assert archive.namelist() == ["cells.geojson"]
        assert archive.read("cells.geojson") == (tmp_path / "cells.geojson").read_bytes()
    assert len(read_marked(tmp_path / "cells.geojson.zip", 0.5)) == 50
    write_detections(tmp_path / "twice" / "cells.geojson.zip", cells, mpp=0.5)
    assert (tmp_path / "twice" / "cells.geojson.zip").read_bytes() == (tmp_path / "cells.geojson.zip").read_bytes()


def test_many_cells_are_packed(slide, monkeypatch) -> None:
    result = result_of(slide, scattered(30))
    named = {writer.name: writer for writer in writers.WRITERS}

    def chosen(result):
        return [name for name in ("cells.geojson", "cells.geojson.zip") if named[name].when(result)]

    assert chosen(result) == ["cells.geojson"]
    monkeypatch.setattr(writers, "MOST_PLAIN", 40)
    assert chosen(replace(result, others=scattered(10))) == ["cells.geojson"]
    assert chosen(replace(result, others=scattered(11))) == ["cells.geojson.zip"]
