"""The cells, the regions and the fields of the protocols, as GeoJSON that QuPath imports."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import shapely

from wsiscore.analysis.protocols import Protocols
from wsiscore.cells.table import Cells
from wsiscore.files import replacing
from wsiscore.regions import Roi
from wsiscore.roi.geojson import outlines_geojson

__all__ = ["MOST_PLAIN", "write_detections", "write_fields", "write_regions"]

MOST_PLAIN = 200_000
"""Most cells that are written as plain text, of about 290 bytes each."""
_POSITIVE = '{"name":"Positive","color":[250,62,62]}'  # QuPath's own names and colours
_OTHER = '{"name":"Other","color":[160,160,160]}'  # nuclei other than the tumour's, which do not count
_NEGATIVE = '{"name":"Negative","color":[112,112,225]}'
_MARK_UM = 4.0  # radius of the mark of a cell
_ROWS = 16_384  # cells turned into text at a time: memory does not grow with the slide


def write_detections(path: Path, cells: Cells, others: Cells | None = None, *, mpp: float) -> None:
    """Write the cells as a FeatureCollection of points, one feature a line.

    Each is a QuPath *detection* of class Positive or Negative with the measurements Confidence, Positivity and
    DAB OD mean (left out where undefined, as of cells that somebody added). The radius is that of a mark, 4 µm:
    SpatialData, and with it LazySlide, reads no points without one. The same cells always get the same ids.

    Parameters
    ----------
    path
        The file to write; a ZIP archive of one file, which QuPath opens too, if its suffix is ``.zip``.
    cells, others
        Positions in micrometres from the slide's top left: cells that count, and nuclei of class Other that do not.
    mpp
        Micrometres per pixel of level 0. QuPath counts its pixels from the slide's top left as we do, also where
        the scanner does not.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with replacing(path) as part, _opened(part, path) as file:
        file.write('{"type":"FeatureCollection","features":[')
        before = "\n"
        for some, other in ((cells, False), (others, True)):
            for features in _features(some, mpp, other=other) if some is not None else ():
                file.write(before + ",\n".join(features))
                before = ",\n"
        file.write("\n]}\n")


@contextmanager
def _opened(part: Path, path: Path) -> Iterator[TextIO]:
    """Open a file for text, or the one in an archive, which has no date, so that the same cells give the same bytes."""
    if path.suffix != ".zip":
        with part.open("w", encoding="ascii", newline="\n") as file:
            yield file
        return
    member = zipfile.ZipInfo(path.stem)
    member.compress_type = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(part, "w", compresslevel=6) as archive,
        archive.open(member, "w", force_zip64=True) as binary,
        io.TextIOWrapper(binary, "ascii", newline="\n") as file,
    ):
        yield file


def write_fields(path: Path, found: Protocols, *, mpp: float) -> None:
    """Write the fields of the protocols as QuPath annotations, circles of 64 corners.

    Each has the measurements Index %, Positive, Cells, and the hot spot Chance %.

    Parameters
    ----------
    path
        The file to write.
    found
        The fields.
    mpp
        Micrometres per pixel of level 0.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    features = []
    hot = (found.hot_spot.field,) if found.hot_spot else ()
    for field in (*found.fields, *hot):
        circle = shapely.Point(field.x_um / mpp, field.y_um / mpp).buffer(field.radius_um / mpp, quad_segs=16)
        numbers = {"Index %": field.index, "Positive": field.n_positive, "Cells": field.n}
        if found.hot_spot and field is found.hot_spot.field:
            numbers["Chance %"] = found.hot_spot.chance
        properties = {"objectType": "annotation", "name": f"Ki67 {field.name}", "measurements": numbers}
        corners = [[round(x, 1), round(y, 1)] for x, y in circle.exterior.coords]
        geometry = {"type": "Polygon", "coordinates": [corners]}
        features.append(json.dumps({"type": "Feature", "geometry": geometry, "properties": properties}))
    with replacing(path) as part:
        joined = ",\n".join(features)
        part.write_text(f'{{"type":"FeatureCollection","features":[\n{joined}\n]}}\n', encoding="ascii")


def write_regions(path: Path, rois: Iterable[Roi], *, mpp: float) -> None:
    """Write regions as a FeatureCollection of QuPath annotations that ``--roi`` reads back.

    What was cut out of them has a class that is left out again.

    Parameters
    ----------
    path
        The file to write.
    rois
        Outlines in micrometres from the slide's top left.
    mpp
        Micrometres per pixel of level 0.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(outlines_geojson(rois, mpp), allow_nan=False) + "\n", encoding="ascii")


def _features(cells: Cells, mpp: float, *, other: bool) -> Iterator[list[str]]:
    """Yield the features of some cells at a time, as JSON."""
    stem = _id_stem(cells)
    radius = round(_MARK_UM / mpp, 1)
    classes = (_OTHER, _OTHER) if other else (_NEGATIVE, _POSITIVE)
    for start in range(0, len(cells), _ROWS):
        some = cells.select(np.arange(start, min(start + _ROWS, len(cells))))
        numbers = (some.x_um / mpp, some.y_um / mpp, some.confidence, some.positivity, some.dab_od)
        columns = (np.round(np.asarray(column, np.float64), 3).tolist() for column in numbers)
        yield [
            f'{{"type":"Feature","id":"{stem}{number:012x}","geometry":{{"type":"Point","coordinates":[{x},{y}]}},'
            f'"properties":{{"objectType":"detection","radius":{radius},"classification":{classes[positive]}{_measurements(*values)}}}}}'
            for number, (positive, x, y, *values) in enumerate(
                zip(some.positive.tolist(), *columns, strict=True), start
            )
        ]


def _measurements(*values: float) -> str:
    named = zip(("Confidence", "Positivity", "DAB OD mean"), values, strict=True)
    known = ",".join(f'"{name}":{value}' for name, value in named if math.isfinite(value))
    return f',"measurements":{{{known}}}' if known else ""


def _id_stem(cells: Cells) -> str:
    """Return all of a UUID (version 8, RFC 9562) but its last 12 digits, derived from the positions."""
    digest = hashlib.sha256(np.ascontiguousarray(cells.x_um).tobytes())
    digest.update(np.ascontiguousarray(cells.y_um).tobytes())
    digits = digest.hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[12:15]}-a{digits[15:18]}-"
