"""PatchGAN discriminators and the adversarial loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, mse_loss

from wsiscore.networks.blocks import InstanceNorm, Norm

__all__ = ["GanMode", "MultiScaleDiscriminator", "PatchDiscriminator", "gan_loss"]

GanMode = Literal["lsgan", "vanilla"]
"""Adversarial loss: least squares (Mao et al. 2017) or cross-entropy (Goodfellow et al. 2014)."""

_MIN_PX = 32  # smallest image side that a `PatchDiscriminator` takes


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator with three downsamplings (Isola et al. 2017): one logit for each patch of an image.

    Parameters
    ----------
    width
        Channels of the first layer; 64 in the paper.
    channels
        Channels of the images; 6 for a conditional discriminator, which takes the input and the target together.
    norm
        Normalisation of the inner layers.
    """

    def __init__(self, width: int, channels: int = 3, norm: Norm = InstanceNorm) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for inner, outer, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [
                nn.Conv2d(inner * width, outer * width, 4, stride=stride, padding=1),
                norm(outer * width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 1, h, w) logits for (B, channels, H, W) images, H and W at least 32; higher is more real."""
        logits: Tensor = self.layers(images)
        return logits


class MultiScaleDiscriminator(nn.Module):
    """Several `PatchDiscriminator`s, each for images at half the size of the previous one (Wang et al. 2018).

    Parameters
    ----------
    scales
        Number of discriminators.
    width, channels, norm
        As for `PatchDiscriminator`.
    """

    def __init__(self, scales: int, width: int, channels: int = 3, norm: Norm = InstanceNorm) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(PatchDiscriminator(width, channels, norm) for _ in range(scales))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the logits of each scale, finest first; scales at which a side is below 32 px are skipped."""
        logits: list[Tensor] = []
        for discriminator in self.discriminators:
            if logits and min(images.shape[2:]) < _MIN_PX:
                break
            logits.append(discriminator(images))
            images = avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
        return logits


def gan_loss(logits: Tensor, *, real: bool, mode: GanMode = "lsgan") -> Tensor:
    """Return the adversarial loss of a discriminator's logits.

    Parameters
    ----------
    logits
        Any shape.
    real
        Target label.
    mode
        ``lsgan``: mean squared distance from 1 (real) or 0; ``vanilla``: mean cross-entropy.
    """
    target = torch.full_like(logits, float(real), dtype=torch.float32)
    return (mse_loss if mode == "lsgan" else binary_cross_entropy_with_logits)(logits.float(), target)
