"""Regions in which cells are compared: annotation files by stem, and the cells inside their outlines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection.truth import required_mpp
from wsiscore.evaluation.tables import shortened
from wsiscore.files import stem
from wsiscore.regions import PointIndex
from wsiscore.roi.annotations import read_rois

__all__ = ["find_regions", "inside_regions"]

_ENDINGS = (".geojson", ".geojson.gz", ".xml", ".annotations")


def find_regions(path: Path, stems: Sequence[str]) -> dict[str, Path]:
    """Find the annotation files of images.

    Parameters
    ----------
    path
        One file, for one image; or a folder with a file for each image, named by its stem.
    stems
        Of the images.

    Returns
    -------
    dict
        Annotation files by stem.

    Raises
    ------
    TruthError
        If `path` does not exist, or has no annotation file or two for an image.
    """
    if not path.exists():
        raise TruthError(f"{path} does not exist; --regions wants an annotation file, or a folder of them")
    if path.is_file():
        return {stems[0] if len(stems) == 1 else stem(path): path}
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.name.casefold().endswith(_ENDINGS):
            name = stem(file)
            if name in found and name in stems:
                raise TruthError(f"{found[name]} and {file} are both regions of {name}; keep one of them")
            found[name] = file
    if not set(found) & set(stems):
        raise TruthError(
            f"{path} has regions for none of {shortened(stems)}; wanted files {' '.join(_ENDINGS)}, named by the stem"
        )
    return found


def inside_regions(path: Path, xy_um: npt.NDArray[np.float64], mpp: float | None) -> npt.NDArray[np.bool_]:
    """Return which points lie inside the outlines of an annotation file.

    Parameters
    ----------
    path
        A file that `wsiscore.roi.annotations.read_rois` reads.
    xy_um
        (N, 2): x and y in micrometres from the image's top left.
    mpp
        Micrometres per pixel of the outlines.

    Raises
    ------
    RoiError
        If the file cannot be read.
    TruthError
        If `mpp` is None.
    """
    within = np.zeros(len(xy_um), np.bool_)
    points = PointIndex(xy_um[:, 0], xy_um[:, 1])
    for roi in read_rois(path, mpp=required_mpp(mpp, path)):
        within[points.inside(roi.outline_um)] = True
    return within
