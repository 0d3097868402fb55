"""Training of maps of nuclei on annotations that leave pixels unknown: the loss, and weights to start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

__all__ = ["fitted", "known_losses", "map_loss"]

_WEIGHTS = {"center": 2.0, "positive": 1.0, "negative": 1.0, "other": 0.5}
_LEAST_KNOWN = 2000.0  # pixels: fewer count less
_LAST = "decoder.up.3.1"
_BLOCKS = (("encoder", "tail"), ("decoder", "head"))


def map_loss(maps: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of maps in [-1, 1]; tanh(x) is a logistic function of 2 x."""
    with torch.autocast(maps.device.type, enabled=False):
        probability = (maps.float() * 0.5 + 0.5).clamp(1e-5, 1 - 1e-5)
        return binary_cross_entropy(probability, target * 0.5 + 0.5)


def known_losses(maps: Tensor, target: Tensor, known: Tensor) -> dict[str, Tensor]:
    """Return the weighted cross-entropy of each map over the pixels that are known.

    Parameters
    ----------
    maps
        (B, C, H, W) in [-1, 1]; tanh(x) is a logistic function of 2 x.
    target, known
        (B, at least C, H, W) uint8, 0..255: the maps wanted, and the weight of each pixel.
    """
    n = maps.shape[1]
    with torch.autocast(maps.device.type, enabled=False):
        probability = (maps.float() * 0.5 + 0.5).clamp(1e-5, 1 - 1e-5)
        wanted, weight = (at[:, :n].to(maps.device).float() / 255 for at in (target, known))
        entropy = binary_cross_entropy(probability, wanted, weight=weight, reduction="none").sum((0, 2, 3))
        losses = entropy / weight.sum((0, 2, 3)).clamp_min(_LEAST_KNOWN)
    return {name: loss * own for (name, own), loss in zip(_WEIGHTS.items(), losses, strict=False)}


def fitted(weights: Mapping[str, Any], blocks: int, maps: int) -> dict[str, Any]:
    """Return weights of a U-Net for one with fewer residual blocks or a fourth map.

    Blocks that are too many are left out; the fourth map begins as a weak copy of the negative one.

    Parameters
    ----------
    weights
        Name -> array.
    blocks, maps
        Of the new network.
    """
    kept = {}
    for name, value in weights.items():
        module, part, number = ([*name.split("."), "", ""])[:3]
        if (module, part) not in _BLOCKS or int(number) < blocks:
            kept[name] = torch.as_tensor(value)
    weight, bias = (kept.get(f"{_LAST}.{kind}") for kind in ("weight", "bias"))
    if maps == 4 and weight is not None and bias is not None and weight.shape[1] == 3:
        kept[f"{_LAST}.weight"] = torch.cat([weight, 0.3 * weight[:, 2:3]], 1)
        kept[f"{_LAST}.bias"] = torch.cat([bias, bias[2:3] - 0.5])
    return kept
