"""The ground between the nuclei: how much DAB lies where no cell is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.stain import Stain

__all__ = ["ground_od"]

_GROUND_MAP = 0.1  # maps of cells are below this between them
_GROUND_OD = 0.03  # hematoxylin and DAB together are above this on tissue, smoothed by this
_GROUND_SIGMA_UM = 1.0
_GROUND_PX = 500  # fewer pixels show no ground


def ground_od(
    generator: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    channels: Sequence[str],
    mpp: float,
    stain: Stain,
    sample: npt.NDArray[np.uint8],
    weights: npt.NDArray[np.float32],
) -> float:
    """Return the median optical density of DAB between the nuclei of a sample; 0 if it shows too little of that.

    Parameters
    ----------
    generator
        Turns (1, 3, H, W) in 0..255 into (1, C, H, W) maps in [0, 1].
    channels
        Names of the maps.
    mpp
        Micrometres per pixel of the sample.
    stain
        Of the slide.
    sample
        (N, H, W, 3) in 0..255.
    weights
        (N, 1, H, W): 0 where a pixel does not count.
    """
    of_cells = [channels.index(name) for name in ("center", "positive", "negative") if name in channels]
    found = []
    for rgb, counted in zip(sample, weights, strict=True):
        maps = generator(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None]))[0][of_cells]
        both = stain.separate(rgb)
        tissue = cv2.GaussianBlur(both.sum(axis=0), (0, 0), _GROUND_SIGMA_UM / mpp) > _GROUND_OD
        found.append(both[1][(maps.max(axis=0) < _GROUND_MAP) & tissue & (counted[0] > 0)])
    ground = np.concatenate(found) if found else np.empty(0)
    return round(float(np.median(ground)), 4) if len(ground) >= _GROUND_PX else 0.0
