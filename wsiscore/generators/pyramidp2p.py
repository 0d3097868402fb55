"""Pyramid pix2pix: H&E to virtual IHC, compared with the true IHC at several scales (Liu et al., BCI, 2022).

The sections of the two stains are registered, but not to the pixel. The training therefore adds to pix2pix's L1 loss
the differences at coarser scales, each obtained by four Gaussian blurs and subsampling by 2.

Batch normalisation uses running statistics, so a pixel depends on at most 87 px around it. Measured at width 8, pixels
more than 48 px away change less than 0.001 of a grey level: with the margin of `SPEC` there are no seams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import pad

from wsiscore.models.contract import Family, GeneratorSpec, option
from wsiscore.networks.blocks import ResNet, UNet
from wsiscore.networks.discriminators import PatchDiscriminator
from wsiscore.networks.generator import NetworkGenerator, loaded
from wsiscore.networks.learner import total
from wsiscore.networks.pix2pix import PairRecipe, read_resnet

__all__ = ["FAMILY", "SPEC", "Config", "Recipe", "build", "downsampled", "read_published"]

SPEC = GeneratorSpec(
    family="pyramidp2p",
    channels=("red", "green", "blue"),
    mpp=0.46,
    tile_px=1024,
    margin_px=64,
    multiple_px=8,  # two downsamplings, and reflection padding needs two pixels
    dtype="uint8",
)
PAIRS = ("he", "ihc")

_UNET_DOWNSAMPLINGS = 8
_BLURS = 4
_BESIDE = math.exp(-0.5)  # Gaussian of σ 1 px, one pixel from its centre
_KERNEL = (_BESIDE / (1 + 2 * _BESIDE), 1 / (1 + 2 * _BESIDE), _BESIDE / (1 + 2 * _BESIDE))


@dataclass(frozen=True, slots=True)
class Config:
    """Size of the generator, and options of its training; the metadata of each field describes it."""

    generator: Literal["resnet", "unet"] = option(
        "resnet", "the paper's network, or the U-Net of its table 1, for tiles of a multiple of 256 px"
    )
    width: int = option(64, "channels at full size; each downsampling doubles them")
    blocks: int = option(9, "residual blocks of the resnet")
    dropout: float = option(0.5, "dropout probability, in [0, 1)")
    l1: float = option(25.0, "weight of the mean absolute difference at full size")
    scale1: float = option(25.0, "the same at half size, the paper's S1; 0 disables it (table 3)")
    scale2: float = option(25.0, "the same at a quarter, S2")
    scale3: float = option(25.0, "the same at an eighth, S3")
    adversarial: float = option(1.0, "weight of the adversarial loss")
    rate: float = option(2e-4, "learning rate")
    decay: float = option(0.5, "fraction of the steps, at the end, over which the learning rate falls to 0")
    discriminator_width: int = option(64, "channels of the first layer of the discriminator")

    def __post_init__(self) -> None:
        if self.generator not in ("resnet", "unet"):
            raise ValueError(f"generator is resnet or unet, got {self.generator!r}")
        if self.width < 1 or self.blocks < 0 or self.discriminator_width < 1:
            raise ValueError(f"widths are at least 1 and blocks 0, got {self}")
        if not (0 <= self.dropout < 1 and 0 <= self.decay <= 1):
            raise ValueError(f"dropout lies in [0, 1) and decay in [0, 1], got {self}")


def _generator(config: Config) -> nn.Module:
    if config.generator == "unet":
        return UNet(config.width, _UNET_DOWNSAMPLINGS, nn.BatchNorm2d, config.dropout, bias=False)
    return _resnet(config)


def _resnet(config: Config) -> ResNet:
    return ResNet(config.width, 2, config.blocks, nn.BatchNorm2d, "reflect", config.dropout, bias=False)


def _description(config: Config) -> str:
    size = f"generator={config.generator}, width={config.width}, blocks={config.blocks}, dropout={config.dropout:g}"
    return f"family {SPEC.family!r} with {size}"


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return a generator of virtual IHC, newly initialised if `weights` is None.

    Raises
    ------
    ModelError
        If the weights do not fit, or there is no such device.
    """
    network = loaded(lambda: _generator(config), weights, _description(config))
    return NetworkGenerator(network, replace(spec, multiple_px=_multiple_px(config)), device)


def _multiple_px(config: Config) -> int:
    return 2**_UNET_DOWNSAMPLINGS if config.generator == "unet" else SPEC.multiple_px


def downsampled(images: Tensor) -> Tensor:
    """Return images at the next scale: four 3 × 3 Gaussian blurs of σ 1 px, then every second pixel (section 4.1).

    Parameters
    ----------
    images
        (B, C, H, W), H and W at least 2; edges are mirrored.

    Returns
    -------
    (B, C, ⌈H/2⌉, ⌈W/2⌉).
    """
    before, here, after = _KERNEL
    for _ in range(_BLURS):
        around = pad(images, (1, 1, 1, 1), mode="reflect")
        rows = before * around[:, :, :-2] + here * around[:, :, 1:-1] + after * around[:, :, 2:]
        images = before * rows[..., :-2] + here * rows[..., 1:-1] + after * rows[..., 2:]
    return images[:, :, ::2, ::2]


class Recipe(PairRecipe):
    """The paper's objective (eq. 1 to 5): a conditional adversarial loss and absolute differences at four scales.

    Parameters as for `wsiscore.models.contract.RecipeFactory`.
    """

    pair = PAIRS
    gan_mode = "vanilla"
    describe = staticmethod(_description)

    def make_networks(self) -> dict[str, nn.Module]:
        """Return the generator and the conditional PatchGAN discriminator."""
        self.multiple_px = _multiple_px(self.config)
        discriminator = PatchDiscriminator(self.config.discriminator_width, 6, nn.BatchNorm2d)
        return {"generator": _generator(self.config), "discriminator": discriminator}

    def update(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update the discriminator, then the generator, and return the losses."""
        given, true = (images[name] for name in PAIRS)
        with self.mixed_precision():
            generated = self.networks["generator"](given)
        discriminator = {"discriminator": self.discriminator_step(given, true, generated)}
        losses = {"adversarial": self.adversarial_loss(given, generated)} | self.pyramid_losses(true, generated)
        self.optimise("generator", total(losses))
        return discriminator | losses

    def pyramid_losses(self, true: Tensor, generated: Tensor) -> dict[str, Tensor]:
        """Return the weighted mean absolute difference at each scale with a weight above 0 (eq. 1, 4)."""
        weights = {name: float(getattr(self.config, name)) for name in ("l1", "scale1", "scale2", "scale3")}
        coarsest = max((level for level, weight in enumerate(weights.values()) if weight), default=-1)
        losses: dict[str, Tensor] = {}
        difference = generated - true  # blurs are linear, so the difference is blurred instead of both images
        for level, (name, weight) in enumerate(weights.items()):
            if level > coarsest:
                break
            difference = downsampled(difference) if level else difference
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
        If the file cannot be read, holds code, or is another network.
    """
    description = "a generator of pyramid pix2pix (a ResNet with 2 downsamplings and batch normalisation)"
    width, blocks, weights = read_resnet(
        path, lambda width, blocks: _resnet(Config(width=width, blocks=blocks)), description
    )
    return Config(width=width, blocks=blocks), weights


FAMILY = Family(
    name=SPEC.family,
    spec=SPEC,
    config=Config,
    build=build,
    recipe=Recipe,
    pairs=PAIRS,
    read_published=read_published,
    renamed={"judge_width": "discriminator_width"},
)
