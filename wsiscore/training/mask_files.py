"""Files of outlined nuclei: label maps at one resolution, and which files of a folder they are.

HoVer-Net JSON has ``nuc``, a ``contour`` for each nucleus, and ``mag``, the magnification of its coordinates (Graham et
al. 2019). Neither it nor GeoJSON nor ImageScope XML has the size of the picture that was outlined.
"""

from __future__ import annotations

import glob
import io
import json
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely
import tifffile
from PIL import Image

from wsiscore.errors import RoiError
from wsiscore.roi.annotations import read_rois

__all__ = ["MaskFiles", "find_masks", "read_outlines"]

_OUTLINES = (".json", ".geojson", ".xml")
_LABELS = (".npy", ".tif", ".tiff", ".png")
_PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
_UM_TIMES_MAGNIFICATION = 10.0  # µm/px times magnification: 40x is 0.25 µm/px
_ARRAY_MAKERS = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
_BROKEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    AttributeError,
    pickle.UnpicklingError,
    Image.DecompressionBombError,
)

CellMap = npt.NDArray[np.int32]
Contours = list[npt.NDArray[np.float64]]

_log = logging.getLogger("wsiscore")


@dataclass(frozen=True, slots=True)
class MaskFiles:
    """Files of outlined nuclei, read at one resolution.

    Parameters
    ----------
    files
        As for `read_outlines`.
    mpp
        Resolution of the label maps returned, µm/px.
    file_mpp
        Resolution of files that do not say theirs, µm/px; by default `mpp`.
    size_px
        (width, height) of the outlined pictures, where neither the file nor a picture beside it has it.
    """

    files: tuple[Path, ...]
    mpp: float
    file_mpp: float | None = None
    size_px: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def read(self, number: int) -> CellMap:
        """Return the label map of one file, (H, W), 0 on the background, nuclei 1 to n."""
        labels, mpp = read_outlines(self.files[number], self.size_px)
        scale = (mpp or self.file_mpp or self.mpp) / self.mpp
        if scale != 1:
            size = max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale))
            labels = _resized(labels, size)
        numbers = np.unique(np.append(labels, 0), return_inverse=True)[1][:-1]
        return numbers.reshape(labels.shape).astype(np.int32)

    def describe(self) -> dict[str, Any]:
        """Return what decides the label maps, JSON-ready."""
        size = list(self.size_px) if self.size_px else None
        return {"files": [str(path) for path in self.files], "file_mpp": self.file_mpp, "size_px": size}


def find_masks(
    folder: Path,
    mpp: float,
    least_px: int,
    *,
    file_mpp: float | None = None,
    size_px: tuple[int, int] | None = None,
) -> MaskFiles:
    """Find the files of outlined nuclei in a folder, read each once, and leave out those without a nucleus.

    Parameters
    ----------
    folder
        Searched with its sub-folders. A picture with the stem of an outline file, beside it or in a folder beside its
        folder, is the picture that was outlined.
    mpp, file_mpp, size_px
        As for `MaskFiles`.
    least_px
        Side of a training crop: the least height and width of a label map.

    Raises
    ------
    RoiError
        If a file cannot be read, is too small, or none has a nucleus.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _OUTLINES + _LABELS)
    pictures = {picture for path in files if path.suffix.lower() in _OUTLINES for picture in _pictures_of(path)}
    found = MaskFiles(tuple(path for path in files if path not in pictures), mpp, file_mpp, size_px)
    if not found.files:
        raise RoiError(f"{folder} holds no file of outlined nuclei ({', '.join((*_OUTLINES, *_LABELS))})")
    kept: list[Path] = []
    empty: list[Path] = []
    for number, path in enumerate(found.files):
        labels = found.read(number)
        if min(labels.shape) < least_px:
            size = f"{labels.shape[1]} × {labels.shape[0]} px at {mpp:g} µm/px"
            raise RoiError(f"{path} is {size}; wanted at least {least_px} px a side; leave it out or lower --crop")
        (kept if labels.any() else empty).append(path)
    if not kept:
        raise RoiError(f"{folder}: no nucleus is outlined in any of {len(empty)} files, such as {empty[0].name}")
    if empty:
        _log.warning("%s has no nucleus; %d such files are left out", empty[0], len(empty))
    return MaskFiles(tuple(kept), mpp, file_mpp, size_px)


def read_outlines(path: Path, size_px: tuple[int, int] | None = None) -> tuple[CellMap, float | None]:
    """Read outlined nuclei as a label map.

    Parameters
    ----------
    path
        HoVer-Net JSON; an instance label map as ``.npy`` (an array, or a dict with ``inst_map``), TIFF or PNG; or
        outlines as GeoJSON or ImageScope XML in pixels.
    size_px
        (width, height) of the outlined picture, for outlines without a picture of the same stem.

    Returns
    -------
    labels
        (H, W), 0 on the background; all 0 where there is no nucleus.
    mpp
        Resolution, µm/px, from ``mag`` of HoVer-Net JSON; None where the file does not say.

    Raises
    ------
    RoiError
        If the file is none of these, outlines lie beyond the picture, or its size is not known.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return _label_map(_load_npy(path), path), None
        if suffix in (".tif", ".tiff"):
            return _label_map(tifffile.imread(path), path), None
        if suffix == ".png":
            return _label_map(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), path), None
        contours, mpp = _contours(path)
        width, height = _size_of(path, size_px)
    except RoiError:
        raise
    except _BROKEN as error:
        wanted = "HoVer-Net JSON, a label map or outlines"
        raise RoiError(f"{path} holds no nuclei that can be read ({error}); wanted {wanted}") from error
    return _filled(contours, width, height, path), mpp


def _filled(contours: Contours, width: int, height: int, path: Path) -> CellMap:
    """Return the label map of outlines."""
    labels = np.zeros((height, width), np.int32)
    for number, contour in enumerate(contours, start=1):
        right, bottom = contour.max(axis=0)
        if right > width + 1 or bottom > height + 1:
            beyond = f"outlines up to ({right:.0f}, {bottom:.0f})"
            raise RoiError(
                f"{path} has {beyond} px, beyond its picture of {width} × {height} px; are they of one scale?"
            )
        cv2.fillPoly(labels, [np.round(contour).astype(np.int32)], number)
    return labels


def _contours(path: Path) -> tuple[Contours, float | None]:
    """Return the outlines in a file, each (n, 2) of x, y in pixels, and its resolution."""
    if path.suffix.lower() == ".json":
        held = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(held, dict) and "nuc" in held:
            contours = [np.asarray(nucleus["contour"], np.float64).reshape(-1, 2) for nucleus in held["nuc"].values()]
            return [contour for contour in contours if len(contour)], _mpp(held.get("mag"), path)
    # At 1 µm/px the outlines stay in pixels.
    parts = [part for roi in read_rois(path, mpp=1.0) for part in shapely.get_parts(roi.outline_um)]
    return [shapely.get_coordinates(part.exterior) for part in parts], None


def _mpp(magnification: Any, path: Path) -> float | None:
    """Return µm/px of a magnification; None without one."""
    if magnification is None:
        return None
    if not isinstance(magnification, int | float) or not 1 <= magnification <= 100:
        raise RoiError(f"{path} has mag {magnification!r}; wanted a magnification such as 20 or 40, or null")
    return _UM_TIMES_MAGNIFICATION / magnification


def _size_of(path: Path, size_px: tuple[int, int] | None) -> tuple[int, int]:
    """Return (width, height) of the picture that was outlined."""
    for picture in _pictures_of(path):
        with Image.open(picture) as image:
            return image.size
    if size_px is None:
        raise RoiError(
            f"{path} does not say how large its picture is; put the picture beside it with the stem {path.stem!r}, "
            "or give --mask-size"
        )
    return size_px


def _pictures_of(path: Path) -> Sequence[Path]:
    """Return the pictures with the stem of an outline file: those beside it, else those in folders beside its own."""
    beside = [path.with_suffix(suffix) for suffix in _PICTURES]
    found = [picture for picture in beside if picture.is_file()]
    if found:
        return found
    names = {picture.name for picture in beside}
    return sorted(file for file in path.parent.parent.glob(f"*/{glob.escape(path.stem)}.*") if file.name in names)


def _resized(labels: CellMap, size: tuple[int, int]) -> CellMap:
    """Return a label map at another size, (width, height), each pixel that of the nearest centre."""
    resized = cv2.resize(labels.astype(np.float64), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.int32)


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
        raise RoiError(f"{path} holds {what}; wanted a label map (height, width) of integers, 0 on the background")
    return labels.astype(np.int32)
