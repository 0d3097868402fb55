"""Disturbances that all crops of a step have in common: staining strength, camera, scanner and compression."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Disturbance"]

Pictures = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_LEAST_RANGE = 40  # grey levels: a smaller range is not stretched


class Disturbance:
    """Random changes of optical density, sharpness, contrast, colour and noise, the same for all crops.

    Parameters
    ----------
    rng
        Random generator; the values are drawn from it here, the noise when it is called.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._gain = np.exp(rng.normal(0, 0.18)) * np.exp(rng.normal(0, 0.04, 3))
        self._shift = rng.uniform(-0.02, 0.02) + rng.normal(0, 0.01, 3)
        self._blur = float(rng.uniform(0.35, 1.2)) if rng.random() < 0.3 else 0.0
        self._sharpen = (float(rng.uniform(0.7, 1.5)), float(rng.uniform(0.2, 1.2))) if rng.random() < 0.25 else None
        self._noise = float(rng.uniform(0.5, 5)) if rng.random() < 0.35 else 0.0
        self._jpeg = int(rng.integers(40, 95)) if rng.random() < 0.3 else 0
        self._stretch = (rng.uniform(0, 3), rng.uniform(75, 99.5), rng.uniform(0.3, 1)) if rng.random() < 0.35 else None
        self._saturation = float(np.exp(rng.normal(0, 0.25))) if rng.random() < 0.3 else None
        self._gamma = float(np.exp(rng.normal(0, 0.2))) if rng.random() < 0.2 else None
        self._balance = rng.normal(0, 0.025, 3) if rng.random() < 0.3 else None

    def __call__(self, crops: Pictures) -> Pictures:
        """Return (B, S, S, 3) crops, 0..255, changed alike."""
        levels = np.arange(256, dtype=np.float64)
        od = -np.log10(np.maximum(levels, 1) / 255)[:, None] * self._gain - self._shift
        table = (10 ** -np.maximum(od, 0) * 255).astype(np.float32)
        if self._balance is not None:
            table *= (1 + self._balance).astype(np.float32)
        values = [np.asarray(cv2.LUT(crop, table[None]), np.float32) for crop in crops]
        if self._stretch:
            values = self._stretched([self._focused(value) for value in values])
        else:
            values = [self._focused(value) for value in values]
        return np.stack([self._recorded(self._coloured(value)) for value in values])

    def _focused(self, value: Floats) -> Floats:
        if self._blur:
            value = np.asarray(cv2.GaussianBlur(value, (0, 0), self._blur), np.float32)
        if self._sharpen:
            sigma, amount = self._sharpen
            value = value + np.float32(amount) * (value - cv2.GaussianBlur(value, (0, 0), sigma))
        return np.asarray(value, np.float32)

    def _stretched(self, values: list[Floats]) -> list[Floats]:
        """Return the crops with more contrast, between percentiles of their brightness together."""
        assert self._stretch
        lower, upper, amount = self._stretch
        brightness = np.concatenate([value[::4, ::4].mean(-1).ravel() for value in values])
        low, high = np.percentile(brightness, [lower, upper])
        low, high = amount * low, amount * high + (1 - amount) * 255
        if high - low <= _LEAST_RANGE:
            return values
        return [(value - np.float32(low)) * np.float32(255 / (high - low)) for value in values]

    def _coloured(self, value: Floats) -> Floats:
        if self._saturation is not None:
            grey = value.mean(-1, keepdims=True)
            value = grey + np.float32(self._saturation) * (value - grey)
        if self._gamma is not None:
            value = 255 * np.power(np.clip(value, 0, 255) / 255, np.float32(self._gamma))
        return np.asarray(value, np.float32)

    def _recorded(self, value: Floats) -> Pictures:
        if self._noise:
            value = value + self._rng.standard_normal(value.shape, np.float32) * np.float32(self._noise)
        picture = np.clip(value + 0.5, 0, 255).astype(np.uint8)
        if self._jpeg:
            quality = [cv2.IMWRITE_JPEG_QUALITY, self._jpeg]
            coded = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), quality)[1]
            picture = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
        return np.ascontiguousarray(picture)
