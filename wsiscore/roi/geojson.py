"""Regions as GeoJSON annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import shapely

from wsiscore.regions import Roi
from wsiscore.roi.classes import excluded_class

__all__ = ["outlines_geojson"]


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
