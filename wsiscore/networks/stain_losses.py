"""Differentiable measures of IHC images: absorption of each stain, positive region, number of nuclei."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from wsiscore.stain import Stain

__all__ = ["MASK_SIGMA_PX", "absorption", "blurred", "closed", "nuclei_count", "soft_mask"]

MASK_SIGMA_PX = 1.0
"""Gaussian filter before the threshold of a mask (Xu et al., eq. 1)."""

_STEEPNESS = 20.0  # of the logistic function that replaces a threshold
_NUCLEUS_PX = 8.0  # radius; 4 µm at 0.5 µm/px
_PEAK_RISE = 0.03  # least absorption of a nucleus above its surroundings


def absorption(images: Tensor) -> Tensor:
    """Return the fraction of light that hematoxylin and DAB absorb, (B, 2, H, W), at most 1.

    It is negative where unmixing gives a negative amount of stain, so that the gradient does not vanish there.

    Parameters
    ----------
    images
        (B, 3, H, W) in [-1, 1].
    """
    stain = Stain.default()
    normal = np.cross(stain.hematoxylin, stain.dab)
    vectors = np.array([stain.hematoxylin, stain.dab, normal / np.linalg.norm(normal)])
    unmix = torch.as_tensor(np.linalg.inv(vectors)[:, :2], dtype=torch.float32, device=images.device)
    od = -torch.log10(((images.float() + 1) / 2).clamp(min=1 / 255))
    return 1 - torch.pow(10, -torch.einsum("bchw,cs->bshw", od, unmix))


def blurred(maps: Tensor, sigma_px: float) -> Tensor:
    """Return (B, C, H, W) maps after a Gaussian filter with mirrored edges."""
    radius = min(math.ceil(4 * sigma_px), *(side - 1 for side in maps.shape[2:]))
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=maps.device)
    bell = torch.exp(-0.5 * (steps / sigma_px) ** 2)
    bell = (bell / bell.sum()).expand(maps.shape[1], 1, 1, -1)
    maps = conv2d(pad(maps, (radius, radius, 0, 0), mode="reflect"), bell, groups=maps.shape[1])
    return conv2d(pad(maps, (0, 0, radius, radius), mode="reflect"), bell.transpose(2, 3), groups=maps.shape[1])


def soft_mask(dab: Tensor, threshold: Tensor) -> Tensor:
    """Return the positive region, (B, 1, H, W) in [0, 1], from the absorption of DAB, (B, 1, H, W), and a threshold."""
    mask = torch.sigmoid((blurred(dab, MASK_SIGMA_PX) - threshold) * _STEEPNESS)
    return _dilated(_eroded(mask, 1), 1)


def closed(mask: Tensor, radius_px: int) -> Tensor:
    """Return (B, 1, H, W) masks after a morphological closing with squares of radius `radius_px`."""
    return _eroded(_dilated(mask, radius_px), radius_px)


def _dilated(mask: Tensor, radius_px: int) -> Tensor:
    return max_pool2d(mask, 2 * radius_px + 1, stride=1, padding=radius_px)


def _eroded(mask: Tensor, radius_px: int) -> Tensor:
    return -_dilated(-mask, radius_px)


def nuclei_count(hematoxylin: Tensor) -> Tensor:
    """Return the soft number of nuclei, (B,), in (B, 1, H, W) absorption of hematoxylin.

    Each peak counts between 0 and 1, by how far it rises above its surroundings.
    """
    half = avg_pool2d(hematoxylin, 2)
    sigma_px = _NUCLEUS_PX / 2 / math.sqrt(2)
    rise = blurred(half, sigma_px) - blurred(half, 1.6 * sigma_px)
    peak = (rise == _dilated(rise, 3)) & (rise > _PEAK_RISE / 4)
    return (peak * torch.sigmoid((rise - _PEAK_RISE) * 10 * _STEEPNESS)).sum(dim=(1, 2, 3))
