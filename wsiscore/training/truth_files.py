"""Annotated pictures for training: the pictures of a folder with their nuclei, as `wsiscore evaluate cells` reads them.

A folder holds pictures and, beside them or in its sub-folder ``truth``, annotations by stem. Its ``index.csv``, if
there is one, has a line for each picture: ``name`` (the stem), and any of ``mpp``, ``unmarked``, ``recolour``,
``group`` and ``weight``, which override the options.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection import masks, points
from wsiscore.evaluation.detection.files import Annotation, find_truth
from wsiscore.evaluation.detection.rois import find_regions
from wsiscore.evaluation.detection.truth import Kind
from wsiscore.files import stem
from wsiscore.roi.annotations import read_rois

__all__ = ["AnnotatedPicture", "TruthOptions", "read_folder"]

Unmarked = Literal["ground", "unknown"]

_INDEX = "index.csv"
_COLUMNS = frozenset({"name", "mpp", "unmarked", "recolour", "group", "weight"})
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FINEST_MPP = 0.35  # finer pictures are kept at this resolution
_TYPICAL_UM = 7.5  # median diameter of nuclei, where the resolution of a picture is not known
_TUMOUR = ("tumour", "tumor")

Labels = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class TruthOptions:
    """How annotated pictures are read, where ``index.csv`` does not say.

    Parameters
    ----------
    mpp
        Resolution of the pictures and of annotations in pixels, µm/px. Without it, only outlines that are recoloured
        can be used: they are scaled by the size of their nuclei.
    unmarked
        What lies outside marked nuclei: ``ground``, or ``unknown`` where nuclei were left out.
    recolour
        Whether outlined pictures are of another stain (H&E, fluorescence in reverse) and get new dyes.
    regions
        Annotation files by stem: outside their outlines nothing is known.
    types
        Kinds of the numbers of a type map, as `wsiscore.evaluation.detection.masks.from_npy`.
    """

    mpp: float | None = None
    unmarked: Unmarked = "ground"
    recolour: bool = False
    regions: Path | None = None
    types: Mapping[int, Kind] | None = None


@dataclass(frozen=True, slots=True)
class AnnotatedPicture:
    """A picture with marked nuclei.

    Parameters
    ----------
    name
        Its stem.
    rgb
        (H, W, 3), 0..255.
    mpp
        Its resolution, µm/px, at most 0.35; where it is not known, estimated from the size of the nuclei.
    sized
        Whether the resolution is known.
    xy_px
        (N, 2): centres of the nuclei.
    kind
        (N,): a `Kind` each; of excluded nuclei the class is not known.
    other
        (N,): 1 for nuclei that are not the tumour's, 0 for the tumour's, -1 where that is not known.
    labels
        (H, W): 0 outside, i + 1 on nucleus i; None for points.
    inside
        (H, W): where the annotations apply.
    unmarked, recolour
        As in `TruthOptions`.
    group
        Pictures of one group are of one laboratory or slide: they have the stains in common.
    weight
        How often it is used, relative to others.
    """

    name: str
    rgb: npt.NDArray[np.uint8]
    mpp: float
    sized: bool
    xy_px: npt.NDArray[np.float64]
    kind: Ints
    other: Ints
    labels: Labels | None
    inside: npt.NDArray[np.bool_]
    unmarked: Unmarked
    recolour: bool
    group: str
    weight: float


def read_folder(folder: Path, options: TruthOptions) -> list[AnnotatedPicture]:
    """Read the annotated pictures of a folder, ordered by name.

    Raises
    ------
    TruthError
        If no picture has annotations, or something cannot be read.
    RoiError
        If regions cannot be read.
    """
    if not folder.is_dir():
        raise TruthError(f"{folder} is no folder; --truth wants one with pictures and their annotations")
    pictures = {stem(path): path for path in sorted(folder.iterdir()) if path.suffix.casefold() in _PICTURES}
    inner = folder / "truth"
    truth = inner if inner.is_dir() else folder
    if truth == folder:  # a mask beside its picture has another ending
        photographs = {stem(path): path for path in pictures.values() if path.suffix.casefold() in (".jpg", ".jpeg")}
        pictures |= photographs
    rows = _read_index(folder / _INDEX)
    names = sorted(set(pictures) & set(rows)) if rows else sorted(pictures)
    if not names:
        raise TruthError(f"{folder} holds no picture ({' '.join(_PICTURES)}) that {_INDEX} names; wanted some")
    outlines = find_regions(options.regions, names) if options.regions else {}
    slides = [pictures[name] for name in names]
    found, _ = find_truth(truth, names, slides=slides, regions=list(outlines.values()))
    return [
        _read(pictures[name], annotation, outlines.get(name), rows.get(name, {}), options)
        for name, annotation in found.items()
    ]


def _read_index(path: Path) -> dict[str, dict[str, str]]:
    """Return the lines of an ``index.csv`` by name; empty without one."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        if "name" not in (table.fieldnames or ()):
            raise TruthError(f"{path} has no column name; wanted {', '.join(sorted(_COLUMNS))}")
        return {row["name"]: {key: value for key, value in row.items() if key in _COLUMNS and value} for row in table}


def _read(
    path: Path, annotation: Annotation, regions: Path | None, row: Mapping[str, str], options: TruthOptions
) -> AnnotatedPicture:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise TruthError(f"{path} cannot be read; wanted a picture ({' '.join(_PICTURES)})")
    rgb = np.ascontiguousarray(picture.astype(np.uint8)[..., ::-1])
    try:
        mpp = float(row["mpp"]) if "mpp" in row else options.mpp
        weight = float(row.get("weight", 1))
    except ValueError as error:
        raise TruthError(f"{path.parent / _INDEX}, {path.stem}: {error}; wanted numbers as mpp and weight") from error
    unmarked = options.unmarked if "unmarked" not in row else _unmarked(row["unmarked"], path)
    recolour = row["recolour"] not in ("0", "no", "false") if "recolour" in row else options.recolour
    labels, xy_px, kind = _nuclei(annotation, rgb.shape[:2], mpp or 1.0, options.types or {})
    if mpp is None and (labels is None or not recolour):
        raise TruthError(f"{path} has no resolution; give --mpp, or a column mpp in {path.parent / _INDEX}")
    sized = mpp is not None
    if mpp is None:
        assert labels is not None
        areas = np.bincount(labels.ravel())[1:]
        areas = areas[areas > 0]
        mpp = _TYPICAL_UM / float(np.median(np.sqrt(areas * 4 / np.pi))) if len(areas) else _FINEST_MPP
    inside = _inside(regions, rgb.shape[:2], mpp)
    if mpp < _FINEST_MPP:
        size = round(rgb.shape[1] * mpp / _FINEST_MPP), round(rgb.shape[0] * mpp / _FINEST_MPP)
        xy_px = xy_px * [size[0] / rgb.shape[1], size[1] / rgb.shape[0]]
        inside = cv2.resize(inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        if labels is not None:
            labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.int32)
        mpp = _FINEST_MPP
    other = _other(annotation.files[0], kind)
    group = row.get("group", path.stem)
    return AnnotatedPicture(
        path.stem, rgb, mpp, sized, xy_px, kind, other, labels, inside, unmarked, recolour, group, weight
    )


def _unmarked(text: str, path: Path) -> Unmarked:
    if text == "ground":
        return "ground"
    if text == "unknown":
        return "unknown"
    raise TruthError(f"{path.parent / _INDEX}, {path.stem}: unmarked is ground or unknown, got {text!r}")


def _nuclei(
    annotation: Annotation, shape: tuple[int, ...], mpp: float, types: Mapping[int, Kind]
) -> tuple[Labels | None, npt.NDArray[np.float64], Ints]:
    """Return a label map, None for points, and the centres in pixels and kinds of the nuclei."""
    path = annotation.files[0]
    suffix = path.suffix.casefold()
    if suffix in (".png", ".tif", ".tiff", ".npy"):
        return _of_labels(path, shape, mpp, types)
    if suffix not in (".csv", ".h5"):
        document = annotation.entry or points.json_of(path)
        shapes = points.shapes_in(document, path.name, mpp)
        if all(shape_.area > 0 for shape_, _ in shapes):
            labels = np.zeros(shape[:2], np.int32)
            for number, (outline, _) in enumerate(shapes, start=1):
                for part in shapely.get_parts(outline):
                    corners = shapely.get_coordinates(part.exterior) - 0.5
                    cv2.fillPoly(labels, [np.round(corners).astype(np.int32)], number)
            centres = np.array([(at.centroid.x, at.centroid.y) for at, _ in shapes]).reshape(-1, 2)
            return labels, centres, np.array([kind for _, kind in shapes], np.int8)
    cells = annotation.read(mpp, types)
    return None, cells.xy_um / mpp, _with_unknown(path, cells.kind)


def _of_labels(
    path: Path, shape: tuple[int, ...], mpp: float, types: Mapping[int, Kind]
) -> tuple[Labels, npt.NDArray[np.float64], Ints]:
    type_map = None
    if path.suffix.casefold() == ".npy":
        pixels, type_map = masks.arrays_of(path)
    else:
        pixels = masks.pixels_of(path)
    if pixels.shape[:2] != shape[:2]:
        found, wanted = (f"{at[1]} × {at[0]} px" for at in (pixels.shape, shape))
        raise TruthError(f"{path} is {found}, its picture {wanted}; wanted one size")
    first = None
    if pixels.ndim == 3:
        masks.check_colours(pixels[..., :3], path)
        positive, negative = masks.label_classes(pixels[..., :3], masks.LEAST_UM2 / mpp**2)
        first = int(positive.max())
        pixels = np.where(negative > 0, negative + first, positive)
    y, x, which, areas = masks.instances(pixels, path)
    labels = np.zeros(shape[:2], np.int32)
    labels[y, x] = which + 1
    kinds = masks.kinds_of(which, len(areas), None if type_map is None else type_map[y, x], types)
    if first is not None:
        numbers = np.unique(pixels[pixels > 0])
        kinds = np.where(numbers <= first, Kind.POSITIVE, Kind.NEGATIVE).astype(np.int8)
    centres = np.column_stack([np.bincount(which, at, len(areas)) / np.maximum(areas, 1) + 0.5 for at in (x, y)])
    return labels, centres, kinds


def _kinds_in(path: Path) -> list[str] | None:
    """Return the column ``kind`` of a table of points; None without one."""
    if path.suffix.casefold() != ".csv":
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        return [row["kind"] or "" for row in rows] if "kind" in (rows.fieldnames or ()) else None


def _with_unknown(path: Path, kind: Ints) -> Ints:
    """Return the kinds, where a nucleus whose kind of tissue is ``unknown`` is not excluded."""
    named = _kinds_in(path)
    if named is None:
        return kind
    return np.where([name == "unknown" for name in named], Kind.UNKNOWN, kind).astype(np.int8)


def _other(path: Path, kind: Ints) -> Ints:
    """Return which nuclei are not the tumour's, see `AnnotatedPicture`."""
    named: Sequence[Any] | None = _kinds_in(path)
    if named is not None:
        return np.array([-1 if name in ("unknown", "") else int(name not in _TUMOUR) for name in named], np.int8)
    excluded = np.equal(kind, Kind.EXCLUDED)
    unclassed = np.equal(kind, Kind.UNKNOWN) & (not excluded.any())
    return np.where(excluded, 1, np.where(unclassed, -1, 0)).astype(np.int8)


def _inside(regions: Path | None, shape: tuple[int, ...], mpp: float) -> npt.NDArray[np.bool_]:
    """Return (H, W), where annotations apply: in the outlines of a file, everywhere without one."""
    if regions is None:
        return np.ones(shape[:2], np.bool_)
    filled = np.zeros(shape[:2], np.uint8)
    for roi in read_rois(regions, mpp=mpp):
        for part in shapely.get_parts(roi.outline_um):
            for ring, value in ((part.exterior, 1), *((hole, 0) for hole in part.interiors)):
                cv2.fillPoly(filled, [np.round(shapely.get_coordinates(ring) / mpp - 0.5).astype(np.int32)], value)
    return filled > 0
