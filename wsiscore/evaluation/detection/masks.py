"""True cells from masks: maps of numbered instances, and class masks in colour.

Pixel i covers [i, i + 1) px: the centre of a nucleus of one pixel is half a pixel from its edge.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi
import tifffile
from PIL import Image, UnidentifiedImageError

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection.truth import Kind, TrueCells
from wsiscore.files import ForbiddenGlobalError, RestrictedUnpickler

__all__ = [
    "LEAST_UM2",
    "arrays_of",
    "check_colours",
    "from_npy",
    "from_picture",
    "instances",
    "kinds_of",
    "label_classes",
    "pixels_of",
]

LEAST_UM2 = 1.25
"""Least area of a nucleus in a class mask, µm²: 20 px at 0.25 µm/px."""

_NUCLEAR = 120  # DeepLIIF's thresholds on levels 0..255, see `label_classes`
_BOUNDARY = 80
_STRONG = 128
_OTHER_COLOURS = 0.05  # greatest fraction of pixels of a class mask that are neither dark, red, green nor blue
_CONTINUOUS = 0.5  # least fraction of equal numbers among neighbouring pixels of a map of instances
_FEW_PAIRS = 1000  # fewer neighbouring pixels do not decide
# What numpy pickles an array as, in its versions 1 and 2.
_ALLOWED: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for _module in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_module}.multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
    _ALLOWED[f"{_module}.numeric", "_frombuffer"] = np.empty(0).__reduce_ex__(5)[0]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_MODES = ("1", "L", "I", "I;16", "I;16B", "RGB", "RGBA")


def from_npy(path: Path, mpp: float, types: Mapping[int, Kind]) -> TrueCells:
    """Read a map of numbered instances, alone or as ``{inst_map, type_map}`` (the format of HoVer-Net's datasets).

    Parameters
    ----------
    path
        The file; pickled code in it is not executed.
    mpp
        Micrometres per pixel.
    types
        Class of each number of the type map; other numbers are excluded. If empty, the classes are unknown and the
        cells are used for detection only.

    Raises
    ------
    TruthError
        If the file has another format.
    """
    labels, type_map = arrays_of(path)
    return _from_labels(labels, type_map, path, mpp, types)


def arrays_of(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Read a ``.npy`` of numbered instances, (H, W), and their types if it has them; pickled code is not executed.

    Raises
    ------
    TruthError
        If the file has another format.
    """
    try:
        try:
            found = np.load(path, allow_pickle=False)
        except ValueError:  # an array of objects
            with path.open("rb") as file:
                found = _plain_objects(file)
    except ForbiddenGlobalError as error:
        raise TruthError(f"{path} holds code ({error}) and was not read; wanted a map of instances") from error
    except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise TruthError(
            f"{path} cannot be read ({error}); wanted a map of instances, or of those and types"
        ) from error
    if not isinstance(found, dict):
        found = {"inst_map": found}
    if "inst_map" not in found:
        raise TruthError(f"{path} holds {', '.join(map(str, found))}; wanted inst_map and type_map")
    labels, type_map = found["inst_map"], found.get("type_map")
    if type_map is not None and np.shape(type_map) != np.shape(labels):
        raise TruthError(f"{path} has a type_map of another shape than its inst_map")
    return labels, type_map


def from_picture(path: Path, mpp: float) -> TrueCells:
    """Read a TIFF or PNG: in grey a map of numbered instances, in colour a class mask.

    In a class mask positive nuclei are red, negative ones blue, and green lines separate touching ones; each component
    of at least `LEAST_UM2` is a cell, see `label_classes`. The cells of a grey map are used for detection only.

    Raises
    ------
    TruthError
        If it cannot be read, or is neither.
    """
    pixels = pixels_of(path)
    if pixels.ndim == 2:
        return _from_labels(pixels, None, path, mpp, {})
    return _from_classes(pixels[..., :3], path, mpp)


def pixels_of(path: Path) -> npt.NDArray[Any]:
    """Read a TIFF or PNG: (H, W) of numbers, or (H, W, 3 or 4) of colours in 0..255.

    Raises
    ------
    TruthError
        If it cannot be read or is neither.
    """
    try:
        if path.suffix.casefold() in {".tif", ".tiff"}:
            pixels = _tiff_pixels(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as picture:
                    if picture.mode not in _MODES:
                        raise TruthError(f"{path} is a picture of mode {picture.mode}; save it as grey or RGB")
                    pixels = np.asarray(picture)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        if isinstance(error, TruthError):
            raise
        raise TruthError(f"{path} cannot be read ({error}); wanted a TIFF or PNG mask") from error
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4) and pixels.dtype == np.uint8):
        return pixels
    raise TruthError(f"{path} holds {pixels.dtype} of shape {pixels.shape}; wanted a grey map or 8-bit RGB")


def _tiff_pixels(path: Path) -> npt.NDArray[Any]:
    """Return level 0 of a TIFF; of a pyramid in colour the smallest level is checked first, as it may be a slide."""
    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        if len(levels) > 1 and levels[-1].dtype == np.uint8 and levels[-1].shape[-1:] in ((3,), (4,)):
            check_colours(np.asarray(levels[-1].asarray())[..., :3], path)
        return np.squeeze(np.asarray(levels[0].asarray()))


def _from_labels(
    labels: npt.NDArray[Any], type_map: npt.NDArray[Any] | None, path: Path, mpp: float, types: Mapping[int, Kind]
) -> TrueCells:
    y_px, x_px, which, areas = instances(labels, path)
    kinds = kinds_of(which, len(areas), None if type_map is None else type_map[y_px, x_px], types)
    return TrueCells.of(_centroids_um(y_px, x_px, which, areas, mpp), kinds)


def instances(labels: npt.NDArray[Any], path: Path) -> tuple[Ints, Ints, Ints, Ints]:
    """Find the pixels of numbered instances.

    Parameters
    ----------
    labels
        (H, W) numbers, 0 outside nuclei.
    path
        Their file, for messages.

    Returns
    -------
    tuple
        Row, column and index of the nucleus of each nuclear pixel, where nuclei are ordered by number; and the number
        of pixels of each nucleus.

    Raises
    ------
    TruthError
        If it is not a map of numbers, if all nuclei have the same number, or if most neighbouring pixels differ, as in
        a photograph.
    """
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or not np.issubdtype(labels.dtype, np.number):
        raise TruthError(f"{path} holds no map of numbers; wanted one (height, width), 0 outside nuclei")
    y_px, x_px = np.nonzero(labels)
    numbers, which, areas = np.unique(labels[y_px, x_px], return_inverse=True, return_counts=True)
    if len(numbers) == 1 and cv2.connectedComponents(np.not_equal(labels, 0).astype(np.uint8))[0] > 2:
        raise TruthError(f"{path} has one number for all nuclei; wanted a number each: label its components first")
    _check_continuous(labels, path)
    return y_px, x_px, which, areas


def _check_continuous(labels: npt.NDArray[Any], path: Path) -> None:
    """Raise a TruthError if the numbers of neighbouring pixels differ, as the grey levels of a photograph do."""
    left, right = labels[:, :-1], labels[:, 1:]
    both = (left != 0) & (right != 0)
    if (pairs := int(both.sum())) >= _FEW_PAIRS and int((both & (left == right)).sum()) < _CONTINUOUS * pairs:
        raise TruthError(
            f"{path} is no map of numbered nuclei: most neighbouring pixels differ, as in a photograph; wanted one "
            "number for each nucleus"
        )


def kinds_of(
    which: Ints, count: int, types_there: npt.NDArray[Any] | None, types: Mapping[int, Kind]
) -> npt.NDArray[np.int8]:
    """Return the kind of each nucleus by majority vote of its pixels.

    Parameters
    ----------
    which
        Index of the nucleus of each pixel.
    count
        Number of nuclei.
    types_there
        Number of each pixel in the type map; None without a map, then all classes are unknown.
    types
        As in `from_npy`.
    """
    if types_there is None or not types or not count:
        return np.full(count, Kind.UNKNOWN, np.int8)
    values, value_of = np.unique(types_there, return_inverse=True)
    votes = np.zeros((count, len(values)), np.int64)
    np.add.at(votes, (which, value_of), 1)
    meaning = np.array([types.get(int(value), Kind.EXCLUDED) for value in values], np.int8)
    kinds: npt.NDArray[np.int8] = meaning[votes.argmax(axis=1)]
    return kinds


def check_colours(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    """Raise a TruthError unless (H, W, 3) `pixels` are a class mask: dark, red, green or blue."""
    other = float(((pixels > _STRONG).sum(axis=2) > 1).mean())
    if other > _OTHER_COLOURS:
        raise TruthError(
            f"{path} is no mask of classes: {100 * other:.0f} % of it is neither dark, red, green nor blue, as in the "
            "picture of a slide; wanted red positive and blue negative nuclei with green outlines"
        )


def label_classes(rgb: npt.NDArray[np.uint8], least_px: float) -> tuple[Ints, Ints]:
    """Return the nuclei of a class mask, drawn or generated by a network, as numbered instances.

    A pixel is nuclear where red + blue > 120 and green <= 80, and positive where red >= blue. These are the thresholds
    of DeepLIIF's post-processing of 8-bit class maps (Ghahremani et al., Nat. Mach. Intell. 4 (2022) 401). They are
    fixed here, and independent of `wsiscore.cells.rules.ComponentRules`, so that results compare with the published
    ones. The nuclei of a class are its 8-connected components with holes filled.

    Parameters
    ----------
    rgb
        (H, W, 3), 0..255: red positive, blue negative, green between nuclei.
    least_px
        Smaller components are not nuclei.

    Returns
    -------
    tuple of array
        (H, W) of the positive and of the negative nuclei: 0 outside, else the number of the nucleus. No pixel is in
        both.
    """
    red, green, blue = np.moveaxis(rgb.astype(np.int16), -1, 0)
    nuclear = (red + blue > _NUCLEAR) & (green <= _BOUNDARY)
    positive, negative = nuclear & (red >= blue), nuclear & (red < blue)
    return _label_components(positive, negative, least_px), _label_components(negative, positive, least_px)


def _label_components(own: Mask, other: Mask, least_px: float) -> Ints:
    """Return the filled components of one class without the pixels of the other."""
    labels, count = ndi.label(ndi.binary_fill_holes(own) & ~other, np.ones((3, 3)))
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= least_px
    kept[0] = False
    return np.where(kept[labels], labels, 0).astype(np.int64)


def _from_classes(rgb: npt.NDArray[np.uint8], path: Path, mpp: float) -> TrueCells:
    check_colours(rgb, path)
    centres, kinds = [], []
    both = label_classes(rgb, LEAST_UM2 / mpp**2)
    for kind, labels in zip((Kind.POSITIVE, Kind.NEGATIVE), both, strict=True):
        y_px, x_px = np.nonzero(labels)
        numbers, which, areas = np.unique(labels[y_px, x_px], return_inverse=True, return_counts=True)
        centres.append(_centroids_um(y_px, x_px, which, areas, mpp))
        kinds += [kind] * len(numbers)
    return TrueCells.of(np.concatenate(centres), kinds)


def _centroids_um(y_px: Ints, x_px: Ints, which: Ints, areas: Ints, mpp: float) -> npt.NDArray[np.float64]:
    """Return (N, 2), x and y in micrometres, of the nuclei of `instances`."""
    sums = np.column_stack([np.bincount(which, at, len(areas)) for at in (x_px, y_px)])
    return np.asarray((sums / areas[:, None] + 0.5) * mpp, np.float64)


def _plain_objects(file: BinaryIO) -> Any:
    """Return the object in a ``.npy`` of dtype object."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an array that numpy wrote")
    np.lib.format.read_array_header_1_0(file)
    found = RestrictedUnpickler(file, _ALLOWED).load()
    return found.item() if isinstance(found, np.ndarray) and found.ndim == 0 else found
