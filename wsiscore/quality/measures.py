"""Measures of the quality of one tile, from the pixels that are read for the model anyway.

All are taken at 0.5 µm/px, so that they do not depend on the model. Optical density is linear in the amount of stain
(Beer-Lambert): measures of strength scale with the stain, and measures of focus, size and hue do not change with it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.stain import Stain, ink_hues, optical_density

__all__ = ["MEASURES", "MEASURE_MPP", "measure"]

MEASURES: Final = ("tissue", "focus", "size_um", "hematoxylin", "dab", "stain", "background", "pink", "pen", "fold")
"""Names of the measures, in the order of the array ``quality`` of a mosaic.

``tissue``, ``pink``, ``pen`` and ``fold`` are fractions of the tile's area. ``focus`` is the log10 of the energy of
detail of 1 µm over that of 2 to 4 µm. ``size_um`` is the mean chord of what is stained, in µm. ``hematoxylin``, ``dab``
and ``stain`` (both together) are the optical density of the most strongly stained nuclei, ``background`` is the median
of both. Hematoxylin and DAB are separated by their published vectors: those of a slide that is too pale are not known.
"""
MEASURE_MPP: Final = 0.5
"""µm/px at which the measures are taken; coarser tiles are measured as they are."""

_LEAST_PX = 32  # side of the smallest piece of a tile that is measured
_TISSUE_UM, _TISSUE_OD = 25.0, 0.08  # the mean density, summed over the channels, in squares of this side
_NUCLEUS_UM = 2.5  # densities are averaged in squares of this side: less than a nucleus, more than its texture
_STRONGEST = 0.995  # quantile: two nuclei in a tile of 100 µm
_UNIT_SUM = 1.62  # sum over the channels of a unit of either stain: 1.64 of hematoxylin, 1.61 of DAB
_STAINED_OD = 0.3  # sum over the channels: paler pixels have no sure hue
_PINK = (
    0.2  # excess of green density over the mean of red and blue, by the norm; 0.23 in pure hematoxylin, 0.9 in eosin
)
_COARSE_UM = 2.0  # pixels for marks of ink and folds
_INK_OD = 0.45  # least density of ink in its strongest channel
_VIVID_OD, _VIVID = 0.8, 0.1  # ink of any hue: a channel this dense, and another with less than this fraction of it
_FOLD_OD = 0.45  # least mean density of a fold
_SMOOTH = 0.15  # standard deviation over mean, in 3 x 3 coarse pixels: ink has less, nuclei have more
_PEN_PX, _FOLD_PX = 1, 8  # radius of the smallest disc that a mark of ink, or a fold, holds, in coarse pixels

Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def measure(rgb: npt.NDArray[np.uint8], stain: Stain, mpp: float) -> npt.NDArray[np.float32]:
    """Measure one tile.

    Parameters
    ----------
    rgb
        (H, W, 3), 0..255.
    stain
        Of the slide; only the level of its background is used.
    mpp
        Micrometres per pixel of `rgb`.

    Returns
    -------
    (len(MEASURES),), nan for all but ``tissue`` where the tile is smaller than 16 µm.
    """
    if mpp < 0.99 * MEASURE_MPP:
        size = (max(1, round(rgb.shape[1] * mpp / MEASURE_MPP)), max(1, round(rgb.shape[0] * mpp / MEASURE_MPP)))
        rgb, mpp = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), MEASURE_MPP
    od = optical_density(rgb, stain.white)
    total = _sum(od)
    values = dict.fromkeys(MEASURES, np.nan)
    values["tissue"] = float((_mean(total, _TISSUE_UM / mpp) > _TISSUE_OD).mean())
    if min(rgb.shape[:2]) >= _LEAST_PX:
        amounts, both = _published(stain.white).amounts(od), total / _UNIT_SUM
        smooth = [_mean(plane, _NUCLEUS_UM / mpp) for plane in (amounts[..., 0], amounts[..., 1], both)]
        values["hematoxylin"], values["dab"], values["stain"] = (_quantile(plane, _STRONGEST) for plane in smooth)
        values["background"] = _quantile(smooth[2], 0.5)
        values["focus"] = _focus(both)
        values["size_um"] = _chord(smooth[2], values["stain"]) * mpp
        values["pink"] = _pink(od, total)
        values["pen"], values["fold"] = _marks(od, mpp)
    return np.array([values[name] for name in MEASURES], np.float32)


@lru_cache(maxsize=16)
def _published(white: tuple[float, float, float]) -> Stain:
    return Stain.default(white)


def _focus(plane: Plane) -> float:
    """Return log10 of the energy in the finest octave over that in the next two (Laplacian pyramid)."""
    energies = []
    for _ in range(3):
        low = np.asarray(cv2.pyrDown(plane), dtype=np.float32)
        detail = plane - cv2.pyrUp(low, dstsize=(plane.shape[1], plane.shape[0]))
        energies.append(float(cv2.norm(detail, cv2.NORM_L2SQR)) / detail.size)
        plane = low
    if energies[1] + energies[2] < 1e-8:  # nothing is there
        return float("nan")
    return float(np.log10((energies[0] + 1e-12) / (energies[1] + energies[2])))


def _chord(plane: Plane, strongest: float) -> float:
    """Return the mean length of the runs of stained pixels along rows and columns; stained as Otsu (1979) divides."""
    if strongest < 1e-3:
        return float("nan")
    scaled = np.clip(plane * (200 / strongest), 0, 255).astype(np.uint8)
    _, mask = cv2.threshold(scaled, 0, 1, cv2.THRESH_OTSU)
    starts = np.count_nonzero(mask[1:] > mask[:-1]) + np.count_nonzero(mask[:, 1:] > mask[:, :-1])
    starts += np.count_nonzero(mask[0]) + np.count_nonzero(mask[:, 0])
    return 2 * np.count_nonzero(mask) / starts if starts else float("nan")


def _pink(od: Plane, total: Plane) -> float:
    """Return the fraction of pixels stained pink to violet."""
    od, total = np.ascontiguousarray(od[::2, ::2]), total[::2, ::2]
    excess = 1.5 * od[..., 1] - 0.5 * total  # green less the mean of red and blue
    return float(((excess > 0) & (excess * excess > _PINK**2 * _sum(od * od)) & (total > _STAINED_OD)).mean())


def _marks(od: Plane, mpp: float) -> tuple[float, float]:
    """Return the fractions of the area under ink, and under folds.

    Ink has its hues and no texture; a fold is dark without a gap between the nuclei. Both are as wide as such marks.
    """
    size = (max(1, round(od.shape[1] * mpp / _COARSE_UM)), max(1, round(od.shape[0] * mpp / _COARSE_UM)))
    coarse = np.asarray(cv2.resize(od, size, interpolation=cv2.INTER_AREA), dtype=np.float32)
    grey = _sum(coarse) / 3
    mean = cv2.blur(grey, (3, 3))
    smooth = cv2.blur(grey * grey, (3, 3)) < (1 + _SMOOTH**2) * mean * mean
    red, green, blue = cv2.split(coarse)
    weakest, strongest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    vivid = (strongest > _VIVID_OD) & (weakest < _VIVID * strongest)
    ink = smooth & (vivid | ink_hues(coarse, _INK_OD))
    pen = _opened(ink, _PEN_PX)
    return float(pen.mean()), float(_opened((mean > _FOLD_OD) & ~pen, _FOLD_PX).mean())


def _opened(mask: Mask, radius_px: int) -> Mask:
    if not mask.any():
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0)


def _sum(planes: Plane) -> Plane:
    return np.asarray(cv2.transform(planes, np.ones((1, planes.shape[2]), np.float32)), dtype=np.float32)


def _mean(plane: Plane, side_px: float) -> Plane:
    side = 2 * round((side_px - 1) / 2) + 1
    blurred: Any = cv2.blur(plane, (side, side))
    return np.asarray(blurred, dtype=np.float32)


def _quantile(plane: Plane, quantile: float) -> float:
    """Return a quantile of every second pixel of every second row."""
    values = plane[::2, ::2].ravel()
    place = int(quantile * (values.size - 1))
    return float(np.partition(values, place)[place])
