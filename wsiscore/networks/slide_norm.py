"""Normalisation by the statistics of a slide: measured once over a sample of it, then fixed.

Instance normalisation makes the maps of a pixel depend on the tile it is in. With statistics of the whole slide they
depend on the pixel's surroundings alone, as far as the network's receptive field extends: tile size, batch and slide
edge change nothing. Related: thumbnail instance normalisation (Chen et al., arXiv 2203.00963) and kernelized instance
normalisation (Ho et al., ECCV 2022), which approximate such statistics tile by tile.

The sample goes through the network as one batch. Each layer takes the mean and the variance of its input over all of
it, and passes on what is normalised by them, so that one pass measures layer after layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, batch_norm

from wsiscore.engines.graph import Statistics
from wsiscore.networks.blocks import InstanceNorm, SampleNorm

__all__ = ["PooledNorms", "frozen", "measure"]

_EPSILON = 1e-5


class _Measuring(nn.Module):
    """A normalisation layer that takes its statistics from the whole batch, and keeps them.

    Parameters
    ----------
    weights
        (B, 1, H, W) in [0, 1]: how much each pixel of the network's input counts.
    """

    def __init__(self, layer: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.layer, self.weights = layer, weights
        self.mean = self.scale = torch.empty(0)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, H, W) with mean 0 and variance 1 in each channel over the weighted batch, then affine."""
        exact = features.float()
        weights = adaptive_avg_pool2d(self.weights, (exact.shape[-2], exact.shape[-1]))
        total = weights.sum().clamp_min(1e-6)
        mean = (exact * weights).sum(dim=(0, 2, 3)) / total
        apart = exact - mean[:, None, None]
        variance = (apart.square() * weights).sum(dim=(0, 2, 3)) / total
        self.mean, self.scale = mean, torch.rsqrt(variance + _EPSILON)
        return _affine(self.layer, apart * self.scale[:, None, None]).to(features.dtype)


class PooledNorms:
    """Training for slide statistics: the instance normalisation of a network pools over the whole batch.

    Parameters
    ----------
    network
        Its layers of `InstanceNorm` are replaced, in place. They have no weights, so names of weights stay. None: no
        network; each tile is normalised by itself.
    """

    def __init__(self, network: nn.Module | None) -> None:
        self._weights: Tensor | None = None
        for _, parent, child, layer in list(_norms(network)) if network else ():
            if isinstance(layer, InstanceNorm):
                setattr(parent, child, _Pooled(self))

    @contextmanager
    def counting(self, inside: Tensor) -> Iterator[None]:
        """Run the block with statistics over the pixels where `inside`, (B, 1, H, W), is 1 and not 0."""
        self._weights = None if bool(inside.all()) else inside.float()
        try:
            yield
        finally:
            self._weights = None

    def normalise(self, features: Tensor) -> Tensor:
        """Return (B, C, H, W) with mean 0 and variance 1 in each channel over the batch."""
        exact = features.float()
        if self._weights is None:
            return batch_norm(exact, None, None, training=True, eps=_EPSILON).to(features.dtype)
        weights = adaptive_avg_pool2d(self._weights, (exact.shape[-2], exact.shape[-1]))
        total = weights.sum().clamp_min(1e-6)
        apart = exact - (exact * weights).sum(dim=(0, 2, 3), keepdim=True) / total
        variance = (apart.square() * weights).sum(dim=(0, 2, 3), keepdim=True) / total
        return (apart * torch.rsqrt(variance + _EPSILON)).to(features.dtype)


class _Pooled(InstanceNorm):
    """A normalisation layer of `PooledNorms`."""

    def __init__(self, norms: PooledNorms) -> None:
        super().__init__()
        self._norms = norms

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, H, W), see `PooledNorms.normalise`."""
        return self._norms.normalise(features)


class _Fixed(nn.Module):
    """A normalisation layer whose statistics are fixed."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, H, W), scaled and shifted channel by channel."""
        scaled: Tensor = features * self.scale + self.shift
        return scaled


@torch.inference_mode()
def measure(network: nn.Module, sample: Tensor, weights: Tensor) -> dict[str, tuple[list[float], list[float]]]:
    """Measure the statistics of every normalisation layer over a sample of a slide.

    Parameters
    ----------
    network
        With layers of `wsiscore.networks.blocks.InstanceNorm` or `SampleNorm`; left as it is.
    sample
        (N, 3, H, W) in [-1, 1].
    weights
        (N, 1, H, W) in [0, 1]: 0 beyond the slide and in the margins of tiles.

    Returns
    -------
    By the name of a layer the mean and the reciprocal standard deviation of each channel; empty if it never ran.
    """
    twin = copy.deepcopy(network).eval()
    layers = {}
    for name, parent, child, layer in list(_norms(twin)):
        layers[name] = _Measuring(layer, weights)
        setattr(parent, child, layers[name])
    twin(sample)
    return {name: (layer.mean.cpu().tolist(), layer.scale.cpu().tolist()) for name, layer in layers.items()}


@torch.no_grad()
def frozen(network: nn.Module, statistics: Statistics) -> nn.Module:
    """Return a copy of a network whose normalisation has these fixed statistics.

    A layer right behind a convolution is folded into it, and costs nothing any more.

    Parameters
    ----------
    network, statistics
        As for `measure`, and what that returned.
    """
    twin = copy.deepcopy(network).eval()
    for name, parent, child, layer in list(_norms(twin)):
        mean, scale = (torch.tensor(values, dtype=torch.float32) for values in statistics[name])
        if not len(mean):
            continue  # a layer that the network never runs, as of a generator for the other direction
        weight = layer.weight.detach().cpu() if isinstance(layer, SampleNorm) else torch.ones_like(mean)
        bias = layer.bias.detach().cpu() if isinstance(layer, SampleNorm) else torch.zeros_like(mean)
        scale, shift = scale * weight, bias - mean * scale * weight
        before = _before(parent, child)
        if before is not None:
            _fold(before, scale, shift)
            setattr(parent, child, nn.Identity())
        else:
            setattr(parent, child, _Fixed(scale, shift).to(_device(network)))
    return twin


def _norms(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Yield every normalisation layer: its name, the module it is in, its name there, and itself."""
    for name, parent in network.named_modules():
        for child, layer in parent.named_children():
            if isinstance(layer, InstanceNorm | SampleNorm):
                yield f"{name}.{child}".lstrip("."), parent, child, layer


def _before(parent: nn.Module, child: str) -> nn.Conv2d | nn.ConvTranspose2d | None:
    """Return the convolution right before a layer of a sequence, if there is one."""
    if not isinstance(parent, nn.Sequential):
        return None
    names = [name for name, _ in parent.named_children()]
    place = names.index(child)
    layer = getattr(parent, names[place - 1]) if place else None
    return layer if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) else None


def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, scale: Tensor, shift: Tensor) -> None:
    device = convolution.weight.device
    scale, shift = scale.to(device), shift.to(device)
    shape = (1, -1, 1, 1) if isinstance(convolution, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    old = torch.zeros_like(scale) if convolution.bias is None else convolution.bias
    convolution.weight = nn.Parameter(convolution.weight * scale.view(shape), requires_grad=False)
    convolution.bias = nn.Parameter(old * scale + shift, requires_grad=False)


def _affine(layer: nn.Module, features: Tensor) -> Tensor:
    if isinstance(layer, SampleNorm):
        return torch.addcmul(layer.bias[:, None, None], features, layer.weight[:, None, None])
    return features


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
