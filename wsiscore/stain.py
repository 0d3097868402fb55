"""How much of each stain a pixel holds: optical density, colour deconvolution, the stains of one slide.

Light that passes two stains is dimmed by each in turn, so their optical densities add (Beer–Lambert). A stain
is therefore a direction in the space of the three channels' densities, and its amount the length along it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "MOST_PINK",
    "Stain",
    "background",
    "dab_od_map",
    "disc_mean",
    "ink_hues",
    "optical_density",
    "pink_fraction",
]

Vector = tuple[float, float, float]

# Ruifrok & Johnston, Anal Quant Cytol Histol 23:291 (2001).
_HEMATOXYLIN: Vector = (0.650, 0.704, 0.286)
_DAB: Vector = (0.268, 0.570, 0.776)
_WHITE: Vector = (255.0, 255.0, 255.0)

MOST_PINK = 0.05
"""Largest fraction of pink pixels on slides of hematoxylin and DAB: 30 such fields had 0 to 0.010; nine fields of H&E
had 0.001 to 0.67, seven of them above this."""

_PINK_LEAST_OD = 0.3  # sum of the channels: paler pixels have no sure hue
_MAX_SAMPLE_PX = 400_000
_WHITE_PERCENTILE = 99.0
_LEAST_WHITE = 120.0  # darker than this is no background
_WHITE_BALANCE = 0.8  # a background channel is at least this fraction of the brightest one
_LEAST_OD = 0.25  # norm below which a pixel's hue is mostly noise
_LEAST_LEVEL = 8  # grey levels: below, the camera has gone dark and the hue is lost
_LEAST_FRACTION = 0.005  # of the stained pixels must show a stain before its vector is believed
_PURE_PERCENTILES = (
    50.0,
    97.0,
)  # of a stain's pixels, ordered by hue: from typical to purest, without outliers
_LEAST_SINE = 1e-3  # of the angle between the two stains
_LARGEST_TURN_DEG = 20.0  # an estimate further than this from the published vector is not that stain


def optical_density(rgb: npt.NDArray[np.uint8], white: tuple[float, float, float] = _WHITE) -> npt.NDArray[np.float32]:
    """Return the optical density of each channel, −log10(value / white).

    Parameters
    ----------
    rgb
        (..., 3), 0..255.
    white
        Level of each channel where the light meets only glass, in grey levels.

    Returns
    -------
    (..., 3), 0 (as bright as glass, or brighter) to about 2.4 (black).
    """
    if not rgb.size:
        return np.zeros(rgb.shape, np.float32)
    levels = np.maximum(np.arange(256, dtype=np.float64), 1.0)[:, None] / np.asarray(white)
    table = np.maximum(-np.log10(levels), 0).astype(np.float32)
    flat = np.ascontiguousarray(rgb).reshape(1, -1, 3)
    return np.asarray(cv2.LUT(flat, table[None]), dtype=np.float32).reshape(rgb.shape)


@dataclass(frozen=True)
class Stain:
    """The two stains of a slide and the light behind them.

    Parameters
    ----------
    hematoxylin, dab
        Unit vectors of optical density in (red, green, blue).
    white
        Background level of each channel, in grey levels.
    found
        Which of the two vectors were measured on the slide; the others are the published ones.
    """

    hematoxylin: Vector
    dab: Vector
    white: Vector = _WHITE
    found: tuple[str, ...] = ()

    @classmethod
    def default(cls, white: Vector = _WHITE) -> Self:
        """Return the published H-DAB vectors (Ruifrok and Johnston 2001)."""
        return cls(_unit(np.array(_HEMATOXYLIN)), _unit(np.array(_DAB)), white)

    @classmethod
    def estimate(cls, rgb_sample: npt.NDArray[np.uint8]) -> Self:
        """Measure the stains on pixels of one slide.

        As in Macenko et al. (ISBI 2009), a pure stain lies at the end of the range of hues. Here each stain
        is sought only on its own side of the published pair, and is used only if enough pixels show it
        and it is near enough to the published vector; else the published vector stands. So a slide with no
        DAB does not have its hematoxylin called DAB, nor the other way round.

        Parameters
        ----------
        rgb_sample
            (..., 3), 0..255: any number of pixels, from anywhere on the slide.
        """
        pixels = np.ascontiguousarray(rgb_sample).reshape(-1, 3)
        pixels = pixels[:: max(1, math.ceil(len(pixels) / _MAX_SAMPLE_PX))]
        if not len(pixels):
            return cls.default()
        published = cls.default(background(pixels))
        od = optical_density(pixels, published.white)
        norm = np.linalg.norm(od, axis=1)
        stained = (norm > _LEAST_OD) & (pixels.min(axis=1) >= _LEAST_LEVEL)
        hue = od[stained] / norm[stained, None]
        hematoxylin, dab = np.array(published.hematoxylin), np.array(published.dab)
        new_hematoxylin = _purest(hue, hematoxylin, dab)
        new_dab = _purest(hue, dab, hematoxylin)
        return cls(
            published.hematoxylin if new_hematoxylin is None else new_hematoxylin,
            published.dab if new_dab is None else new_dab,
            published.white,
            (("hematoxylin",) if new_hematoxylin else ()) + (("dab",) if new_dab else ()),
        )

    @cached_property
    def _unmix(self) -> npt.NDArray[np.float32]:
        """(2, 3): from channel densities to the two stains; what neither explains goes along their normal."""
        normal = np.cross(self.hematoxylin, self.dab)
        vectors = np.array([self.hematoxylin, self.dab, normal / np.linalg.norm(normal)])
        return np.ascontiguousarray(np.linalg.inv(vectors).T[:2], dtype=np.float32)

    def separate(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return hematoxylin and DAB, (2, H, W) in optical density from 0 up, of (H, W, 3) in 0..255."""
        return np.moveaxis(self.amounts(optical_density(rgb, self.white)), -1, 0)

    def amounts(self, od: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return hematoxylin and DAB, (H, W, 2) from 0 up, of (H, W, 3) optical density as `optical_density`."""
        return np.asarray(np.maximum(cv2.transform(od, self._unmix), 0), dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict that `from_json` reads."""
        return {
            "hematoxylin": list(self.hematoxylin),
            "dab": list(self.dab),
            "white": list(self.white),
            "found": list(self.found),
        }

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Return the stain that `to_json` described; KeyError, TypeError or ValueError if there is no such stain."""
        hematoxylin, dab, white = (
            (float(red), float(green), float(blue))
            for red, green, blue in (settings["hematoxylin"], settings["dab"], settings["white"])
        )
        stain = cls(hematoxylin, dab, white, tuple(settings["found"]))
        in_range = all(abs(part) <= 1 for part in (*hematoxylin, *dab)) and all(0 < level <= 255 for level in white)
        if not (
            in_range
            and np.allclose(np.linalg.norm([hematoxylin, dab], axis=1), 1, atol=1e-3)
            and np.linalg.norm(np.cross(hematoxylin, dab)) > _LEAST_SINE
        ):
            raise ValueError("a stain has two different unit vectors, and a white level of 0 to 255")
        return stain


def dab_od_map(rgb: npt.NDArray[np.uint8], stain: Stain, mpp: float, radius_um: float = 1.5) -> npt.NDArray[np.float32]:
    """Return the mean DAB optical density in a disc around every pixel.

    Parameters
    ----------
    rgb
        (H, W, 3), 0..255.
    stain
        The slide's stains.
    mpp
        Micrometres per pixel of `rgb`.
    radius_um
        Radius of the disc.

    Returns
    -------
    (H, W), from 0 up; within `radius_um` of the edge the picture is mirrored.
    """
    return disc_mean(stain.separate(rgb)[1], radius_um / mpp)


def pink_fraction(rgb: npt.NDArray[np.uint8], white: tuple[float, float, float] = _WHITE) -> float:
    """Return the fraction of stained pixels that are pinker than hematoxylin and DAB can be, as eosin is.

    Such a pixel absorbs more green than red and blue together. Above `MOST_PINK` a slide is hardly one of hematoxylin
    and DAB.

    Parameters
    ----------
    rgb
        (..., 3), 0..255: any pixels of the slide.
    white
        As in `optical_density`.
    """
    od = optical_density(rgb, white).reshape(-1, 3)
    stained = od[od.sum(axis=1) > _PINK_LEAST_OD]
    if not len(stained):
        return 0.0
    return float(np.mean(stained[:, 1] > stained[:, 0] + stained[:, 2]))


def ink_hues(od: npt.NDArray[np.float32], least: float) -> npt.NDArray[np.bool_]:
    """Return where the hue is that of a marker pen (blue, green, red or black) and of no stain here, (H, W).

    Parameters
    ----------
    od
        (H, W, 3) optical density.
    least
        Least density of the ink's strongest channel.
    """
    red, green, blue = np.moveaxis(od, 2, 0)
    weakest, strongest = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    blue_ink = (red > least) & (blue < 0.3 * red) & (green < 0.9 * red)
    green_ink = (red > least) & (green < 0.7 * red) & (green < 0.85 * blue)
    red_ink = (green > least) & (red < 0.25 * green) & (blue > 0.55 * green)
    black_ink = (weakest > 1.2 * least) & (weakest > 0.75 * strongest)
    return np.asarray(blue_ink | green_ink | red_ink | black_ink)


def disc_mean(values: npt.NDArray[np.float32], radius_px: float) -> npt.NDArray[np.float32]:
    """Return the mean of (H, W) `values`, from 0 up, in a soft-edged disc around every pixel, mirrored outside."""
    side = math.ceil(radius_px)
    y, x = np.ogrid[-side : side + 1, -side : side + 1]
    disc = np.clip(radius_px + 0.5 - np.hypot(y, x), 0, 1).astype(np.float32)
    mean = cv2.filter2D(np.ascontiguousarray(values), -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT)
    return np.maximum(mean, 0)  # large discs are filtered by Fourier transform, which rounds below 0


def _unit(vector: npt.NDArray[np.floating[Any]]) -> Vector:
    red, green, blue = (float(part) for part in vector / np.linalg.norm(vector))
    return red, green, blue


def background(pixels: npt.NDArray[np.uint8]) -> Vector:
    """Return the level of the glass: the bright end of each channel, leaving out white padding.

    Parameters
    ----------
    pixels
        (N, 3), 0..255, of one slide; 255 if there are none.
    """
    if not len(pixels):
        return _WHITE
    inside = pixels[(pixels < 255).any(axis=1)]
    bright = inside if len(inside) > len(pixels) / 20 else pixels
    levels = np.percentile(bright, _WHITE_PERCENTILE, axis=0)
    least = max(_LEAST_WHITE, _WHITE_BALANCE * float(levels.max()))
    red, green, blue = (float(level) for level in np.maximum(levels, least))
    return red, green, blue


def _purest(
    hue: npt.NDArray[np.float32], own: npt.NDArray[np.float64], other: npt.NDArray[np.float64]
) -> Vector | None:
    """Return the direction of one stain among unit densities (n, 3), or None if it is not seen there."""
    axis = own - other
    along = hue @ (axis / np.linalg.norm(axis)).astype(np.float32)
    middle = float((own + other) @ axis / 2 / np.linalg.norm(axis))
    near = hue @ own > math.cos(math.radians(1.25 * _LARGEST_TURN_DEG))
    mine = (along > middle) & near
    if mine.sum() < max(_LEAST_FRACTION * len(hue), 50):
        return None
    low, high = np.percentile(along[mine], _PURE_PERCENTILES)
    vector = np.array(_unit(np.median(hue[mine & (along >= low) & (along <= high)], axis=0)))
    if vector @ own < math.cos(math.radians(_LARGEST_TURN_DEG)):
        return None
    return _unit(vector)
