"""Corrected cells from GeoJSON, as QuPath exports them: detections, cells and points."""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsiscore.cells.edits import CellClass, MarkedCells
from wsiscore.errors import CorrectionError, RoiError
from wsiscore.roi.geojson import DETECTIONS, class_of, features_in, object_type

__all__ = ["read_marked"]

_MOST_BYTES = 512 * 2**20  # about 1.7 million cells
_LARGEST_UM2 = 5000.0  # an outline larger than this (80 µm across) is a region, not a nucleus
_CLASSES = {kind.name.casefold(): kind for kind in CellClass}
_TUMOUR = {"tumour", "tumor", ""}
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, shapely.errors.ShapelyError)
_EXPORT = "export it again, all cells as GeoJSON"

_log = logging.getLogger("wsiscore")

_Cell = tuple[float, float, CellClass]


def read_marked(path: Path, mpp: float) -> MarkedCells:
    """Read cells from GeoJSON: a FeatureCollection, a list of features or one of them; also gzipped or zipped.

    Points and multipoints are cells, and so are outlines of nuclei, by their centroid. Each has the class Positive,
    Negative or Other, also as ``Tumor: Positive``. Outlines of annotations that are larger than a nucleus, or of
    another class, are regions and left out. A cell that is there twice is read once.

    Parameters
    ----------
    path
        The file, in level-0 pixels from the slide's top left.
    mpp
        Micrometres per pixel of level 0.

    Raises
    ------
    CorrectionError
        If it cannot be read, is not GeoJSON, holds no cell, or a cell without one of these classes or with two.
    """
    regions = 0
    cells: list[_Cell] = []
    unknown: Counter[str] = Counter()
    try:
        for number, feature in enumerate(features_in(_document(path)), start=1):
            try:
                kind = _kind(class_of(feature.get("properties") or {}))
                if _is_region(feature, kind, mpp):
                    regions += 1
                elif isinstance(kind, str):
                    unknown[kind] += 1
                else:
                    cells += ((x, y, kind) for x, y in _centres(feature))
            except _MALFORMED as error:
                raise CorrectionError(f"its object no. {number} is not GeoJSON ({error}); {_EXPORT}") from error
        if unknown:
            named = ", ".join(f"{n} of {name!r}" if name else f"{n} without class" for name, n in unknown.items())
            raise CorrectionError(f"holds cells that are not of class Positive, Negative or Other: {named}")
        if not cells:
            raise CorrectionError(f"holds no cell; {_EXPORT}")
        once = _once(cells)
    except (CorrectionError, RoiError) as error:
        raise CorrectionError(f"{path}: {error}") from error
    if regions:
        _log.warning("%s: left out %d outlines that are no nuclei", path.name, regions)
    if twice := len(cells) - len(once):
        _log.warning("%s: %d cells are there twice, and are counted once", path.name, twice)
    x_px, y_px = np.array(list(once), np.float64).T
    return MarkedCells(x_px * mpp, y_px * mpp, np.array(list(once.values()), np.int64))


def _document(path: Path) -> Any:
    try:
        data = _content(path)
        if len(data) > _MOST_BYTES:
            raise CorrectionError(f"holds more than {_MOST_BYTES >> 20} MiB; export the cells without measurements")
        if not data.strip():
            raise CorrectionError(f"is empty; {_EXPORT}")
        return json.loads(data)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise CorrectionError(f"cannot be read ({getattr(error, 'strerror', None) or error}); {_EXPORT}") from error
    except ValueError as error:
        raise (
            error if isinstance(error, CorrectionError) else CorrectionError(f"is not whole JSON ({error}); {_EXPORT}")
        ) from error


def _content(path: Path) -> bytes:
    """Return the bytes of a file, of a gzipped one, or of the one GeoJSON file in an archive."""
    with path.open("rb") as file:
        head = file.peek(4)[:4]
        if head[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:
                return unpacked.read(_MOST_BYTES + 1)
        if head != b"PK\x03\x04":
            return file.read(_MOST_BYTES + 1)
        with zipfile.ZipFile(io.BytesIO(file.read(_MOST_BYTES + 1))) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith((".geojson", ".json"))]
            if len(names) != 1:
                raise CorrectionError(f"holds {len(names)} GeoJSON files; wanted an archive of one")
            with archive.open(names[0]) as member:
                return member.read(_MOST_BYTES + 1)


def _kind(class_name: str) -> CellClass | str:
    """Return the class of a cell, or the name that is none."""
    words = [word for word in re.split(r"[:\s]+", class_name.casefold()) if word not in _TUMOUR]
    return _CLASSES.get(words[0], class_name) if len(words) == 1 else class_name


def _is_region(feature: Mapping[str, Any], kind: CellClass | str, mpp: float) -> bool:
    geometry = feature["geometry"]
    if geometry["type"] in {"Point", "MultiPoint"} or object_type(feature) in DETECTIONS - {"tile"}:
        return False
    return isinstance(kind, str) or shapely.geometry.shape(geometry).area * mpp**2 > _LARGEST_UM2


def _centres(feature: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    geometry = feature.get("nucleusGeometry") or feature["geometry"]
    if geometry["type"] == "Point":
        points = [geometry["coordinates"]]
    elif geometry["type"] == "MultiPoint":
        points = geometry["coordinates"]
    else:
        shape = shapely.geometry.shape(geometry)
        middle = shapely.centroid(shape if shape.is_valid else shapely.make_valid(shape))
        points = [(middle.x, middle.y)]
    for point in points:
        x, y = float(point[0]), float(point[1])
        if not (abs(x) < 1e9 and abs(y) < 1e9):  # also nan
            raise ValueError(f"found {x}, {y}; wanted two finite numbers")
        yield x, y


def _once(cells: list[_Cell]) -> dict[tuple[float, float], CellClass]:
    """Return the class of the cell at each place; CorrectionError where there are two."""
    once: dict[tuple[float, float], CellClass] = {}
    for x, y, kind in cells:
        if once.setdefault((x, y), kind) != kind:
            names = f"{once[x, y].name.capitalize()} and {kind.name.capitalize()}"
            raise CorrectionError(f"has a cell at {x:g}, {y:g} px that is {names}; delete one of the two")
    return once
