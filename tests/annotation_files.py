"""Annotation files for tests: GeoJSON, ImageScope, ASAP and HALO, written in a few words."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [2, 5], [5, 5], [5, 2], [2, 2]]
FAR = [[20, 0], [30, 0], [30, 20], [20, 20], [20, 0]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings or [SQUARE])}


def feature(geometry, id_=None, **properties):
    found = {"type": "Feature", "geometry": geometry, "properties": properties}
    return found if id_ is None else found | {"id": id_}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def to_text(content):
    return content if isinstance(content, str) else json.dumps(content)


def areas(rois):
    return {roi.name: pytest.approx(roi.outline_um.area, rel=1e-9) for roi in rois}


def shoelace(points):
    x, y = np.array(points, dtype=float).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def layer(*regions, attributes='Name=""', inner=""):
    return f"<Annotation {attributes}>{inner}<Regions>{''.join(regions)}</Regions></Annotation>"


def region(kind, points, negative=0, text="", tag="Vertex"):
    vertices = "".join(f'<{tag} X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    attributes = f'Type="{kind}" NegativeROA="{negative}" Text="{text}"'
    return f"<Region {attributes}><Attributes/><Vertices>{vertices}</Vertices></Region>"


def annotations(*layers):
    return f'<?xml version="1.0"?><Annotations MicronsPerPixel="0">{"".join(layers)}</Annotations>'


def asap(*drawn):
    return f"<ASAP_Annotations><Annotations>{''.join(drawn)}</Annotations><AnnotationGroups/></ASAP_Annotations>"


def asap_one(kind, points, name="", group="None"):
    corners = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(points))
    attributes = f'Name="{name}" Type="{kind}" PartOfGroup="{group}"'
    return f"<Annotation {attributes}><Coordinates>{corners}</Coordinates></Annotation>"


@st.composite
def outlines_um(draw):
    """Star-shaped outlines; the hole is the same star, smaller; sometimes a second part beside it."""
    n = draw(st.integers(3, 12))
    radii = np.array(draw(st.lists(st.floats(20, 100), min_size=n, max_size=n)))
    angle = 2 * np.pi * (np.arange(n) + np.array(draw(st.lists(st.floats(0, 0.4), min_size=n, max_size=n)))) / n
    star = np.column_stack([radii * np.cos(angle), radii * np.sin(angle)])
    center = np.array([draw(st.floats(-500, 50000)), draw(st.floats(-500, 50000))])
    shrunk = draw(st.none() | st.floats(0.1, 0.8))
    part = Polygon(center + star, [] if shrunk is None else [center + shrunk * star])
    if draw(st.booleans()):
        return MultiPolygon([part, shapely.transform(part, lambda xy: xy + np.array([300, 0]))])
    return part
