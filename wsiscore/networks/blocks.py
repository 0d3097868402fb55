"""Blocks, networks and losses that two or more families share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    batch_norm,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    mse_loss,
)

__all__ = [
    "InstanceNorm",
    "MultiScaleJudge",
    "PatchJudge",
    "ResNet",
    "ResidualBlock",
    "SampleNorm",
    "UNet",
    "descend",
    "judged",
    "map_error",
]

_LEAST_JUDGED_PX = 32  # of the sides of what a `PatchJudge` can judge

Norm = Callable[[int], nn.Module]
"""Makes the normalisation of so many channels."""


class InstanceNorm(nn.Module):
    """Instance normalisation without weights, as ``nn.InstanceNorm2d``.

    Nothing is copied to another layout in memory, and two plain means are faster than ``torch.var_mean``:
    measured channels last on two cores, a whole network runs 1.2 times as fast.

    Parameters
    ----------
    channels
        Not needed; taken so that every normalisation is made alike.
    """

    def __init__(self, channels: int = 0) -> None:
        super().__init__()

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, H, W) with mean 0 and variance 1 in each channel of each item."""
        exact = features.float()
        apart = exact - exact.mean(dim=(2, 3), keepdim=True)
        variance = apart.square().mean(dim=(2, 3), keepdim=True)
        return (apart * torch.rsqrt(variance + 1e-5)).to(features.dtype)


class SampleNorm(nn.Module):
    """Batch normalisation whose statistics are each item's own, so that a batch of N gives what N of one give.

    It reads the weights of an ``nn.BatchNorm2d`` and, on single items, gives what that gives in training, rounded
    alike: `InstanceNorm` is nearer to the exact answer, but not what published programs compute where a channel
    hardly varies.

    Parameters
    ----------
    channels
        Of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, H, W) with mean `bias` and standard deviation `weight` in each channel of each item."""
        normed = [
            batch_norm(item, None, None, self.weight, self.bias, training=True) for item in torch.split(features, 1)
        ]
        return torch.cat(normed) if len(normed) > 1 else normed[0]


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with normalisation, added to their input.

    Parameters
    ----------
    channels
        Of the input and the output, (B, channels, H, W) with H and W at least 2.
    norm
        Normalisation after each convolution.
    padding
        What lies beyond the edge: ``reflect`` or ``zeros``.
    dropout
        Share of features dropped between the convolutions in training.
    bias
        Whether the convolutions have one.
    """

    def __init__(
        self,
        channels: int,
        norm: Norm = InstanceNorm,
        padding: Literal["reflect", "zeros"] = "reflect",
        dropout: float = 0.0,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, channels, channels, 3, padding=1, padding_mode=padding, bias=bias)
        middle = [nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.block = nn.Sequential(conv(), norm(channels), *middle, conv(), norm(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features with the block's correction added, same shape."""
        corrected: Tensor = features + self.block(features)
        return corrected


class ResNet(nn.Module):
    """Johnson's generator as CycleGAN and pix2pix have it: halvings, residual blocks, doublings.

    Parameters
    ----------
    width
        Channels at full size; each halving doubles them.
    halvings
        How many.
    blocks
        Residual blocks between halvings and doublings.
    norm
        Normalisation after each convolution but the last.
    padding
        What lies beyond the edge, for the first and last convolution and the residual blocks.
    dropout
        As in `ResidualBlock`.
    bias
        Whether convolutions before a normalisation have one.
    channels_in, channels_out
        Of the pictures.
    """

    def __init__(
        self,
        width: int,
        halvings: int = 2,
        blocks: int = 9,
        norm: Norm = InstanceNorm,
        padding: Literal["reflect", "zeros"] = "reflect",
        dropout: float = 0.0,
        *,
        bias: bool = True,
        channels_in: int = 3,
        channels_out: int = 3,
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(halvings + 1)]

        def stage(conv: nn.Module, channels: int) -> nn.Sequential:
            return nn.Sequential(conv, norm(channels), nn.ReLU())

        far = partial(nn.Conv2d, kernel_size=7, padding=3, padding_mode=padding)
        self.stem = stage(far(channels_in, width, bias=bias), width)
        self.down = nn.ModuleList(
            stage(nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=bias), outer)
            for inner, outer in pairwise(widths)
        )
        self.blocks = nn.Sequential(
            *(ResidualBlock(widths[-1], norm, padding, dropout, bias=bias) for _ in range(blocks))
        )
        self.up = nn.Sequential(
            *(
                stage(nn.ConvTranspose2d(inner, outer, 3, stride=2, padding=1, output_padding=1, bias=bias), outer)
                for inner, outer in pairwise(widths[::-1])
            )
        )
        self.out = far(width, channels_out)

    def encode(self, pictures: Tensor) -> list[Tensor]:
        """Return what each halving gives, finest first."""
        features = [self.stem(pictures)]
        for down in self.down:
            features.append(down(features[-1]))
        return features[1:]

    def decode(self, features: Tensor) -> Tensor:
        """Turn what the last halving gives into (B, channels_out, H, W) in [-1, 1]."""
        return torch.tanh(self.out(self.up(self.blocks(features))).float())

    def forward(self, pictures: Tensor) -> Tensor:
        """Turn (B, channels_in, H, W) in [-1, 1], sides multiples of 2^halvings, into the same size in [-1, 1]."""
        return self.decode(self.encode(pictures)[-1])


class UNet(nn.Module):
    """pix2pix's U-Net (Isola et al. 2017): halvings down to one pixel, doublings that also see their own scale.

    Parameters
    ----------
    width
        Channels of the first level; the next have 2, 4 and then always 8 times as many.
    halvings
        How many: 9 for tiles of 512 px, 8 for 256 px.
    norm
        Normalisation after each inner convolution.
    dropout
        Share of features dropped on the innermost levels in training.
    bias
        Whether convolutions before a normalisation have one.
    channels_in, channels_out
        Of the pictures.
    """

    def __init__(
        self,
        width: int,
        halvings: int = 9,
        norm: Norm = InstanceNorm,
        dropout: float = 0.0,
        *,
        bias: bool = True,
        channels_in: int = 3,
        channels_out: int = 3,
    ) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(halvings)]
        self.down = nn.ModuleList([nn.Conv2d(channels_in, width, 4, stride=2, padding=1, bias=bias)])
        for level, (inner, outer) in enumerate(pairwise(widths), start=2):
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)]
            layers.append(nn.Conv2d(inner, outer, 4, stride=2, padding=1, bias=bias))
            if level < halvings:
                layers.append(norm(outer))
            self.down.append(nn.Sequential(*layers))
        self.up = nn.ModuleList()
        for level, (inner, outer) in enumerate(pairwise(widths[::-1])):
            deep = dropout if 0 < level < halvings - 4 else 0.0
            self.up.append(
                nn.Sequential(
                    nn.ReLU(),
                    nn.ConvTranspose2d(inner * (1 if level == 0 else 2), outer, 4, stride=2, padding=1, bias=bias),
                    norm(outer),
                    *([nn.Dropout(deep)] if deep else []),
                )
            )
        self.up.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * width, channels_out, 4, stride=2, padding=1)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Turn (B, channels_in, H, W) in [-1, 1] into (B, channels_out, H, W) in [-1, 1].

        The sides are multiples of 2^halvings.
        """
        skips: list[Tensor] = []
        for down in self.down:
            pictures = down(pictures)
            skips.append(pictures)
        features = self.up[0](skips.pop())
        for up in self.up[1:]:
            features = up(torch.cat([skips.pop(), features], dim=1))
        return torch.tanh(features.float())


class PatchJudge(nn.Module):
    """PatchGAN's discriminator of three halvings (Isola et al. 2017): one logit for each patch of a picture.

    Parameters
    ----------
    width
        Channels of the first layer; 64 as published.
    channels
        Of the pictures, (B, channels, H, W) with H and W at least 32; 6 judges a picture beside its input.
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

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (B, 1, h, w): how real each patch looks."""
        logits: Tensor = self.layers(pictures)
        return logits


class MultiScaleJudge(nn.Module):
    """Several `PatchJudge`s, each for pictures half the size of the one before (Wang et al. 2018).

    Parameters
    ----------
    scales
        How many.
    width, channels, norm
        As in `PatchJudge`; a scale at which the pictures' sides are under 32 px is left out.
    """

    def __init__(self, scales: int, width: int, channels: int = 3, norm: Norm = InstanceNorm) -> None:
        super().__init__()
        self.judges = nn.ModuleList(PatchJudge(width, channels, norm) for _ in range(scales))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Return each scale's logits, finest first."""
        logits: list[Tensor] = []
        for judge in self.judges:
            if logits and min(pictures.shape[2:]) < _LEAST_JUDGED_PX:
                break
            logits.append(judge(pictures))
            pictures = avg_pool2d(pictures, 3, stride=2, padding=1, count_include_pad=False)
        return logits


def judged(logits: Tensor, *, real: bool, loss: Literal["squares", "vanilla"] = "squares") -> Tensor:
    """Return the adversarial loss of a discriminator's verdict.

    Parameters
    ----------
    logits
        Any shape.
    real
        What the verdict is wanted to be.
    loss
        ``squares``: the mean squared distance from 1 or 0 (Mao et al. 2017); ``vanilla``: the mean cross-entropy
        (Goodfellow et al. 2014).
    """
    wanted = torch.full_like(logits, float(real), dtype=torch.float32)
    return (mse_loss if loss == "squares" else binary_cross_entropy_with_logits)(logits.float(), wanted)


def map_error(maps: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean cross-entropy of maps in [-1, 1]: their tanh is a logistic function of twice its argument."""
    share = (maps.float() * 0.5 + 0.5).clamp(1e-5, 1 - 1e-5)
    return binary_cross_entropy(share, wanted * 0.5 + 0.5)


def descend(optimiser: torch.optim.Optimizer, loss: Any) -> None:
    """Take one step down a loss."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
