"""The target domain: coloured masks, centre maps and class masks, from nuclei outlined anywhere or rendered.

Nuclei are *cells*: a signed label map, (H, W) whole numbers, 0 on the ground, +n on positive nucleus n and −n on
negative nucleus n; numbers from `OTHERS` on are nuclei known not to be the tumour's. All maps are uint8, 0..255 for
[-1, 1] of the network (Molnar et al., IHCScoreGAN, section 2.1.2).
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely
import tifffile

from wsiscore.errors import RoiError
from wsiscore.models.contract import TargetRules
from wsiscore.roi.annotations import read_rois

__all__ = [
    "NUCLEI_SUFFIXES",
    "OTHERS",
    "center_map",
    "class_masks",
    "colour_mask",
    "k_maps",
    "random_classes",
    "read_nuclei",
]

NUCLEI_SUFFIXES = (".json", ".npy", ".tif", ".tiff", ".png", ".geojson", ".xml")
"""Of the files that `read_nuclei` reads."""

OTHERS = 10_000
"""First number of nuclei of stroma and of lymphocytes."""

_REACH_PX = 28.28  # where the paper's centre map ends
_STEEPNESS = 0.5  # of the normalised centre map: exp(-2) = 0.14 at an ellipse's edge
_ARRAY_MAKERS = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
_BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, pickle.UnpicklingError)
_LEAST_VARIANCE = 0.3  # px²: a nucleus of a few pixels still has a peak

CellMap = npt.NDArray[np.int32]
Picture = npt.NDArray[np.uint8]


def random_classes(labels: npt.NDArray[np.integer[Any]], rng: np.random.Generator) -> CellMap:
    """Give each nucleus a class: a share of positives drawn from U[0, 1], then every nucleus by that chance.

    Parameters
    ----------
    labels
        (H, W), 0 on the ground, any other number for a nucleus; signs are ignored.
    rng
        Source of randomness.

    Returns
    -------
    Cells, (H, W).
    """
    labels = np.abs(labels).astype(np.int32)
    share = rng.random()
    sign = np.where(rng.random(int(labels.max(initial=0)) + 1) < share, 1, -1).astype(np.int32)
    cells: CellMap = sign[labels] * labels
    return cells


def class_masks(cells: npt.NDArray[np.integer[Any]]) -> Picture:
    """Return (2, H, W): 255 on positive nuclei, and 255 on negative ones."""
    return np.stack([cells > 0, cells < 0]).astype(np.uint8) * np.uint8(255)


def colour_mask(cells: npt.NDArray[np.integer[Any]], rng: np.random.Generator, variation: bool = True) -> Picture:
    """Paint positive nuclei red and negative ones green.

    Parameters
    ----------
    cells
        (H, W).
    rng
        Source of randomness.
    variation
        Multiply each nucleus by a brightness from U[0, 1], as the paper does; False is its ablation (table 5).

    Returns
    -------
    (3, H, W) RGB in 0..255 on black.
    """
    number = np.abs(cells)
    brightness = rng.random(int(number.max(initial=0)) + 1) if variation else np.ones(int(number.max(initial=0)) + 1)
    painted = (brightness * 255 + 0.5).astype(np.uint8)[number]
    return np.stack([painted * (cells > 0), painted * (cells < 0), np.zeros_like(painted)])


def center_map(cells: npt.NDArray[np.integer[Any]], kind: str = "peak") -> Picture:
    """Return how near each pixel of a nucleus is to the nucleus's centroid.

    Parameters
    ----------
    cells
        (H, W).
    kind
        ``peak``: 255 at the centroid, falling as a Gaussian of the nucleus's own shape to 0.14 of it at the edge, so
        that nuclei of all sizes have one clear maximum. ``distance``: the paper's, ``1 - distance / 28.28 px``,
        which is flat on small nuclei.

    Returns
    -------
    (H, W) in 0..255, 0 on the ground.
    """
    near = np.zeros(cells.shape, np.float64)
    y, x = np.nonzero(cells)
    of = np.abs(cells[y, x])
    n = np.maximum(np.bincount(of), 1)
    dy, dx = (at - (np.bincount(of, at) / n)[of] for at in (y, x))
    if kind == "distance":
        near[y, x] = np.clip(1 - np.hypot(dx, dy) / _REACH_PX, 0, 1)
    else:
        yy, xx, xy = (np.bincount(of, weight) / n for weight in (dy * dy, dx * dx, dx * dy))
        yy, xx = yy + _LEAST_VARIANCE, xx + _LEAST_VARIANCE
        area = np.maximum(yy * xx - xy * xy, _LEAST_VARIANCE**2)
        squared = (xx[of] * dy * dy + yy[of] * dx * dx - 2 * xy[of] * dx * dy) / area[of]
        near[y, x] = np.exp(-_STEEPNESS * squared)
    return (near * 255 + 0.5).astype(np.uint8)


def k_maps(cells: npt.NDArray[np.integer[Any]], rules: TargetRules) -> Picture:
    """Return the K branch's target, (3, H, W) in 0..255: centre map, positive mask, negative mask."""
    center = center_map(cells, rules.center)
    others = np.abs(cells) >= OTHERS
    center[others] = (center[others] * rules.others + 0.5).astype(np.uint8)
    return np.concatenate([center[None], class_masks(cells)])


def read_nuclei(path: Path, shape: tuple[int, int] | None = None) -> CellMap:
    """Read outlined nuclei as a label map.

    Parameters
    ----------
    path
        HoVer-Net's JSON (``nuc`` with a ``contour`` each); an instance label map as ``.npy`` (an array, or a dict with
        ``inst_map``), TIFF or PNG; or outlines as GeoJSON or ImageScope XML in pixels.
    shape
        (height, width) of the picture the outlines are of; by default just large enough to hold them.

    Returns
    -------
    (H, W), 0 on the ground.

    Raises
    ------
    RoiError
        If the file holds none of these.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _label_map(_load_npy(path), path)
        if path.suffix.lower() in (".tif", ".tiff"):
            return _label_map(tifffile.imread(path), path)
        if path.suffix.lower() == ".png":
            return _label_map(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), path)
        contours = _contours(path)
    except RoiError:
        raise
    except _BROKEN as error:
        wanted = "HoVer-Net JSON, a label map or outlines"
        raise RoiError(f"{path} holds no nuclei that can be read ({error}); wanted {wanted}") from error
    if shape is None:
        corner = np.ceil(np.max([contour.max(axis=0) for contour in contours], axis=0)).astype(int) + 1
        shape = int(corner[1]), int(corner[0])
    labels = np.zeros(shape, np.int32)
    for number, contour in enumerate(contours, start=1):
        cv2.fillPoly(labels, [np.round(contour).astype(np.int32)], number)
    return labels


def _contours(path: Path) -> list[npt.NDArray[np.float64]]:
    """Return the outlines in a file, each (n, 2) of x, y in pixels."""
    if path.suffix.lower() == ".json":
        held = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(held, dict) and "nuc" in held:
            contours = [np.asarray(nucleus["contour"], np.float64) for nucleus in held["nuc"].values()]
            if not contours:
                raise RoiError(f"{path} lists no nucleus under 'nuc'; leave it out")
            return contours
    # One pixel counts as one micrometre: the outlines stay in pixels.
    parts = [part for roi in read_rois(path, mpp=1.0) for part in shapely.get_parts(roi.outline_um)]
    return [shapely.get_coordinates(part.exterior) for part in parts]


class _PlainArrays(pickle.Unpickler):
    """Reads the pickle in an ``.npy`` of a dict of arrays, and calls nothing but what makes arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _ARRAY_MAKERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds code ({module}.{name}), which was not run")


def _load_npy(path: Path) -> Any:
    file = io.BytesIO(path.read_bytes())
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read_header(file)
    if not dtype.hasobject:
        file.seek(0)
        return np.load(file)
    held = _PlainArrays(file).load()
    return held.item()["inst_map"]


def _label_map(labels: Any, path: Path) -> CellMap:
    if not (isinstance(labels, np.ndarray) and labels.ndim == 2 and (labels == np.floor(labels)).all()):
        what = f"an array of shape {labels.shape}" if isinstance(labels, np.ndarray) else "no array"
        raise RoiError(f"{path} holds {what}; wanted a label map (height, width) of whole numbers, 0 on the ground")
    return labels.astype(np.int32)
