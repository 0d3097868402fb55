"""Comparison of a virtual with a real stain: nuclei, area and amount of DAB, intensity class."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from skimage.color import hed2rgb, rgb2hed

from wsiscore.cells.find import find_cells
from wsiscore.inference import infer
from wsiscore.models.store import Model
from wsiscore.regions import Roi
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain, optical_density

__all__ = ["CUTS_OD", "INTENSITIES", "THRESHOLDS", "count_nuclei", "dab_class", "membrane_errors", "saturation"]

THRESHOLDS: tuple[float, ...] = tuple(round(0.1 + 0.02 * step, 2) for step in range(21))
"""Thresholds of saturation, 0.1 to 0.5 in steps of 0.02, as in the analysis of TDKstain."""
CUTS_OD = (0.2, 0.4, 0.6)
"""Optical densities of DAB from which a pixel is weak, moderate or strong: QuPath's defaults."""
INTENSITIES = ("0", "1+", "2+", "3+")
"""Names of the intensity classes, in order."""

_LEAST_FRACTION = 0.1  # of the stained pixels for a class, as of the tumour cells in the HER2 guideline
_STAINED_OD = 0.3  # sum of the channels; below this a pixel is background
_ROWS = 256  # rows of a picture processed at a time

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]


def count_nuclei(path: Path, mpp: float | None, finder: Model) -> tuple[int, float]:
    """Count the nuclei of a picture, as `wsiscore score` does with its whole area as the region.

    Parameters
    ----------
    path
        A picture or a virtual stain.
    mpp
        Micrometres per pixel, where the file does not say.
    finder
        Model that detects cells.

    Returns
    -------
    tuple
        Their number, of all classes, and the area in mm².

    Raises
    ------
    SlideError
        If it cannot be read, or its resolution is unknown.
    """
    with Slide(path, mpp) as slide, tempfile.TemporaryDirectory() as folder:
        field = Roi("field", shapely.box(0, 0, slide.width_px * slide.mpp, slide.height_px * slide.mpp))
        mosaic = infer(slide, [field], finder, Path(folder) / "mosaic.ome.zarr")
        return len(find_cells(mosaic)), field.area_mm2


def saturation(rgb: Pixels) -> Map:
    """Return the saturation of the DAB channel, by which TDKstain segments stained membranes.

    The picture is separated into hematoxylin, eosin and DAB (Ruifrok and Johnston 2001, scikit-image); DAB alone is
    converted back to RGB. Its saturation in HSV is 1 − least / greatest channel (Peng et al., TDKstain, section 2).

    Parameters
    ----------
    rgb
        (H, W, 3), 0..255.

    Returns
    -------
    (H, W) in [0, 1].
    """
    parts = []
    for top in range(0, len(rgb), _ROWS):
        stains = rgb2hed(rgb[top : top + _ROWS])
        stains[..., :2] = 0
        brown = hed2rgb(stains)
        parts.append((1 - brown.min(axis=-1) / np.maximum(brown.max(axis=-1), 1e-6)).astype(np.float32))
    return np.concatenate(parts)


def membrane_errors(found: Pixels, true: Pixels, thresholds: Sequence[float] = THRESHOLDS) -> npt.NDArray[np.float64]:
    """Compare the areas of DAB at increasing thresholds.

    Parameters
    ----------
    found, true
        (H, W, 3), 0..255, of one size.
    thresholds
        Of `saturation`.

    Returns
    -------
    (2, thresholds): the fraction of the pixels where the masks differ, and the area fraction of `found` minus that of
    `true`. TDKstain's paper plots one such error without defining it.
    """
    a, b = saturation(found), saturation(true)
    masks = [(a > threshold, b > threshold) for threshold in thresholds]
    return np.array(
        [
            [float((one ^ other).mean()) for one, other in masks],
            [float(one.mean()) - float(other.mean()) for one, other in masks],
        ]
    )


def dab_class(rgb: Pixels, cuts_od: Sequence[float] = CUTS_OD) -> int:
    """Return the intensity class of a field by its DAB: an index into `INTENSITIES`.

    It is the highest class whose cut more than 10 % of the stained pixels exceed. The classes resemble those of HER2,
    but of pixels instead of the membranes of tumour cells, without clinical validation. They compare two pictures and
    are not a HER2 score.

    Parameters
    ----------
    rgb
        (H, W, 3), 0..255.
    cuts_od
        Least optical densities of DAB of classes 1+, 2+ and 3+, with the published stain vectors.
    """
    stained = optical_density(rgb).sum(axis=-1) > _STAINED_OD
    if not stained.any():
        return 0
    dab = Stain.default().separate(rgb)[1][stained]
    return max((number for number, cut in enumerate(cuts_od, 1) if (dab >= cut).mean() > _LEAST_FRACTION), default=0)
