"""TDKstain: H&E to virtual IHC that keeps nuclei and stain intensity where they are (Peng et al., MICCAI 2024).

Two losses are added to L1. A density estimator E predicts the density of nuclei from the features of the encoder, and
its prediction on the generated IHC must match the true nuclei. In the region with DAB, the generator must predict the
image of DAB alone from the masked H&E.

Choices where the paper gives no details:

- E resizes the features of the three downsamplings to the middle scale and concatenates them; a convolution, residual
  blocks and a last convolution follow, and the map is upsampled.
- Adversarial losses are summed over the discriminator's scales; L2 distances are mean squares.
- Nuclei are detected by the family hdab instead of Otsu's threshold and Cellpose. DAB structures thinner than a nucleus
  are removed first, so that brown nuclei count and brown membranes do not.
- The image of DAB alone has the default stain vector on white; H&E outside the mask is black.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss, mse_loss

from wsiscore.cells.maxima import local_maxima
from wsiscore.generators import hdab
from wsiscore.models.contract import Family, GeneratorSpec, option
from wsiscore.networks.blocks import InstanceNorm, ResidualBlock, ResNet
from wsiscore.networks.discriminators import MultiScaleDiscriminator
from wsiscore.networks.generator import NetworkGenerator, loaded
from wsiscore.networks.learner import frozen, total
from wsiscore.networks.pix2pix import PairRecipe, read_resnet
from wsiscore.stain import Stain

__all__ = [
    "FAMILY",
    "SPEC",
    "Config",
    "DensityEstimator",
    "Recipe",
    "build",
    "derived",
    "membrane_mask",
    "read_published",
]

SPEC = GeneratorSpec(
    family="tdkstain",
    channels=("red", "green", "blue"),
    mpp=0.5,
    tile_px=1024,
    margin_px=64,
    multiple_px=16,  # three downsamplings, and reflection padding needs two pixels
    dtype="uint8",
)
PAIRS = ("he", "ihc")

_DOWNSAMPLINGS = 3
_DENSITY_SIGMA_PX = 11.0
_MEMBRANE_PX = 11  # DAB structures that contain no disc of this diameter, 5.5 µm, are not nuclei


@dataclass(frozen=True, slots=True)
class Config:
    """Size of the generator, and options of its training; the metadata of each field describes it."""

    width: int = option(64, "channels at full size; each of the three downsamplings doubles them")
    blocks: int = option(9, "residual blocks")
    l1: float = option(10.0, "weight of the mean absolute difference")
    membrane: float = option(10.0, "weight of the loss on DAB from masked H&E; 0 is the ablation of table 1")
    nuclei: float = option(10.0, "weight of the loss on nuclei that E finds; 0 is the ablation of table 1")
    density: float = option(10.0, "weight of E's own loss")
    adversarial: float = option(1.0, "weight of the adversarial loss")
    saturation: float = option(0.2, "least saturation of DAB in the mask, in [0, 1]; 0.2 is an OD of 0.19")
    scales: int = option(3, "scales of the discriminator")
    discriminator_width: int = option(64, "channels of the first layer of the discriminator")
    density_width: int = option(128, "channels of E")
    density_blocks: int = option(4, "residual blocks of E")
    rate: float = option(2e-4, "learning rate")
    decay: float = option(0.5, "fraction of the steps, at the end, over which the learning rate falls to 0")

    def __post_init__(self) -> None:
        if min(self.width, self.discriminator_width, self.density_width, self.scales) < 1:
            raise ValueError(f"widths and scales are at least 1, got {self}")
        if min(self.blocks, self.density_blocks) < 0:
            raise ValueError(f"blocks and density_blocks are at least 0, got {self}")
        if not all(0 <= value <= 1 for value in (self.saturation, self.decay)):
            raise ValueError(f"saturation and decay lie in [0, 1], got {self}")


class DensityEstimator(nn.Module):
    """The paper's E: a density map of nuclei from the features of a generator.

    Parameters
    ----------
    inner
        Width of the generator.
    width, blocks
        Channels and residual blocks of E.
    """

    def __init__(self, inner: int, width: int, blocks: int) -> None:
        super().__init__()
        channels = sum(inner * 2**level for level in range(1, _DOWNSAMPLINGS + 1))
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            InstanceNorm(width),
            nn.ReLU(),
            *(ResidualBlock(width) for _ in range(blocks)),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return (B, 1, H, W), about 0 to 1, from the features that `ResNet.encode` returns for (B, 3, H, W)."""
        size = features[1].shape[2:]
        together = [interpolate(level, size=size, mode="bilinear", align_corners=False) for level in features]
        density = self.layers(torch.cat(together, dim=1)).float()
        return interpolate(density, scale_factor=4, mode="bilinear", align_corners=False)


def _generator(config: Config) -> ResNet:
    return ResNet(config.width, _DOWNSAMPLINGS, config.blocks)


def _description(config: Config) -> str:
    return f"family {SPEC.family!r} with width={config.width}, blocks={config.blocks}"


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return a generator of virtual IHC, newly initialised if `weights` is None.

    Raises
    ------
    ModelError
        If the weights do not fit, or there is no such device.
    """
    network = loaded(lambda: _generator(config), weights, _description(config))
    return NetworkGenerator(network, spec, device)


def derived(images: Mapping[str, npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[np.uint8]]:
    """Return images of the stain and the nuclei of IHC (section 2, domain knowledge).

    Parameters
    ----------
    images
        ``ihc``: (H, W, 3) in 0..255, sides multiples of 16 px, at about 0.5 µm/px.

    Returns
    -------
    dict
        ``dab``: (H, W, 3), DAB alone on white, the paper's K_M. ``density``: (H, W, 1), the centres of nuclei
        filtered by a Gaussian of σ 11 px and scaled to a maximum of 255, the paper's K_N.
    """
    stain = Stain.default()
    hematoxylin, dab = stain.separate(images["ihc"])
    thick = cv2.morphologyEx(
        dab, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_MEMBRANE_PX, _MEMBRANE_PX))
    )
    both = _transmitted([(hematoxylin, stain.hematoxylin), (np.asarray(thick, np.float32), stain.dab)])
    return {"dab": _transmitted([(dab, stain.dab)]), "density": _density(_nuclei(both))[..., None]}


def _transmitted(
    stains: list[tuple[npt.NDArray[np.float32], tuple[float, float, float]]],
) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) in 0..255: white light transmitted by stains, each (H, W) in OD with its vector."""
    od = np.stack([sum(amount * vector[channel] for amount, vector in stains) for channel in range(3)], axis=-1)
    return np.asarray(np.rint(255 * np.power(np.float32(10), -od)), np.uint8)


def _nuclei(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return an (H, W) mask of the centre pixels of the nuclei in (H, W, 3) RGB."""
    tile = np.ascontiguousarray(rgb.transpose(2, 0, 1))[None]
    spec, config = hdab.SPEC, hdab.Config()
    detector = hdab.Hdab(spec, config, Stain.default(), config.hematoxylin_od[1], config.dab_od[1])
    center = detector.for_slide(tile)(tile)[0, 0]
    peaks = local_maxima(center, round(hdab.RULES.radius_um / spec.mpp), hdab.RULES.threshold)
    _, _, _, centers = cv2.connectedComponentsWithStats(peaks.astype(np.uint8), connectivity=8)
    centers_mask = np.zeros(peaks.shape, np.bool_)
    x, y = np.rint(centers[1:]).astype(np.intp).T
    centers_mask[y, x] = True
    return centers_mask


def _density(centers_mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    density = cv2.GaussianBlur(
        centers_mask.astype(np.float32), (0, 0), _DENSITY_SIGMA_PX, borderType=cv2.BORDER_REFLECT
    )
    return np.asarray(np.rint(255 * density / max(float(density.max()), 1e-9)), np.uint8)


def membrane_mask(dab: Tensor, saturation: float) -> Tensor:
    """Return the paper's M, (B, 1, H, W) of 0 and 1: where the HSV saturation of DAB is at least a threshold.

    Parameters
    ----------
    dab
        Image of DAB alone, K_M, (B, 3, H, W) in [-1, 1].
    saturation
        Threshold in [0, 1].
    """
    light = (dab + 1) / 2
    most, least = light.amax(dim=1, keepdim=True), light.amin(dim=1, keepdim=True)
    return (most - least >= saturation * most).float()


class Recipe(PairRecipe):
    """The paper's objective (eq. 1 to 5) with least-squares losses; each step updates E, then D, then G.

    Parameters as for `wsiscore.models.contract.RecipeFactory`.
    """

    pair = PAIRS
    gan_mode = "lsgan"
    describe = staticmethod(_description)
    multiple_px = SPEC.multiple_px

    def make_networks(self) -> dict[str, nn.Module]:
        """Return the generator, the conditional discriminator, and E if its loss has a weight."""
        config: Config = self.config
        self._generator = _generator(config)
        networks: dict[str, nn.Module] = {
            "generator": self._generator,
            "discriminator": MultiScaleDiscriminator(config.scales, config.discriminator_width, 6),
        }
        if config.nuclei:
            networks["estimator"] = DensityEstimator(config.width, config.density_width, config.density_blocks)
        return networks

    def update(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update E, the discriminator, then the generator, and return the losses."""
        given, true = (images[name] for name in PAIRS)
        others: dict[str, Tensor] = {}
        if self.config.nuclei:
            others["density"] = self._estimator_step(true, images["density"])
        with self.mixed_precision():
            generated = self._generator(given)
        others["discriminator"] = self.discriminator_step(given, true, generated)
        losses = {
            "adversarial": self.adversarial_loss(given, generated),
            "l1": self.config.l1 * l1_loss(generated, true),
        }
        if self.config.membrane:
            mask = membrane_mask(images["dab"], self.config.saturation)
            with self.mixed_precision():
                dab = self._generator((given + 1) * mask - 1)
            losses["membrane"] = self.config.membrane * l1_loss(dab, images["dab"])
        if self.config.nuclei:
            losses["nuclei"] = self.config.nuclei * self._nuclei_loss(generated, images["density"])
        self.optimise("generator", total(losses))
        return others | losses

    def _estimator_step(self, true: Tensor, density: Tensor) -> Tensor:
        """Update E on true IHC and return its loss (eq. 1); the encoder gets no gradient."""
        with self.mixed_precision():
            with torch.no_grad():
                features = self._generator.encode(true)
            found = self.networks["estimator"](features)
        loss: Tensor = self.config.density * mse_loss(found, (density + 1) / 2)
        self.optimise("estimator", loss)
        return loss

    def _nuclei_loss(self, generated: Tensor, density: Tensor) -> Tensor:
        """Return the squared error of E on generated IHC (eq. 3); E gets no gradient."""
        estimator = self.networks["estimator"]
        with frozen(estimator), self.mixed_precision():
            found = estimator(self._generator.encode(generated))
        return mse_loss(found, (density + 1) / 2)


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read the published program's generator.

    Parameters
    ----------
    path
        ``latest_net_G.pth``: the state dict of a ResNet with three downsamplings and instance normalisation.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is another network.
    """
    description = "a generator of TDKstain (a ResNet with 3 downsamplings and instance normalisation)"
    width, blocks, weights = read_resnet(path, lambda width, blocks: _generator(Config(width, blocks)), description)
    return Config(width=width, blocks=blocks), weights


FAMILY = Family(
    name=SPEC.family,
    spec=SPEC,
    config=Config,
    build=build,
    recipe=Recipe,
    pairs=PAIRS,
    derived=derived,
    read_published=read_published,
    renamed={"judge_width": "discriminator_width"},
)
