"""True cells from points and outlines: tables, JSON lists, GeoJSON, HDF5.

The coordinates of the file are multiplied by µm/px; an outline is represented by its centroid.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection.truth import Kind, TrueCells, required_mpp
from wsiscore.files import stem

__all__ = ["from_csv", "from_h5", "from_json", "images_in", "json_of", "shapes_in"]

_LABEL_IDS = {1: Kind.POSITIVE, 2: Kind.NEGATIVE, 3: Kind.EXCLUDED}  # SHIDC-B-Ki-67; 3 is a lymphocyte
_CLASSES = {"positive": Kind.POSITIVE, "negative": Kind.NEGATIVE, "": Kind.UNKNOWN}
_POSITIONS_UM, _POSITIONS_PX = ("x_um", "y_um"), ("x", "y")
_TUMOUR = {"tumour", "tumor"}
_LARGEST_UM2 = 5000.0  # an outline larger than this (80 µm across) is a region, not a nucleus
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, shapely.errors.ShapelyError)

_log = logging.getLogger("wsiscore")


def from_csv(path: Path, mpp: float | None = None) -> TrueCells:
    """Read a table of points: ``x_um``, ``y_um`` in micrometres or ``x``, ``y`` in pixels, and ``class``.

    Without a class the cells are used for detection only. Cells whose ``kind`` is not ``tumour`` are excluded, and, if
    any cell has a ``roi``, those without one.

    Parameters
    ----------
    path
        The table, comma-separated, with a header.
    mpp
        Micrometres per pixel of ``x`` and ``y``; not needed for ``x_um`` and ``y_um``, which take precedence.

    Raises
    ------
    TruthError
        If a column is missing, a line is malformed, or the table is in pixels and `mpp` is None.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = set(rows.fieldnames or ())
            x, y = _POSITIONS_UM if set(_POSITIONS_UM) <= columns else _POSITIONS_PX
            if not {x, y} <= columns:
                raise TruthError(
                    f"{path} has the columns {', '.join(sorted(columns))}; wanted x_um, y_um and class, or x, y in "
                    "pixels and class"
                )
            table = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TruthError(f"{path} cannot be read ({error}); wanted comma-separated text") from error
    scale = 1.0 if (x, y) == _POSITIONS_UM else required_mpp(mpp, path)
    has_rois = any(row.get("roi") for row in table)
    cells = []
    for line, row in enumerate(table, start=2):
        try:
            x_um, y_um = _finite(row[x]) * scale, _finite(row[y]) * scale
            kind = _CLASSES[(row.get("class") or "").casefold()]
        except (TypeError, ValueError, KeyError) as error:
            raise TruthError(
                f"{path}, line {line}: found {error}; wanted two finite numbers and a class, positive or negative"
            ) from error
        other = (row.get("kind") or "tumour") not in _TUMOUR or (has_rois and not row.get("roi"))
        cells.append((x_um, y_um, Kind.EXCLUDED if other else kind))
    return TrueCells.of([cell[:2] for cell in cells], [cell[2] for cell in cells])


def from_h5(positive: Path, negative: Path, mpp: float) -> TrueCells:
    """Read the two BCData files of an image, each with a dataset ``coordinates``, (N, 2) of x and y in pixels.

    Raises
    ------
    TruthError
        If h5py is not installed, or a file is missing or not one of BCData.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise TruthError(
            f"{positive} is HDF5, which needs the package h5py; install it: pip install 'wsiscore[evaluate]'"
        ) from error
    columns = []
    for path in (positive, negative):
        try:
            with h5py.File(path, "r") as file:
                columns.append(np.asarray(file["coordinates"][()], np.float64).reshape(-1, 2))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise TruthError(f"{path} cannot be read ({error}); wanted HDF5 with a dataset 'coordinates'") from error
    kinds = np.repeat([Kind.POSITIVE, Kind.NEGATIVE], [len(points) for points in columns])
    return TrueCells.of(np.concatenate(columns) * mpp, kinds)


def json_of(path: Path) -> Any:
    """Return the content of a JSON file, which may be gzipped.

    Raises
    ------
    TruthError
        If it cannot be read.
    """
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise TruthError(f"{path} is not whole JSON ({error}); export it again") from error


def images_in(document: Any) -> dict[str, Any]:
    """Return the entries of a list of outlines by image, by the image's stem; empty for any other document."""
    if not isinstance(document, list) or not document:
        return {}
    if not all(isinstance(entry, dict) and isinstance(entry.get("image"), str) for entry in document):
        return {}
    return {stem(Path(entry["image"])): entry for entry in document}


def from_json(document: Any, name: str, mpp: float) -> TrueCells:
    """Read the cells of one image from a JSON document, whose format is recognised by its content.

    Formats are a list of ``{x, y, label_id}`` (1 positive, 2 negative, 3 lymphocyte, which is excluded); an entry
    ``{image, positive, negative}`` with outlines; and GeoJSON of points or outlines, as QuPath exports it.

    Parameters
    ----------
    document
        From `json_of`, or an entry of `images_in`.
    name
        Name of the file in messages.
    mpp
        Micrometres per pixel of the coordinates.

    Raises
    ------
    TruthError
        If it has another format, or a cell in it is malformed.
    """
    cells = shapes_in(document, name, mpp)
    centres = [_centroid(shape) for shape, _ in cells]
    return TrueCells.of(np.array(centres).reshape(-1, 2) * mpp, [kind for _, kind in cells])


def shapes_in(document: Any, name: str, mpp: float) -> list[tuple[shapely.Geometry, Kind]]:
    """Return the cells of one image as points or outlines in pixels, with their kinds; arguments as for `from_json`."""
    if isinstance(document, dict) and {"image", "positive", "negative"} <= set(document):
        read = _from_outlines(document)
    elif isinstance(document, list) and all(isinstance(cell, dict) and "label_id" in cell for cell in document):
        read = _from_labels(document)
    else:
        read = _from_geojson(document, name, mpp)
    cells: list[tuple[shapely.Geometry, Kind]] = []
    try:
        for shape, kind in read:
            _centroid(shape)
            cells.append((shape, kind))
    except _MALFORMED as error:
        if isinstance(error, TruthError):
            raise
        raise TruthError(f"{name}: cell no. {len(cells) + 1} is malformed ({error}); export it again") from error
    return cells


def _from_labels(document: Sequence[Mapping[str, Any]]) -> Iterator[tuple[shapely.Geometry, Kind]]:
    for cell in document:
        if cell["label_id"] not in _LABEL_IDS:
            raise ValueError(f"label_id {cell['label_id']!r}; wanted 1 positive, 2 negative or 3 lymphocyte")
        yield shapely.Point(_finite(cell["x"]), _finite(cell["y"])), _LABEL_IDS[cell["label_id"]]


def _from_outlines(entry: Mapping[str, Any]) -> Iterator[tuple[shapely.Geometry, Kind]]:
    for kind in (Kind.POSITIVE, Kind.NEGATIVE):
        for outline in entry[kind.name.lower()]:
            yield shapely.MultiPoint(outline) if len(outline) < 3 else shapely.Polygon(outline), kind


def _from_geojson(document: Any, name: str, mpp: float) -> Iterator[tuple[shapely.Geometry, Kind]]:
    left_out: Counter[str] = Counter()
    for feature in _features(document, name):
        shape = shapely.geometry.shape(feature.get("nucleusGeometry") or feature["geometry"])
        name_of_class = _class_of(feature.get("properties") or {})
        words = {word for word in re.split(r"[:,\s]+", name_of_class.casefold()) if word not in _TUMOUR} or {""}
        kind = _CLASSES.get(words.pop(), Kind.EXCLUDED) if len(words) == 1 else Kind.EXCLUDED
        if shape.geom_type not in {"Point", "MultiPoint", "Polygon", "MultiPolygon"}:
            raise ValueError(f"a {shape.geom_type}; wanted points or outlines")
        if shape.area * mpp**2 > _LARGEST_UM2:
            left_out[f"outlines over {_LARGEST_UM2:g} µm², which are not nuclei"] += 1
            continue
        if kind == Kind.EXCLUDED:
            left_out[f"cells of class {name_of_class!r}, which is neither Positive nor Negative"] += 1
        for part in shape.geoms if shape.geom_type == "MultiPoint" else [shape]:
            yield part, kind
    if left_out:
        _log.warning("%s: excluded %s", name, ", ".join(f"{n} {what}" for what, n in left_out.items()))


def _features(document: Any, name: str) -> Iterator[Mapping[str, Any]]:
    kind = document.get("type") if isinstance(document, dict) else None
    if kind == "Feature":
        yield document
    elif kind == "FeatureCollection" and isinstance(document.get("features"), list):
        yield from document["features"]
    elif isinstance(document, list) and all(isinstance(one, dict) and one.get("type") == "Feature" for one in document):
        yield from document
    else:
        raise TruthError(
            f"{name} is JSON of another kind; wanted a list of {{x, y, label_id}}, GeoJSON, or outlines by image "
            "({image, positive, negative})"
        )


def _class_of(properties: Mapping[str, Any]) -> str:
    found = properties.get("classification") or properties.get("class") or ""
    if isinstance(found, dict):
        found = found.get("name") or ": ".join(found.get("names") or ())
    return str(found).strip()


def _centroid(shape: shapely.Geometry) -> tuple[float, float]:
    """Return the centroid, also of an outline that crosses itself."""
    if shape.is_empty:
        raise ValueError("an outline without vertices")
    middle = shapely.centroid(shape if shape.is_valid else shapely.make_valid(shape))
    return _finite(middle.x), _finite(middle.y)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number
