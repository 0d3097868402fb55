"""True cells from masks: maps of numbered instances, and masks of coloured classes.

Pixel i covers [i, i + 1) px, so that the centre of a nucleus of one pixel is half a pixel from its edge.
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
import tifffile
from PIL import Image, UnidentifiedImageError

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection.truth import Kind, TrueCells
from wsiscore.files import ForbiddenGlobalError, RestrictedUnpickler

__all__ = ["arrays_of", "check_colours", "from_npy", "from_picture", "instances", "kinds_of", "pixels_of"]

_SPECK_UM2 = 1.25  # a coloured spot smaller than this is no nucleus; 20 px at 0.25 µm/px
_OTHER_COLOURS = 0.05  # share of pixels that may be neither dark, red, green nor blue
_STRONG = 128
# What numpy pickles an array as, in its versions 1 and 2.
_ALLOWED: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for _module in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_module}.multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
    _ALLOWED[f"{_module}.numeric", "_frombuffer"] = np.empty(0).__reduce_ex__(5)[0]
Ints = npt.NDArray[np.int64]

_MODES = ("1", "L", "I", "I;16", "I;16B", "RGB", "RGBA")


def from_npy(path: Path, mpp: float, types: Mapping[int, Kind]) -> TrueCells:
    """Read a map of numbered instances, bare or as ``{inst_map, type_map}``, as HoVer-Net's data sets have it.

    Parameters
    ----------
    path
        The file; code in it is not run.
    mpp
        Micrometres per pixel.
    types
        What the numbers of the type map mean; a number that is not here is excluded. When empty, the cells measure
        detection only: the numbers have no agreed meaning.

    Raises
    ------
    TruthError
        If it is no such map.
    """
    labels, type_map = arrays_of(path)
    return _from_labels(labels, type_map, path, mpp, types)


def arrays_of(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Read a ``.npy`` of numbered instances, (H, W), and of their types if it has them; its code is not run.

    Raises
    ------
    TruthError
        If it is no such map.
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
    """Read a TIFF or PNG: in grey a map of numbered instances, in colour a mask of classes.

    In a mask of classes positive nuclei are red, negative ones blue, and green lines keep those apart that touch;
    each spot is a cell, unless it is smaller than 1.25 µm². The cells of a grey map measure detection only.

    Raises
    ------
    TruthError
        If it cannot be read or is neither.
    """
    pixels = pixels_of(path)
    if pixels.ndim == 2:
        return _from_labels(pixels, None, path, mpp, {})
    return _from_colours(pixels[..., :3], path, mpp)


def pixels_of(path: Path) -> npt.NDArray[Any]:
    """Read a TIFF or PNG as it is: (H, W) of numbers, or (H, W, 3 or 4) of colours in 0..255.

    Raises
    ------
    TruthError
        If it cannot be read or is neither.
    """
    try:
        if path.suffix.casefold() in {".tif", ".tiff"}:
            pixels = np.squeeze(tifffile.imread(path))
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


def _from_labels(
    labels: npt.NDArray[Any], type_map: npt.NDArray[Any] | None, path: Path, mpp: float, types: Mapping[int, Kind]
) -> TrueCells:
    y_px, x_px, which, areas = instances(labels, path)
    x_um, y_um = ((np.bincount(which, at) / areas + 0.5) * mpp for at in (x_px, y_px))
    kinds = kinds_of(which, len(areas), None if type_map is None else type_map[y_px, x_px], types)
    return TrueCells.of(np.column_stack([x_um, y_um]), kinds)


def instances(labels: npt.NDArray[Any], path: Path) -> tuple[Ints, Ints, Ints, Ints]:
    """Find the pixels of numbered instances.

    Parameters
    ----------
    labels
        (H, W) numbers, 0 where no nucleus is.
    path
        Where they are from, for the error text.

    Returns
    -------
    tuple
        Of each pixel of a nucleus its row, its column and which nucleus it is of, in the order of their numbers; and
        of each nucleus its number of pixels.

    Raises
    ------
    TruthError
        If that is no map of numbers, or all nuclei have one number.
    """
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or not np.issubdtype(labels.dtype, np.number):
        raise TruthError(f"{path} holds no map of numbers; wanted one (height, width), 0 where no nucleus is")
    y_px, x_px = np.nonzero(labels)
    numbers, which, areas = np.unique(labels[y_px, x_px], return_inverse=True, return_counts=True)
    if len(numbers) == 1 and cv2.connectedComponents(np.not_equal(labels, 0).astype(np.uint8))[0] > 2:
        raise TruthError(f"{path} has one number for all nuclei; wanted a number each: label its components first")
    return y_px, x_px, which, areas


def kinds_of(
    which: Ints, count: int, types_there: npt.NDArray[Any] | None, types: Mapping[int, Kind]
) -> npt.NDArray[np.int8]:
    """Return the kind of each nucleus by the majority of its pixels.

    Parameters
    ----------
    which
        Of each pixel the nucleus it is of.
    count
        Of the nuclei.
    types_there
        Of each pixel the number in the type map; None without one: then all are of unknown class.
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
    """Raise a TruthError unless (H, W, 3) `pixels` are a mask of classes: dark, red, green or blue."""
    other = float(((pixels > _STRONG).sum(axis=2) > 1).mean())
    if other > _OTHER_COLOURS:
        raise TruthError(
            f"{path} is no mask of classes: {100 * other:.0f} % of it is neither dark, red, green nor blue; wanted red "
            "positive and blue negative nuclei with green outlines"
        )


def _from_colours(pixels: npt.NDArray[np.uint8], path: Path, mpp: float) -> TrueCells:
    check_colours(pixels, path)
    strong = pixels > _STRONG
    centres, kinds = [], []
    strongest = pixels.max(axis=2)
    for kind, channel in ((Kind.POSITIVE, 0), (Kind.NEGATIVE, 2)):
        own = strong[..., channel] & (pixels[..., channel] == strongest) & ~strong[..., 1]
        _, _, numbers, middles = cv2.connectedComponentsWithStats(own.astype(np.uint8), connectivity=8)
        nuclei = numbers[:, cv2.CC_STAT_AREA] * mpp**2 >= _SPECK_UM2
        nuclei[0] = False  # the background
        centres.append((middles[nuclei] + 0.5) * mpp)
        kinds += [kind] * int(nuclei.sum())
    return TrueCells.of(np.concatenate(centres), kinds)


def _plain_objects(file: BinaryIO) -> Any:
    """Return the one object of a ``.npy`` of objects."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an array that numpy wrote")
    np.lib.format.read_array_header_1_0(file)
    found = RestrictedUnpickler(file, _ALLOWED).load()
    return found.item() if isinstance(found, np.ndarray) and found.ndim == 0 else found
