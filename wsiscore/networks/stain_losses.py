"""What IHC shows, in torch so that a gradient passes: light taken by each stain, positive region, number of nuclei."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from wsiscore.stain import Stain

__all__ = ["MASK_SIGMA_PX", "blurred", "closed", "dark", "nuclei_count", "soft_mask"]

MASK_SIGMA_PX = 1.0
"""Of the Gaussian filter before the cut of a mask (Xu et al., eq. 1)."""

_STEEPNESS = 20.0  # of the logistic function that stands for a threshold
_NUCLEUS_PX = 8.0  # radius; 4 µm at 0.5 µm/px
_PEAK_DARK = 0.03  # least rise of a nucleus over its surroundings


def dark(pictures: Tensor) -> Tensor:
    """Return the share of light that hematoxylin and DAB take, (B, 2, H, W) up to 1, of (B, 3, H, W) in [-1, 1].

    Below 0 where a colour has less than none of a stain: a gradient is left there.
    """
    stain = Stain.default()
    normal = np.cross(stain.hematoxylin, stain.dab)
    vectors = np.array([stain.hematoxylin, stain.dab, normal / np.linalg.norm(normal)])
    unmix = torch.as_tensor(np.linalg.inv(vectors)[:, :2], dtype=torch.float32, device=pictures.device)
    od = -torch.log10(((pictures.float() + 1) / 2).clamp(min=1 / 255))
    return 1 - torch.pow(10, -torch.einsum("bchw,cs->bshw", od, unmix))


def blurred(maps: Tensor, sigma_px: float) -> Tensor:
    """Return (B, C, H, W) maps after a Gaussian filter, mirrored at the edge."""
    reach = min(math.ceil(4 * sigma_px), *(side - 1 for side in maps.shape[2:]))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=maps.device)
    bell = torch.exp(-0.5 * (steps / sigma_px) ** 2)
    bell = (bell / bell.sum()).expand(maps.shape[1], 1, 1, -1)
    maps = conv2d(pad(maps, (reach, reach, 0, 0), mode="reflect"), bell, groups=maps.shape[1])
    return conv2d(pad(maps, (0, 0, reach, reach), mode="reflect"), bell.transpose(2, 3), groups=maps.shape[1])


def soft_mask(dab: Tensor, cut: Tensor) -> Tensor:
    """Return (B, 1, H, W) in [0, 1]: the positive region of a picture whose DAB takes the share `dab` of the light."""
    mask = torch.sigmoid((blurred(dab, MASK_SIGMA_PX) - cut) * _STEEPNESS)
    return _dilated(_eroded(mask, 1), 1)


def closed(mask: Tensor, reach_px: int) -> Tensor:
    """Fill the gaps of (B, 1, H, W) masks that are up to twice `reach_px` wide."""
    return _eroded(_dilated(mask, reach_px), reach_px)


def _dilated(mask: Tensor, reach_px: int) -> Tensor:
    return max_pool2d(mask, 2 * reach_px + 1, stride=1, padding=reach_px)


def _eroded(mask: Tensor, reach_px: int) -> Tensor:
    return -_dilated(-mask, reach_px)


def nuclei_count(hematoxylin: Tensor) -> Tensor:
    """Return how many nuclei, (B,), lie in (B, 1, H, W) hematoxylin; each counts as far as it stands out, 0 to 1."""
    half = avg_pool2d(hematoxylin, 2)
    sigma_px = _NUCLEUS_PX / 2 / math.sqrt(2)
    rise = blurred(half, sigma_px) - blurred(half, 1.6 * sigma_px)
    peak = (rise == _dilated(rise, 3)) & (rise > _PEAK_DARK / 4)
    return (peak * torch.sigmoid((rise - _PEAK_DARK) * 10 * _STEEPNESS)).sum(dim=(1, 2, 3))
