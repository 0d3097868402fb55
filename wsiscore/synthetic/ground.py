"""The background of a field: tumour and stroma, cytoplasm, fibres and dirt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Appearance

__all__ = ["Flow", "Layout", "Plane", "add_dirt", "add_ground", "smooth_noise"]

Plane = npt.NDArray[np.float32]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> Plane:
    """Return (H, W) Gaussian noise of about unit variance with a correlation length of `scale_px`."""
    if scale_px <= 2:
        noise: Plane = rng.standard_normal(shape, np.float32)
        sigma_px = max(scale_px, 0.6) / 2
        cv2.GaussianBlur(noise, (0, 0), sigma_px, dst=noise)
        noise *= np.float32(3.5 * sigma_px)
        return noise
    if scale_px <= 12:
        grid = rng.standard_normal([max(2, round(side / scale_px) + 1) for side in shape], np.float32)
        return np.asarray(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC) * np.float32(1.3))
    down, across = (_bells(rng, side, scale_px) for side in shape)
    grid = rng.standard_normal((down.shape[1], across.shape[1]), np.float32)
    # einsum, not @: for such small products BLAS threads cost more time than they save
    return np.asarray(np.einsum("yg,xg->yx", np.einsum("yi,ig->yg", down, grid), across), np.float32)


def _bells(rng: np.random.Generator, side: int, scale_px: float) -> Plane:
    """Return (side, n) weights that interpolate n random numbers `scale_px` apart, with unit variance."""
    at = np.arange(side, dtype=np.float32)[:, None] / np.float32(scale_px) + np.float32(2 + rng.random())
    weights: Plane = np.exp(-np.square(at - np.arange(side // scale_px + 6, dtype=np.float32)) * np.float32(1.4))
    np.divide(weights, np.linalg.norm(weights, axis=1, keepdims=True), out=weights)
    return weights


def _step(values: npt.NDArray[np.floating], width: float) -> Plane:
    """Return a linear step from 0 to 1 around `values` = 0."""
    return np.asarray(np.clip(values / np.float32(2 * width) + np.float32(0.5), 0, 1), np.float32)


def _fat(rng: np.random.Generator, shape: tuple[int, int], mpp: float) -> Plane:
    """Return (H, W): 1 inside fat cells, packed side by side."""
    drops = np.zeros(shape, np.uint8)
    spacing = rng.uniform(45, 70) / mpp
    ys, xs = np.mgrid[0 : shape[0] + spacing : spacing, 0 : shape[1] + spacing : spacing]
    centres = np.stack([xs.ravel(), ys.ravel()], 1) + rng.normal(0, spacing / 8, (xs.size, 2))
    centres[:, 0] += spacing / 2 * (np.arange(xs.size) // xs.shape[1] % 2)
    for x, y in centres:
        axes = (int(spacing * rng.uniform(0.42, 0.5)), int(spacing * rng.uniform(0.38, 0.48)))
        cv2.ellipse(drops, (int(x), int(y)), axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
    return drops.astype(np.float32) / np.float32(255)


@dataclass(frozen=True, slots=True)
class Layout:
    """Maps of tumour and of empty glass.

    Parameters
    ----------
    tumour
        (H, W) in [0, 1]: 1 tumour, 0 stroma.
    clear
        (H, W) in [0, 1]: 1 is empty glass (lumen, fat, cleft).
    """

    tumour: Plane
    clear: Plane

    @classmethod
    def random(cls, rng: np.random.Generator, height_px: int, width_px: int, mpp: float) -> Self:
        """Sample sheets, nests, glands or stroma alone, with lumina, clefts and fat."""
        shape = height_px, width_px
        scale = rng.uniform(50, 160)
        noise = smooth_noise(rng, shape, scale / mpp) + 0.2 * smooth_noise(rng, shape, 18 / mpp)
        rough = 0.12 * smooth_noise(rng, shape, 6 / mpp)
        level = float(rng.choice([-3.0, rng.uniform(-1.2, 0.3), rng.uniform(0.3, 1.6)], p=[0.25, 0.5, 0.25]))
        tumour = _step(noise - level, 0.12)
        clear = np.zeros(shape, np.float32)
        if rng.random() < 0.25:
            clear = _step(noise + rough - max(level, -0.5) - rng.uniform(1.0, 1.8), 0.08)  # lumina
        if rng.random() < 0.25:
            torn = np.abs(noise - level + 0.1) + np.maximum(0, smooth_noise(rng, shape, 40 / mpp))
            clear = np.maximum(clear, _step(rng.uniform(0.05, 0.25) - torn + rough, 0.08))  # clefts
        if rng.random() < 0.3:
            holes = smooth_noise(rng, shape, rng.uniform(25, 80) / mpp) + 2 * rough
            clear = np.maximum(clear, _step(holes - rng.uniform(1.3, 2.5), 0.08))
        if rng.random() < 0.06:
            clear = np.maximum(clear, _fat(rng, shape, mpp) * (1 - tumour))
        return cls(tumour, clear)


@dataclass(frozen=True, slots=True)
class Flow:
    """Direction of the fibres.

    Parameters
    ----------
    along, across
        (H, W): distance in micrometres along and across the fibres.
    """

    along: Plane
    across: Plane

    @classmethod
    def random(cls, rng: np.random.Generator, shape: tuple[int, int], mpp: float) -> Self:
        """Sample one direction, bent by low-frequency noise."""
        angle = rng.uniform(0, np.pi)
        cos, sin = np.float32(np.cos(angle) * mpp), np.float32(np.sin(angle) * mpp)
        y, x = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)
        bend = smooth_noise(rng, shape, 120 / mpp) * 24 + smooth_noise(rng, shape, 30 / mpp) * 5
        return cls(x * cos + y * sin, y * cos - x * sin + bend)

    def angle(self, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """Return the direction of the fibres at pixels, in radians from the x axis."""
        below, right = np.minimum(y + 2, self.across.shape[0] - 1), np.minimum(x + 2, self.across.shape[1] - 1)
        above, left = np.maximum(below - 4, 0), np.maximum(right - 4, 0)
        down = self.across[below, x] - self.across[above, x]
        aside = self.across[y, right] - self.across[y, left]
        return np.asarray(np.arctan2(-aside, down), np.float64)

    def fibres(self, rng: np.random.Generator, length_um: float, width_um: float) -> Plane:
        """Return (H, W) noise with one correlation length along the fibres and another across them."""
        grid = rng.standard_normal((257, 257), np.float32)
        along = self.along / np.float32(length_um) + np.float32(rng.uniform(0, 256))
        across = self.across / np.float32(width_um) + np.float32(rng.uniform(0, 256))
        lines = cv2.remap(grid, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(lines, np.float32) * np.float32(1.4)


def add_ground(
    rng: np.random.Generator,
    mpp: float,
    appearance: Appearance,
    layout: Layout,
    flow: Flow,
    cells: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.bool_]],
    hematoxylin: Plane,
    dab: Plane,
    bare: Plane,
) -> Plane:
    """Add cytoplasm, membranes and fibres to the dyes, in place.

    Parameters
    ----------
    rng, mpp, appearance, layout, flow
        As in `render_field`.
    cells
        Row and column of the centres of nuclei, and whether each is positive.
    hematoxylin, dab
        (H, W) dyes of the nuclei; changed.
    bare
        (H, W) in [0, 1]: 1 outside nuclei and the pale gap around them.

    Returns
    -------
    ndarray
        (H, W) colourless density.
    """
    shape = hematoxylin.shape
    grain = smooth_noise(rng, shape, 1.2 / mpp)
    cloud = smooth_noise(rng, shape, 5 / mpp) * np.float32(0.6) + smooth_noise(rng, shape, 25 / mpp)
    thick = flow.fibres(rng, 40, 5)
    thin = flow.fibres(rng, 18, 1.3)
    strand = np.maximum(1 - np.abs(thin) * np.float32(1.6), 0) * np.clip(cloud + np.float32(0.4), 0, 1.5)
    membrane, blush = _cells(rng, mpp, cells, shape)
    tumour, solid = layout.tumour, (1 - layout.clear)

    cytoplasm = appearance.cytoplasm_od * (1 + appearance.texture * (0.5 * cloud + 0.2 * grain) + 0.4 * membrane)
    stroma = appearance.stroma_od * (1 + appearance.texture * (0.5 * cloud + 0.3 * thick + 0.15 * grain + 1.4 * strand))
    body = np.maximum(tumour * cytoplasm + (1 - tumour) * stroma, 0) * solid * bare
    hematoxylin += body
    dab += appearance.background_od * solid * (0.8 + 0.3 * cloud + 0.15 * grain).clip(0)
    dab += appearance.blush_od * solid * bare * blush * tumour * (1 + 0.3 * grain).clip(0)
    lines = tumour * (0.25 * grain + 0.8 * membrane) + (1 - tumour) * (
        0.3 * grain + 1.2 * strand + 0.3 * thin * np.clip(cloud, 0, 1)
    )
    edge = cv2.Laplacian(cv2.GaussianBlur(layout.clear, (0, 0), max(0.6 / mpp, 0.7)), cv2.CV_32F)
    residual: Plane = np.float32(appearance.refraction) * (lines * bare * solid + 4 * edge) + np.float32(0.2) * body
    return residual


def _cells(
    rng: np.random.Generator,
    mpp: float,
    cells: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.bool_]],
    shape: tuple[int, ...],
) -> tuple[Plane, Plane]:
    """Return (H, W) maps of the borders between cells, 0..1, and of cytoplasmic DAB."""
    row, column, positive = cells
    if not len(row):
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    seeds = np.ones(shape, np.uint8)
    seeds[row, column] = 0
    distance, owner = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    border = cv2.morphologyEx(owner.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    radius = np.float32(9 / mpp)
    border &= distance < radius
    membrane = np.asarray(cv2.GaussianBlur(border.astype(np.float32), (0, 0), max(0.35 / mpp, 0.6)), np.float32)
    whose = np.asarray(owner, np.int32)
    amount = np.zeros(int(whose.max()) + 1, np.float32)
    amount[whose[row, column]] = rng.gamma(0.6, 1.0, len(row)) * np.where(positive, 1.6, 0.5)
    blush = amount[whose] * np.clip(np.float32(1.5) - distance / radius, 0, 1)
    return membrane, np.asarray(cv2.GaussianBlur(blush, (0, 0), 0.8 / mpp), np.float32)


def add_dirt(
    rng: np.random.Generator,
    mpp: float,
    appearance: Appearance,
    layout: Layout,
    hematoxylin: Plane,
    dab: Plane,
    residual: Plane,
) -> None:
    """Add confounders that are not nuclei, in place: brown specks, black grains, blurred spots, folds.

    Few of them lie on empty glass.
    """
    area_mm2 = hematoxylin.size * mpp * mpp / 1e6

    def somewhere(per_mm2: float) -> Iterator[npt.NDArray[np.float64]]:
        for _ in range(rng.poisson(per_mm2 * area_mm2)):
            centre = rng.uniform(0, 1, 2) * hematoxylin.shape
            if layout.clear[int(centre[0]), int(centre[1])] < 0.5 or rng.random() < 0.03:
                yield centre

    for centre in somewhere(appearance.ghosts_mm2):
        plane = dab if rng.random() < 0.25 else hematoxylin
        _blot(rng, plane, centre, rng.uniform(2.5, 6) / mpp, rng.uniform(0.03, 0.16), soft=rng.uniform(0.5, 1.0))
    for centre in somewhere(appearance.debris_mm2):
        size = rng.gamma(2.0, 0.45) / mpp + 0.4
        _blot(rng, dab, centre, size, rng.uniform(0.15, 1.5), soft=rng.uniform(0.1, 0.6))
    for centre in somewhere(appearance.pigment_mm2):
        for _ in range(rng.integers(3, 30)):
            grain = centre + rng.normal(0, 4 / mpp, 2)
            _blot(rng, residual, grain, rng.uniform(0.3, 0.9) / mpp + 0.4, rng.uniform(0.3, 1.2), soft=0.3)
    if rng.random() < appearance.artefacts / 3:
        fold = _step(rng.uniform(0.03, 0.1) - np.abs(smooth_noise(rng, dab.shape, 120 / mpp)), 0.03)
        fold = 1 + np.float32(rng.uniform(0.5, 1.5)) * fold
        hematoxylin *= fold
        dab *= fold
        residual *= fold


def _blot(
    rng: np.random.Generator,
    plane: Plane,
    centre: npt.NDArray[np.float64],
    radius_px: float,
    amount: float,
    soft: float,
) -> None:
    """Add one irregular spot to a plane, in place; `soft` is the width of its edge, from 0 (sharp) to 1."""
    y, x = centre
    half = int(radius_px * 2 + 2)
    top, left = max(int(y) - half, 0), max(int(x) - half, 0)
    bottom, right = min(int(y) + half + 1, plane.shape[0]), min(int(x) + half + 1, plane.shape[1])
    if bottom <= top or right <= left:
        return
    dy = (np.arange(top, bottom, dtype=np.float32) - np.float32(y))[:, None]
    dx = np.arange(left, right, dtype=np.float32) - np.float32(x)
    turn, aspect = rng.uniform(0, np.pi), rng.uniform(0.5, 1.0)
    u, v = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / aspect
    wave = 1 + 0.15 * np.sin(3 * np.arctan2(v, u) + rng.uniform(0, 6)) + 0.1 * np.sin(5 * np.arctan2(v, u))
    rho = np.hypot(u, v) / (radius_px * wave)
    plane[top:bottom, left:right] += (amount * np.clip((1 - rho) / (soft + 0.1) + 0.5, 0, 1)).astype(np.float32)
