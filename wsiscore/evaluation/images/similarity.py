"""Similarity of pictures: by pixel, by structure, and by the features of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.linalg
from skimage.metrics import mean_squared_error, structural_similarity

from wsiscore.errors import TruthError

__all__ = ["compare_pictures", "dists", "frechet_distance", "hash_values", "kernel_distance"]

_WINDOW_PX = 7  # window of SSIM, as in scikit-image and the program of BCI
_NO_LUMINANCE = 1e6  # SSIM's K1: so large that the luminance term is 1 to twelve digits
_HASH_STEP = 0.01
_STABLE = 1e-6

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]


def compare_pictures(found: Pixels, true: Pixels) -> dict[str, float]:
    """Compare a picture with the true one, without a network.

    Parameters
    ----------
    found, true
        (H, W, 3), 0..255, of the same size, at least 7 px on each side.

    Returns
    -------
    dict
        ``mse``: mean squared difference of the levels, 0..65025. ``psnr``: 10 log10(255² / mse), in decibels,
        infinite for identical pictures. ``ssim``: structural similarity, at most 1 (Wang et al., IEEE TIP 13:600,
        2004), in a flat window of 7 px with the sample covariance, averaged over the colours: what BCI reports.
        ``css``: its contrast and structure without the luminance, (2σxy + C2) / (σx² + σy² + C2), in the same
        windows (named in ATST-Net, section 4.2; the formula is that of Liu et al., IEEE TMI 40:1977, 2021).

    Raises
    ------
    TruthError
        If they are too small.
    """
    if min(true.shape[:2]) < _WINDOW_PX:
        height, width = true.shape[:2]
        raise TruthError(f"pictures of {width} × {height} px are too small for SSIM; wanted {_WINDOW_PX} px or more")
    mse = float(mean_squared_error(true, found))
    similar = {
        name: float(structural_similarity(true, found, win_size=_WINDOW_PX, channel_axis=2, data_range=255, K1=k1))
        for name, k1 in (("ssim", 0.01), ("css", _NO_LUMINANCE))
    }
    return {"mse": mse, "psnr": 10 * math.log10(255**2 / mse) if mse else math.inf, **similar}


def hash_values(found: Sequence[Floats], true: Sequence[Floats], step: float = _HASH_STEP) -> list[float]:
    """Return for each layer the fraction of channels whose means differ by more than `step`, in [0, 1]; 0 is best.

    Source: the perceptual hash value (PHV) of Liu et al., IEEE TMI 40:1977, 2021; ATST-Net reports it for the four
    stages of a ResNet-50 at 0.01, and their mean.

    Parameters
    ----------
    found, true
        Features of each layer, (C, h, w).
    """
    return [
        float((np.abs(a.mean(axis=(1, 2)) - b.mean(axis=(1, 2))) > step).mean())
        for a, b in zip(found, true, strict=True)
    ]


def dists(found: Sequence[Floats], true: Sequence[Floats], weights: tuple[Floats, Floats] | None = None) -> float:
    """Return the deep image structure and texture similarity as a distance: 0 for identical pictures.

    Source: Ding et al., IEEE TPAMI 44:2567, 2022, equations 7 to 9: one minus the weighted mean, over all channels, of
    (2 μx μy + c) / (μx² + μy² + c) and (2 σxy + c) / (σx² + σy² + c), each over the whole map; c = 1e-6.

    Parameters
    ----------
    found, true
        Features of each layer, (C, h, w); the first is the picture in [0, 1].
    weights
        Weights of the first and of the second term, one for each channel of all layers; they are normalised to a sum
        of 1. By default all are equal.
    """
    texture, structure = [], []
    for a, b in zip(found, true, strict=True):
        x, y = (layer.reshape(len(layer), -1).astype(np.float64) for layer in (a, b))
        mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
        covariance = (x * y).mean(axis=1) - mean_x * mean_y
        texture.append((2 * mean_x * mean_y + _STABLE) / (mean_x**2 + mean_y**2 + _STABLE))
        structure.append((2 * covariance + _STABLE) / (x.var(axis=1) + y.var(axis=1) + _STABLE))
    terms = np.concatenate([*texture, *structure])
    weight = np.concatenate(weights).astype(np.float64) if weights else np.ones(len(terms))
    return float(1 - (weight * terms).sum() / weight.sum())


def frechet_distance(found: Floats, true: Floats) -> float:
    """Return the Fréchet distance of Gaussians fitted to two sets of features; with Inception's features, the FID.

    |μ1 − μ2|² + tr(S1 + S2 − 2 (S1 S2)^½) (Heusel et al. 2017). The last trace is computed as the sum of the
    singular values of X1 X2ᵀ, where S = XᵀX. This avoids a matrix square root, which fails for fewer pictures than
    features.

    Parameters
    ----------
    found, true
        (pictures, features); nan for fewer than two pictures.
    """
    if min(len(found), len(true)) < 2:
        return math.nan
    centred = [(x - x.mean(axis=0)).astype(np.float64) / math.sqrt(len(x) - 1) for x in (found, true)]
    small = [scipy.linalg.qr(x, mode="r")[0][: min(x.shape)] for x in centred]
    common = float(scipy.linalg.svdvals(small[0] @ small[1].T).sum())
    apart = float(((found.mean(axis=0) - true.mean(axis=0)) ** 2).sum())
    return max(0.0, apart + sum(float((x**2).sum()) for x in centred) - 2 * common)


def kernel_distance(found: Floats, true: Floats) -> float:
    """Return the squared maximum mean discrepancy of two sets of features; with Inception's it is the KID.

    The unbiased estimate over all pairs with the kernel (x·y / features + 1)³ (Bińkowski et al. 2018). Its expectation
    is 0 for sets from the same distribution, so it can be negative.

    Parameters
    ----------
    found, true
        (pictures, features); nan for fewer than two pictures.
    """
    if min(len(found), len(true)) < 2:
        return math.nan

    def kernel(x: Floats, y: Floats) -> Floats:
        return np.asarray((x.astype(np.float64) @ y.T.astype(np.float64) / x.shape[1] + 1) ** 3)

    def within(x: Floats) -> float:
        values = kernel(x, x)
        return float(values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return within(found) + within(true) - 2 * float(kernel(found, true).mean())
