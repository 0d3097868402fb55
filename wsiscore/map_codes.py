"""Maps of cells as 8-bit codes: what a mosaic stores of their values.

A map in [0, 1] is code / 255. The optical density of DAB has finer steps where limits lie: 0.1 · (41^(code / 255) - 1),
which is 0 to 4, in steps of 1.5 % of the density plus 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["DAB_CHANNEL", "decode", "encode"]

DAB_CHANNEL = "dab_od"
"""Map that every mosaic of cells carries besides the generator's: DAB optical density around each pixel."""

_OD_SCALE = 0.1
_MOST_OD = 4.0
_STEPS_PER_OD = 8192  # of the table from densities to codes

Codes = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]


def encode(values: Plane, channel: str) -> Codes:
    """Return the codes of one map.

    Parameters
    ----------
    values
        (H, W) in [0, 1], or optical densities from 0 up.
    channel
        Name of the map.
    """
    if channel != DAB_CHANNEL:
        return np.asarray(cv2.convertScaleAbs(values, alpha=255), dtype=np.uint8)  # rounds
    steps = np.minimum(values * np.float32(_STEPS_PER_OD) + np.float32(0.5), _MOST_OD * _STEPS_PER_OD)
    return np.asarray(np.take(_codes_of_od(), steps.astype(np.uint16), mode="clip"), dtype=np.uint8)


def decode(codes: Codes, channels: Sequence[str]) -> Plane:
    """Return the values that codes stand for.

    Parameters
    ----------
    codes
        (C, ...).
    channels
        Names of the C maps.

    Returns
    -------
    (C, ...) float32.
    """
    out = np.empty(codes.shape, np.float32)
    for name, own, target in zip(channels, codes, out, strict=True):
        np.take(_values(name == DAB_CHANNEL), own, out=target, mode="clip")
    return out


@cache
def _values(of_od: bool) -> Plane:
    """Return the value of each code."""
    codes = np.arange(256) / 255
    values = _OD_SCALE * np.expm1(codes * np.log1p(_MOST_OD / _OD_SCALE)) if of_od else codes
    return values.astype(np.float32)


@cache
def _codes_of_od() -> Codes:
    """Return the code of each step of optical density."""
    od = np.arange(int(_MOST_OD * _STEPS_PER_OD) + 1) / _STEPS_PER_OD
    codes = 255 * np.log1p(od / _OD_SCALE) / np.log1p(_MOST_OD / _OD_SCALE)
    return np.asarray(np.rint(codes), dtype=np.uint8)
