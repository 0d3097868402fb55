"""Annotation files: GeoJSON from QuPath and others, Aperio ImageScope, ASAP and HALO.

Files count in pixels of level 0, which become micrometres here. ASAP and HALO count from the scanner's origin, QuPath
and wsiscore from the rectangle that was scanned (``origin_px``).
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import shapely

from wsiscore.errors import RoiError
from wsiscore.regions import Roi
from wsiscore.roi.classes import is_not_scored
from wsiscore.roi.geojson import DETECTIONS, class_of, features_in, object_type
from wsiscore.roi.outlines import (
    REPAIR_TOLERANCE,
    Outline,
    Points,
    clip_rois,
    closed,
    corners_px,
    outline_px,
    polygonal,
    to_um,
)

__all__ = ["clip_rois", "read_rois"]

_MOST_BYTES = 128 * 2**20  # about 5 million corners
_MOST_VALUES = {"JSON": (b"[{,", 16_000_000), "XML": (b"<=", 8_000_000)}  # each takes up to 100 bytes of memory
_NAMES_SHOWN = 12

_LINES = {"Point": "point", "MultiPoint": "point", "LineString": "line", "MultiLineString": "line"}
# Region/@Type: ImageScope writes digits, HALO words
_AREAS = {"0": "polygon", "1": "rectangle", "2": "ellipse"}
_AREAS |= {word: word for word in _AREAS.values()}
_MARKS = {"3": "arrow", "4": "ruler", "5": "counter"}
_ASAP_AREAS = {"polygon", "rectangle", "spline"}

_log = logging.getLogger("wsiscore")


@dataclass(slots=True)
class _Notes:
    """What is logged after reading: annotations left out, outlines repaired."""

    ignored: Counter[str] = field(default_factory=Counter)
    repaired: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One annotation of a file; a polygon is its edge, then its holes."""

    name: str
    class_name: str
    polygons: list[list[Points]]
    cut: Outline | None = None

    @property
    def label(self) -> str:
        return self.name or self.class_name or "ROI"


def read_rois(
    path: Path | str,
    *,
    mpp: float,
    classes: Sequence[str] = (),
    origin_px: tuple[int, int] = (0, 0),
    exclude: Sequence[str] | None = None,
) -> list[Roi]:
    """Read the regions in an annotation file, of any format below, recognised by its content.

    The formats are GeoJSON (QuPath's or any other, also gzipped), Aperio ImageScope XML, ASAP XML and HALO annotations.
    Negative regions of ImageScope and HALO are cut from the regions of their own layer. The control points of an
    ASAP spline are joined by straight lines. Points, lines, detections and cells are left out with one logged warning.
    Another one names the outlines that crossed themselves slightly and were repaired.

    Parameters
    ----------
    path
        The annotation file.
    mpp
        Micrometres per pixel of the slide's level 0.
    classes
        Keep only regions whose class or name is among these, whatever the case; all when empty.
    origin_px
        Top left of the slide in the scanner's own level-0 pixels (OpenSlide's ``bounds-x``, ``bounds-y``). It is
        subtracted in ASAP and HALO files, which count from the scanner's origin. QuPath has subtracted it already, and
        ImageScope's slides have none.
    exclude
        If given, regions of the classes in `wsiscore.roi.classes.NOT_SCORED`, and of these classes or names, are
        returned as excluded ones, after the others. `wsiscore.roi.classes.subtract` cuts them out.

    Returns
    -------
    list of Roi
        At least one, in the file's order, in micrometres; names are unique: the annotation's own, else its class,
        else ``ROI``, with `` 2``, `` 3`` and so on at repeats.

    Raises
    ------
    RoiError
        If the file is missing, broken, of another kind or holds no region (of these classes), or an outline has no
        area, a corner that is not on any slide, or clearly crosses itself.
    ValueError
        If `mpp` is not a positive number.
    """
    if not (math.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp must be a positive number of micrometres per pixel, got {mpp}")
    path, notes = Path(path), _Notes()
    try:
        drawings, from_scanner = _drawings(path, notes)
        out, others = _parted(drawings, exclude)
        chosen = _chosen(others, classes, out)
        origin = origin_px if from_scanner else (0, 0)
        rois = [
            Roi(name, to_um(_outline(name, drawn, notes), mpp, origin), drawn.class_name, number >= len(chosen))
            for number, (name, drawn) in enumerate(_named([*chosen, *out]))
        ]
        if not rois:
            left_out = f"; left out were {_listed(notes.ignored)}" if notes.ignored else ""
            raise RoiError(f"holds no region{left_out}; draw at least one closed outline and export it again")
    except RoiError as error:
        raise RoiError(f"{path}: {error}") from error
    if notes.ignored:
        _log.warning("%s: left out %s, which are no regions", path.name, _listed(notes.ignored))
    if notes.repaired:
        _log.warning(
            "%s: repaired outlines that cross themselves slightly (under %g %% of the area): %s",
            path.name,
            100 * REPAIR_TOLERANCE,
            _shown([repr(name) for name in notes.repaired]),
        )
    return rois


# --- files -----------------------------------------------------------------------------------------------------


def _drawings(path: Path, notes: _Notes) -> tuple[list[_Drawn], bool]:
    """Return the annotations in a file, and whether they count from the scanner's origin."""
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():
            raise RoiError("is not a regular file; wanted GeoJSON, ImageScope XML, ASAP XML or HALO annotations")
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            source = gzip.GzipFile(fileobj=file) if packed else file
            first = source.peek(64)[:64].lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1]
            if first not in (b"{", b"[", b"<"):
                found = "is of another kind" if first else "is empty"
                raise RoiError(f"{found}; wanted GeoJSON, ImageScope XML, ASAP XML or HALO annotations")
            data = source.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise RoiError("there is no such file") from error
    except ValueError as error:  # a NUL in the name
        raise error if isinstance(error, RoiError) else RoiError(f"cannot be the name of a file: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise RoiError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _MOST_BYTES:
        raise RoiError(f"holds more than {_MOST_BYTES >> 20} MiB; export the annotations without detections")
    signs, most = _MOST_VALUES["XML" if first == b"<" else "JSON"]
    if sum(data.count(sign) for sign in signs) > most:
        raise RoiError(f"holds more than {most / 1e6:g} million values; export the annotations without detections")
    try:
        return _from_xml(data, notes) if first == b"<" else (_from_geojson(data, notes), False)
    except RecursionError as error:
        raise RoiError("is nested too deep to be an annotation file; export it again") from error


# --- GeoJSON ---------------------------------------------------------------------------------------------------


def _from_geojson(data: bytes, notes: _Notes) -> list[_Drawn]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise RoiError(f"is not whole JSON ({error}); export it again") from error
    drawings = []
    for number, feature in enumerate(features_in(document), start=1):
        try:
            drawn = _from_feature(feature, notes)
        except (TypeError, AttributeError, KeyError) as error:
            raise RoiError(f"its annotation no. {number} is not GeoJSON ({error}); export it again") from error
        if drawn is not None:
            drawings.append(drawn)
    return drawings


def _from_feature(feature: Mapping[str, Any], notes: _Notes) -> _Drawn | None:
    properties = feature.get("properties") or {}
    kind = object_type(feature)
    if kind in DETECTIONS:
        notes.ignored[kind] += 1
        return None
    name, class_name = _one_line(properties.get("name")), _one_line(class_of(properties))
    polygons = _polygons(feature.get("geometry"), name or class_name or "ROI", notes)
    return _Drawn(name, class_name, polygons) if polygons else None


def _polygons(geometry: Any, label: str, notes: _Notes) -> list[list[Points]]:
    kind = str(geometry["type"]) if geometry is not None else "annotation without geometry"
    if kind == "GeometryCollection":
        return [found for member in geometry["geometries"] for found in _polygons(member, label, notes)]
    if kind == "MultiPolygon":
        return [[corners_px(ring, label) for ring in rings] for rings in geometry["coordinates"] or [[]]]
    if kind == "Polygon":
        return [[corners_px(ring, label) for ring in geometry["coordinates"]]]
    if geometry is not None and kind not in _LINES:
        raise RoiError(f"outline {label!r} is a {kind!r}, which GeoJSON does not know; export it again")
    notes.ignored[_LINES.get(kind, kind)] += 1
    return []


# --- XML -------------------------------------------------------------------------------------------------------


class _Plain(ElementTree.TreeBuilder):
    """Builds a tree, but refuses a document type, whose entities can expand without limit."""

    def doctype(self, name: str, _public: str | None, _system: str | None) -> None:
        raise RoiError(f"declares a document type ({name}), which no annotation file needs; export it again")


def _from_xml(data: bytes, notes: _Notes) -> tuple[list[_Drawn], bool]:
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_Plain()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        if isinstance(error, RoiError):
            raise
        raise RoiError(f"is not whole XML ({error}); export it again") from error
    if root.tag == "ASAP_Annotations":
        return _from_asap(root, notes), True
    if root.tag == "Annotations":
        is_halo = root.find("Annotation/Regions/Region/Vertices/V") is not None
        return [drawn for layer in root.iterfind("Annotation") for drawn in _from_layer(layer, notes)], is_halo
    raise RoiError(f"is XML, but <{root.tag}> is not supported; wanted ImageScope, ASAP or HALO annotations")


def _from_asap(root: ElementTree.Element, notes: _Notes) -> list[_Drawn]:
    drawings = []
    for annotation in root.iterfind("Annotations/Annotation"):
        kind = annotation.get("Type", "").casefold()
        if kind not in _ASAP_AREAS:
            notes.ignored[kind or "annotation without type"] += 1
            continue
        name, group = _one_line(annotation.get("Name")), _one_line(annotation.get("PartOfGroup"))
        corners = annotation.iterfind("Coordinates/Coordinate")
        points = corners_px(((corner.get("X"), corner.get("Y")) for corner in corners), name or group or "ROI")
        drawings.append(_Drawn(name, "" if group == "None" else group, [[points]]))
    return drawings


def _from_layer(layer: ElementTree.Element, notes: _Notes) -> list[_Drawn]:
    """Read one layer of ImageScope or HALO; its negative regions are holes in all its others."""
    class_name = _layer_class(layer)
    regions: list[_Drawn] = []
    negatives: list[_Drawn] = []
    for region in layer.iterfind("Regions/Region"):
        kind = region.get("Type", "0").casefold()
        if kind not in _AREAS:
            notes.ignored[_MARKS.get(kind, kind)] += 1
            continue
        name = _one_line(region.get("Text"))
        corners = ((vertex.get("X"), vertex.get("Y")) for vertex in region.iterfind("Vertices/*"))
        points = closed(_AREAS[kind], corners_px(corners, name or class_name or "ROI"))
        is_negative = region.get("NegativeROA", "0").casefold() in ("1", "true")
        (negatives if is_negative else regions).append(_Drawn(name, class_name, [[points]]))
    if not negatives:
        return regions
    if not regions:
        notes.ignored["negative region in a layer without others"] += len(negatives)
    holes = [_outline(f"{drawn.label} (negative)", drawn, notes) for drawn in negatives]
    tree = shapely.STRtree(holes)

    def cut(drawn: _Drawn) -> Outline | None:
        points = shapely.multipoints(drawn.polygons[0][0])
        near = tree.query(shapely.envelope(points)) if not points.is_empty else []
        return polygonal(shapely.union_all([holes[index] for index in near])) if len(near) else None

    return [_Drawn(drawn.name, class_name, drawn.polygons, cut(drawn)) for drawn in regions]


def _layer_class(layer: ElementTree.Element) -> str:
    found = [layer.get("Name")]
    for attribute in layer.iterfind("Attributes/Attribute"):
        found.append(attribute.get("Value"))
        found.append(attribute.get("Name") if attribute.get("Name") != "Description" else None)
    return next(filter(None, map(_one_line, found)), "")


def _outline(name: str, drawn: _Drawn, notes: _Notes) -> Outline:
    outline, was_repaired = outline_px(name, drawn.polygons, drawn.cut)
    if was_repaired:
        notes.repaired.append(name)
    return outline


# --- names -----------------------------------------------------------------------------------------------------


def _parted(drawings: list[_Drawn], exclude: Sequence[str] | None) -> tuple[list[_Drawn], list[_Drawn]]:
    """Return the annotations that are not scored, and the others; without a class, the name of one counts."""
    if exclude is None:
        return [], drawings
    also = {_one_line(name).casefold() for name in exclude}
    parts: tuple[list[_Drawn], list[_Drawn]] = ([], [])
    for one in drawings:
        named = also & {one.class_name.casefold(), one.name.casefold()}
        parts[not (named or is_not_scored(one.class_name or one.name))].append(one)
    return parts


def _chosen(drawings: list[_Drawn], classes: Sequence[str], out: list[_Drawn]) -> list[_Drawn]:
    wanted = {_one_line(name).casefold() for name in classes}
    chosen = [one for one in drawings if not wanted or wanted & {one.class_name.casefold(), one.name.casefold()}]
    if wanted and not chosen and (drawings or out):
        there = sorted({one.class_name or one.name or "(none)" for one in drawings})
        left_out = sorted({one.class_name or one.name for one in out})
        also = f"; never scored are: {_shown(left_out)}" if out else ""
        raise RoiError(
            f"no region is of class {' or '.join(classes)}; the classes there are: {_shown(there) or 'none'}{also}"
        )
    return chosen


def _named(drawings: list[_Drawn]) -> Iterator[tuple[str, _Drawn]]:
    return zip(_unique(drawn.label for drawn in drawings), drawings, strict=True)


def _unique(labels: Iterable[str]) -> Iterator[str]:
    taken: set[str] = set()
    numbers: dict[str, Iterator[int]] = {}
    for label in labels:
        name = label
        while name in taken:
            name = f"{label} {next(numbers.setdefault(label, count(2)))}"
        taken.add(name)
        yield name


def _one_line(text: Any) -> str:
    return "" if text is None else " ".join(str(text).split())


def _listed(counted: Counter[str]) -> str:
    return ", ".join(f"{number} × {what}" for what, number in counted.items())


def _shown(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
