"""Pyramid pix2pix: H&E to virtual IHC, compared with the true IHC at several scales (Liu et al., BCI, 2022).

Sections of the two stains lie well on each other but not pixel on pixel. So beside the pixels of pix2pix the training
compares coarser and coarser pictures, each four Gaussian blurs and a halving of the one before.

Batch normalisation uses the statistics of the training, so that what is painted depends on no more than the
surroundings, 87 px at most. Measured at width 8, what lies beyond 48 px changes less than 0.001 of a grey level: with
the margin given here tiles fit together without a seam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from wsiscore.models.contract import Family, GeneratorSpec, option
from wsiscore.networks.blocks import PatchJudge, ResNet, UNet
from wsiscore.networks.generator import NetworkGenerator, fill, fresh
from wsiscore.networks.pix2pix import PairRecipe, read_resnet

__all__ = ["FAMILY", "SPEC", "Config", "Recipe", "build", "halved", "read_published"]

SPEC = GeneratorSpec(
    family="pyramidp2p",
    channels=("red", "green", "blue"),
    mpp=0.46,
    tile_px=1024,
    margin_px=64,
    multiple_px=8,  # two halvings, and the residual blocks' reflected rim needs two pixels
    dtype="uint8",
)
PAIRS = ("he", "ihc")

_UNET_HALVINGS = 8
_BLURS = 4
_BESIDE = math.exp(-0.5)  # of a Gaussian with σ 1, one pixel from its middle
_KERNEL = (_BESIDE / (1 + 2 * _BESIDE), 1 / (1 + 2 * _BESIDE), _BESIDE / (1 + 2 * _BESIDE))


@dataclass(frozen=True, slots=True)
class Config:
    """The generator's size, and how it is trained; each field's metadata says what it is."""

    generator: Literal["resnet", "unet"] = option(
        "resnet", "what paints: the paper's, or the U-Net of its table 1, for tiles of a multiple of 256 px"
    )
    width: int = option(64, "channels at full size; each halving doubles them")
    blocks: int = option(9, "residual blocks of the resnet")
    dropout: float = option(0.5, "share of features dropped in training, in [0, 1)")
    l1: float = option(25.0, "weight of the mean absolute difference at full size")
    scale1: float = option(25.0, "the same at half size, the paper's S1; 0 leaves it out (table 3)")
    scale2: float = option(25.0, "the same at a quarter, S2")
    scale3: float = option(25.0, "the same at an eighth, S3")
    adversarial: float = option(1.0, "weight of the discriminator's verdict")
    rate: float = option(2e-4, "learning rate")
    decay: float = option(0.5, "share at the end of the steps in which the learning rate falls to 0")
    judge_width: int = option(64, "channels of the first layer of the discriminator")

    def __post_init__(self) -> None:
        if self.generator not in ("resnet", "unet"):
            raise ValueError(f"generator is resnet or unet, got {self.generator!r}")
        if self.width < 1 or self.blocks < 0 or self.judge_width < 1:
            raise ValueError(f"widths are at least 1 and blocks 0, got {self}")
        if not (0 <= self.dropout < 1 and 0 <= self.decay <= 1):
            raise ValueError(f"dropout lies in [0, 1) and decay in [0, 1], got {self}")


def _generator(config: Config) -> nn.Module:
    if config.generator == "unet":
        return UNet(config.width, _UNET_HALVINGS, nn.BatchNorm2d, config.dropout, bias=False)
    return _resnet(config)


def _resnet(config: Config) -> ResNet:
    return ResNet(config.width, 2, config.blocks, nn.BatchNorm2d, "reflect", config.dropout, bias=False)


def _in_words(config: Config) -> str:
    size = f"generator={config.generator}, width={config.width}, blocks={config.blocks}, dropout={config.dropout:g}"
    return f"family {SPEC.family!r} with {size}"


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return a generator of virtual IHC; without weights seeded afresh.

    Raises
    ------
    ModelError
        If the weights do not fit, or there is no such device.
    """
    network = fresh(lambda: _generator(config))
    if weights is not None:
        fill(network, weights, _in_words(config))
    return NetworkGenerator(network, replace(spec, multiple_px=_multiple_px(config)), device)


def _multiple_px(config: Config) -> int:
    return 2**_UNET_HALVINGS if config.generator == "unet" else SPEC.multiple_px


def halved(pictures: Tensor) -> Tensor:
    """Return pictures at the next scale: four 3 × 3 Gaussian blurs of σ 1, then every second pixel (section 4.1).

    Parameters
    ----------
    pictures
        (B, C, H, W), sides at least 2; mirrored beyond the edge.

    Returns
    -------
    (B, C, ⌈H/2⌉, ⌈W/2⌉).
    """
    before, here, after = _KERNEL
    for _ in range(_BLURS):
        around = pad(pictures, (1, 1, 1, 1), mode="reflect")
        rows = before * around[:, :, :-2] + here * around[:, :, 1:-1] + after * around[:, :, 2:]
        pictures = before * rows[..., :-2] + here * rows[..., 1:-1] + after * rows[..., 2:]
    return pictures[:, :, ::2, ::2]


class Recipe(PairRecipe):
    """The paper's objective (eq. 1 to 5): a conditional adversarial loss and absolute differences at four scales.

    Parameters as in `wsiscore.models.contract.RecipeFactory`.
    """

    pair = PAIRS
    gan_loss = "vanilla"

    def what(self) -> str:
        """Return the generator in words, for an error text."""
        return _in_words(self.config)

    def make(self) -> dict[str, nn.Module]:
        """Return the generator and the PatchGAN that sees H&E beside IHC."""
        self.multiple_px = _multiple_px(self.config)
        judge = PatchJudge(self.config.judge_width, 6, nn.BatchNorm2d)
        return {"generator": _generator(self.config), "judge": judge}

    def learn(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Teach the discriminator, then the generator."""
        given, true = (at[name] for name in PAIRS)
        with self.mixed():
            painted = self.networks["generator"](given)
        losses = {"judge": self.judge(given, true, painted)}
        painting = {"adversarial": self.convinced(given, painted)} | self.differences(true, painted)
        self.descend("generator", torch.stack(list(painting.values())).sum())
        return losses | painting

    def differences(self, true: Tensor, painted: Tensor) -> dict[str, Tensor]:
        """Return the weighted mean absolute difference at each scale of the pyramid that has a weight (eq. 1, 4)."""
        weights = {name: float(getattr(self.config, name)) for name in ("l1", "scale1", "scale2", "scale3")}
        coarsest = max((level for level, weight in enumerate(weights.values()) if weight), default=-1)
        losses: dict[str, Tensor] = {}
        difference = painted - true  # blurs are linear: the difference of the scales is the scale of the difference
        for level, (name, weight) in enumerate(weights.items()):
            if level > coarsest:
                break
            difference = halved(difference) if level else difference
            if weight:
                losses[name] = weight * difference.abs().mean()
        return losses


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read the published program's generator.

    Parameters
    ----------
    path
        ``latest_net_G.pth``: the state dict of a ResNet with dropout and batch normalisation.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is not such a network.
    """
    what = "a generator of pyramid pix2pix (a ResNet of 2 halvings with batch normalisation)"
    width, blocks, weights = read_resnet(path, lambda width, blocks: _resnet(Config(width=width, blocks=blocks)), what)
    return Config(width=width, blocks=blocks), weights


FAMILY = Family(
    name=SPEC.family,
    spec=SPEC,
    config=Config,
    build=build,
    recipe=Recipe,
    pairs=PAIRS,
    read_published=read_published,
)
