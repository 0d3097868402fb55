"""From dyes to pixels: light absorption, and the camera of a scanner or microscope."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Appearance, Triple
from wsiscore.synthetic.ground import Plane, smooth_noise

__all__ = ["photograph"]

_INKS = ((0.1, 0.3, 0.75), (0.1, 0.5, 0.35), (0.15, 0.15, 0.18), (0.75, 0.1, 0.15))  # transmittance of pen inks


def photograph(
    rng: np.random.Generator, mpp: float, appearance: Appearance, dyes: Sequence[tuple[Plane, Triple]], residual: Plane
) -> npt.NDArray[np.uint8]:
    """Return the (H, W, 3) picture, 0..255, of light through dyes, each an amount (H, W) and a stain vector."""
    shape = residual.shape[0], residual.shape[1]
    pen = _pen(rng, shape, mpp) if rng.random() < appearance.artefacts / 3 else None
    ink = _INKS[rng.integers(len(_INKS))]
    unclear, unclear_px = None, rng.uniform(0.7, 2.0) / mpp
    if rng.random() < appearance.artefacts:
        unclear = np.clip(smooth_noise(rng, shape, 60 / mpp) - np.float32(rng.uniform(-0.5, 1)), 0, 1)
    picture = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        (amount, colour), *others = dyes
        density = amount * np.float32(colour[channel])
        for amount, colour in others:
            density += amount * np.float32(colour[channel])
        density += residual
        light = np.exp(density * np.float32(-np.log(10)))
        light = np.float32(appearance.glass[channel]) * (
            np.float32(appearance.stray) + np.float32(1 - appearance.stray) * light
        )
        if pen is not None:
            light *= 1 - pen * np.float32(1 - ink[channel])
        light = _blur(light, appearance.blur_um / mpp)
        if unclear is not None:
            light += unclear * (_blur(light, unclear_px) - light)
        if appearance.fringe_px and channel != 1:
            shift = (1 - channel) * appearance.fringe_px
            move = np.array([[1, 0, shift], [0, 1, shift / 2]], np.float32)
            light = np.asarray(cv2.warpAffine(light, move, shape[::-1], borderMode=cv2.BORDER_REPLICATE))
        if appearance.sharpen:
            light += np.float32(appearance.sharpen) * (light - _blur(light, max(0.5 / mpp, 0.7)))
        if appearance.noise:
            light += _blur(rng.standard_normal(shape, np.float32), 0.6) * np.float32(2 * appearance.noise)
        picture[..., channel] = np.clip(light + np.float32(0.5), 0, 255)
    return _compress(picture, appearance.jpeg) if appearance.jpeg else picture


def _compress(picture: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """Return the picture after JPEG compression."""
    _, packed = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    back = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(back[..., ::-1])


def _blur(plane: Plane, sigma_px: float) -> Plane:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma_px), np.float32) if sigma_px > 0.25 else plane


def _pen(rng: np.random.Generator, shape: tuple[int, int], mpp: float) -> Plane:
    """Return (H, W) in [0, 1]: the ink of a broad pen stroke."""
    side = smooth_noise(rng, shape, 400 / mpp) + np.float32(rng.uniform(-1, 1))
    return np.asarray(np.clip(side * 6, 0, 1) * np.float32(rng.uniform(0.3, 0.75)))
