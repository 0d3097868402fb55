"""GeoJSON: the objects in a document, as QuPath and others write them, and regions as annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import shapely

from wsiscore.errors import RoiError
from wsiscore.regions import Roi
from wsiscore.roi.classes import excluded_class

__all__ = ["DETECTIONS", "class_of", "features_in", "object_type", "outlines_geojson"]

DETECTIONS = frozenset({"detection", "cell", "tile"})
"""QuPath's kinds of objects that are no regions."""
_GEOMETRIES = {"Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon"}


def features_in(document: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the features of any GeoJSON document, or of a bare list of them, as QuPath writes on request.

    Raises
    ------
    RoiError
        If it is something else.
    """
    kind = str(document.get("type")) if isinstance(document, dict) else None
    if isinstance(document, list):
        for member in document:
            yield from features_in(member)
    elif kind == "FeatureCollection":
        yield from features_in(document.get("features"))
    elif kind == "GeometryCollection":
        yield from features_in(document.get("geometries"))
    elif kind == "Feature":
        yield document
    elif kind in _GEOMETRIES:
        yield {"geometry": document}
    else:
        found = f"an object of type {kind!r}" if isinstance(document, dict) else json.dumps(document)[:40]
        raise RoiError(f"is JSON but not GeoJSON: found {found}; wanted features or geometries")


def object_type(feature: Mapping[str, Any]) -> str:
    """Return the kind of a QuPath object in lower case, such as ``annotation`` or ``detection``; empty if not said."""
    properties = feature.get("properties") or {}
    kind = properties.get("objectType") or properties.get("object_type")  # from 0.3
    if kind is None and str(feature.get("id")).startswith("Path"):  # before: PathCellObject
        kind = str(feature["id"]).removeprefix("Path").removesuffix("Object")
    return str(kind or "").casefold()


def class_of(properties: Mapping[str, Any]) -> str:
    """Return the name of the class in the properties of a feature; empty if there is none."""
    found = properties.get("classification") or ""
    if isinstance(found, dict):
        found = found.get("name") or ": ".join(found.get("names") or ())
    return str(found)


def outlines_geojson(rois: Iterable[Roi], mpp: float) -> dict[str, Any]:
    """Return ROIs as a GeoJSON FeatureCollection of annotations that QuPath opens, in level-0 pixels.

    Parameters
    ----------
    rois
        Outlines in micrometres from the slide's top left.
    mpp
        Micrometres per pixel of the slide's level 0.
    """
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shapely.transform(roi.outline_um, lambda xy: xy / mpp))),
            "properties": _properties(roi),
        }
        for roi in rois
    ]
    return {"type": "FeatureCollection", "features": features}


def _properties(roi: Roi) -> dict[str, Any]:
    """Return the properties of a region, with a class that is excluded again when the file is read."""
    class_name = excluded_class(roi.class_name) if roi.excluded else roi.class_name
    named = {"classification": {"name": class_name}} if class_name else {}
    return {"objectType": "annotation", "name": roi.name, **named}
