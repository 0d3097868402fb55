"""Whether a virtual stain stains what the real one does: nuclei, where DAB is and how much, and its class."""

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
"""Of saturation, 0.1 to 0.5 in steps of 0.02: those of TDKstain's analysis."""
CUTS_OD = (0.2, 0.4, 0.6)
"""Optical densities of DAB from which a pixel is weak, moderate or strong: QuPath's defaults."""
INTENSITIES = ("0", "1+", "2+", "3+")
"""Names of the intensity classes, in order."""

_LEAST_SHARE = 0.1  # of the stained pixels that a class needs, as HER2's guideline has it of the tumour cells
_STAINED_OD = 0.3  # sum of the channels: below this there is hardly tissue
_ROWS = 256  # of a picture taken apart at a time

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
        A model that finds cells.

    Returns
    -------
    tuple
        Their number, whatever the class, and the area in mm².

    Raises
    ------
    SlideError
        If it cannot be read, or nothing says its resolution.
    """
    with Slide(path, mpp) as slide, tempfile.TemporaryDirectory() as folder:
        field = Roi("field", shapely.box(0, 0, slide.width_px * slide.mpp, slide.height_px * slide.mpp))
        mosaic = infer(slide, [field], finder, Path(folder) / "mosaic.ome.zarr")
        return len(find_cells(mosaic)), field.area_mm2


def saturation(rgb: Pixels) -> Map:
    """Return the saturation of the DAB channel, by which TDKstain tells stained membranes.

    Colour deconvolution into hematoxylin, eosin and DAB (Ruifrok and Johnston 2001, scikit-image's), the DAB alone
    turned back into colours, and of these the saturation of HSV, 1 − least / greatest channel (Peng et al., TDKstain,
    section 2).

    Parameters
    ----------
    rgb
        (H, W, 3) in 0..255.

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
    """Compare where DAB is at increasing thresholds.

    Parameters
    ----------
    found, true
        (H, W, 3) in 0..255, of one size.
    thresholds
        Of `saturation`.

    Returns
    -------
    (2, thresholds): the share of the pixels in which the masks differ, and the share that the mask of `found` has
    more than that of `true`. TDKstain's paper plots one such error and does not say which.
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
    """Return the intensity class of a field by its DAB alone: an index into `INTENSITIES`.

    The highest class whose cut more than 10 % of the stained pixels reach. Like HER2's classes, but of pixels and not
    of membranes of tumour cells, and measured on no patient: it says whether two pictures are stained alike, and is no
    HER2 score.

    Parameters
    ----------
    rgb
        (H, W, 3) in 0..255.
    cuts_od
        Optical densities of DAB, with the published stain vectors, from which a pixel is of class 1+, 2+ and 3+.
    """
    stained = optical_density(rgb).sum(axis=-1) > _STAINED_OD
    if not stained.any():
        return 0
    dab = Stain.default().separate(rgb)[1][stained]
    return max((number for number, cut in enumerate(cuts_od, 1) if (dab >= cut).mean() > _LEAST_SHARE), default=0)
