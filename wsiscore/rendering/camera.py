"""From dyes to what a scanner or a camera on a microscope makes of them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.rendering.ground import Plane, smooth_noise
from wsiscore.rendering.look import Look

__all__ = ["photograph"]


def photograph(
    rng: np.random.Generator, mpp: float, look: Look, hematoxylin: Plane, dab: Plane, residual: Plane
) -> npt.NDArray[np.uint8]:
    """Return the (H, W, 3) picture, 0..255, of light through the dyes."""
    shape = hematoxylin.shape
    rgb = np.empty((*shape, 3), np.float32)
    for channel in range(3):
        density = hematoxylin * np.float32(look.hematoxylin[channel])
        density += dab * np.float32(look.dab[channel])
        density += residual
        light = np.exp(density * np.float32(-np.log(10)))
        rgb[..., channel] = np.float32(look.glass[channel]) * (look.stray + (1 - look.stray) * light)
    if rng.random() < look.accidents / 3:
        rgb *= _pen(rng, shape, mpp)
    rgb = _blur(rgb, look.blur_um / mpp)
    if rng.random() < look.accidents:
        unclear = np.clip(smooth_noise(rng, shape, 60 / mpp) - np.float32(rng.uniform(-0.5, 1)), 0, 1)[..., None]
        rgb += unclear * (_blur(rgb, rng.uniform(0.7, 2.0) / mpp) - rgb)
    if look.fringe_px:
        for channel, sign in ((0, 1), (2, -1)):
            dx, dy = sign * look.fringe_px, sign * look.fringe_px * 0.5
            move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
            rgb[..., channel] = cv2.warpAffine(
                np.ascontiguousarray(rgb[..., channel]), move, shape[::-1], borderMode=cv2.BORDER_REPLICATE
            )
    if look.sharpen:
        rgb += np.float32(look.sharpen) * (rgb - _blur(rgb, max(0.5 / mpp, 0.7)))
    if look.noise:
        rgb += cv2.GaussianBlur(rng.standard_normal(rgb.shape, np.float32), (0, 0), 0.6) * np.float32(2 * look.noise)
    picture = np.clip(rgb + np.float32(0.5), 0, 255).astype(np.uint8)
    if look.jpeg:
        _, packed = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, look.jpeg])
        picture = np.ascontiguousarray(cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1])
    return picture


def _blur(rgb: Plane, sigma_px: float) -> Plane:
    return cv2.GaussianBlur(rgb, (0, 0), sigma_px) if sigma_px > 0.25 else rgb


def _pen(rng: np.random.Generator, shape: tuple[int, ...], mpp: float) -> Plane:
    """Return (H, W, 3) in [0, 1]: the light a broad stroke of a marker lets through."""
    ink = np.array([[0.1, 0.3, 0.75], [0.1, 0.5, 0.35], [0.15, 0.15, 0.18], [0.75, 0.1, 0.15]])[rng.integers(4)]
    side = smooth_noise(rng, (shape[0], shape[1]), 400 / mpp) + np.float32(rng.uniform(-1, 1))
    cover = np.clip(side * 6, 0, 1)[..., None] * np.float32(rng.uniform(0.4, 0.95))
    return (1 - cover * (1 - ink)).astype(np.float32)
