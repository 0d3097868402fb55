"""Target maps: coloured masks, centre maps and class masks from nuclei, outlined or rendered.

Nuclei are *cells*: a signed label map, (H, W) integers, 0 on the background, +n on positive nucleus n and −n on
negative nucleus n; numbers from `OTHERS` on are nuclei that are not of the tumour. All maps are uint8, 0..255 for
[-1, 1] of the network (Molnar et al., IHCScoreGAN, section 2.1.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsiscore.models.contract import TargetRules

__all__ = ["OTHERS", "center_map", "class_masks", "colour_mask", "k_maps", "random_classes"]

OTHERS = 10_000
"""First number of the nuclei of stroma and of lymphocytes."""

_RADIUS_PX = 28.28  # where the centre map of the paper ends
_STEEPNESS = 0.5  # of the normalised centre map: exp(-2) = 0.14 at the edge of an ellipse
_MIN_VARIANCE = 0.3  # px²: a nucleus of a few pixels still has a peak

CellMap = npt.NDArray[np.int32]
Picture = npt.NDArray[np.uint8]


def random_classes(labels: npt.NDArray[np.integer[Any]], rng: np.random.Generator) -> CellMap:
    """Give each nucleus a random class: positive with a probability that is drawn from U[0, 1] for the whole map.

    Parameters
    ----------
    labels
        (H, W), 0 on the background, any other number for a nucleus; signs are ignored.
    rng
        Random generator.

    Returns
    -------
    Cells, (H, W).
    """
    labels = np.abs(labels).astype(np.int32)
    fraction = rng.random()
    sign = np.where(rng.random(int(labels.max(initial=0)) + 1) < fraction, 1, -1).astype(np.int32)
    cells: CellMap = sign[labels] * labels
    return cells


def class_masks(cells: npt.NDArray[np.integer[Any]]) -> Picture:
    """Return (2, H, W): 255 on positive nuclei, and 255 on negative ones."""
    return np.stack([cells > 0, cells < 0]).astype(np.uint8) * np.uint8(255)


def colour_mask(cells: npt.NDArray[np.integer[Any]], rng: np.random.Generator, variation: bool = True) -> Picture:
    """Return a coloured mask: positive nuclei red, negative ones green.

    Parameters
    ----------
    cells
        (H, W).
    rng
        Random generator.
    variation
        Multiply each nucleus by a brightness from U[0, 1], as in the paper; False is its ablation (table 5).

    Returns
    -------
    (3, H, W) RGB in 0..255 on black.
    """
    number = np.abs(cells)
    brightness = rng.random(int(number.max(initial=0)) + 1) if variation else np.ones(int(number.max(initial=0)) + 1)
    filled = (brightness * 255 + 0.5).astype(np.uint8)[number]
    return np.stack([filled * (cells > 0), filled * (cells < 0), np.zeros_like(filled)])


def center_map(cells: npt.NDArray[np.integer[Any]], kind: str = "peak") -> Picture:
    """Return how near each pixel of a nucleus is to its centroid.

    Parameters
    ----------
    cells
        (H, W).
    kind
        ``peak``: 255 at the centroid, falling to 0.14 of it at the edge as a Gaussian of the shape of the nucleus, so
        that nuclei of all sizes have one clear maximum. ``distance``: that of the paper, ``1 - distance / 28.28 px``,
        which is flat on small nuclei.

    Returns
    -------
    (H, W) in 0..255, 0 on the background.
    """
    near = np.zeros(cells.shape, np.float64)
    y, x = np.nonzero(cells)
    of = np.abs(cells[y, x])
    n = np.maximum(np.bincount(of), 1)
    dy, dx = (at - (np.bincount(of, at) / n)[of] for at in (y, x))
    if kind == "distance":
        near[y, x] = np.clip(1 - np.hypot(dx, dy) / _RADIUS_PX, 0, 1)
    else:
        yy, xx, xy = (np.bincount(of, weight) / n for weight in (dy * dy, dx * dx, dx * dy))
        yy, xx = yy + _MIN_VARIANCE, xx + _MIN_VARIANCE
        area = np.maximum(yy * xx - xy * xy, _MIN_VARIANCE**2)
        squared = (xx[of] * dy * dy + yy[of] * dx * dx - 2 * xy[of] * dx * dy) / area[of]
        near[y, x] = np.exp(-_STEEPNESS * squared)
    return (near * 255 + 0.5).astype(np.uint8)


def k_maps(cells: npt.NDArray[np.integer[Any]], rules: TargetRules) -> Picture:
    """Return the target of the K branch, (3 or 4, H, W) in 0..255: centre map, positive, negative and other mask."""
    center = center_map(cells, rules.center)
    others = np.abs(cells) >= OTHERS
    center[others] = (center[others] * rules.others + 0.5).astype(np.uint8)
    maps = [center[None], class_masks(cells)]
    if rules.maps == 4:
        maps.append(others[None].astype(np.uint8) * np.uint8(255))
    return np.concatenate(maps)
