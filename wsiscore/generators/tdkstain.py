"""TDKstain: H&E to virtual IHC that keeps nuclei and stain intensity where they are (Peng et al., MICCAI 2024).

Two things that a pathologist looks at are taught beside the pixels. A density estimator E reads the encoder's
features and tells where nuclei lie; E must find the true nuclei in what is painted. And where there is DAB, the
generator must paint from H&E the DAB alone, as strong as it is.

Where the paper is silent:

- E brings the features of the three halvings to the scale of the middle one, side by side; one convolution, the
  residual blocks and a last convolution follow, and the map is enlarged again.
- Adversarial losses are summed over the discriminator's scales; L2 distances are mean squares.
- Nuclei are found by this program's own stain-based cell finder instead of Otsu's threshold and Cellpose. Brown that
  is thinner than a nucleus is taken away first, so that it counts brown nuclei and passes over brown membranes.
- The picture of DAB alone is DAB of the published vector on white; H&E outside the mask is black.
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
from wsiscore.networks.blocks import InstanceNorm, MultiScaleJudge, ResidualBlock, ResNet
from wsiscore.networks.generator import NetworkGenerator, fill, fresh
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
    multiple_px=16,  # three halvings, and the residual blocks' reflected rim needs two pixels
    dtype="uint8",
)
PAIRS = ("he", "ihc")

_HALVINGS = 3
_DENSITY_SIGMA_PX = 11.0
_MEMBRANE_PX = 11  # brown that holds no disc of this diameter, 5.5 µm, is no nucleus


@dataclass(frozen=True, slots=True)
class Config:
    """The generator's size, and how it is trained; each field's metadata says what it is."""

    width: int = option(64, "channels at full size; each of the three halvings doubles them")
    blocks: int = option(9, "residual blocks")
    l1: float = option(10.0, "weight of the mean absolute difference")
    membrane: float = option(10.0, "weight of the DAB painted from masked H&E; 0 is the ablation of table 1")
    nuclei: float = option(10.0, "weight of the nuclei E finds in what is painted; 0 is the ablation of table 1")
    density: float = option(10.0, "weight of E's own loss")
    adversarial: float = option(1.0, "weight of the discriminator's verdict")
    saturation: float = option(0.2, "least saturation of DAB alone in the mask, in [0, 1]: 0.2 is an OD of 0.19")
    scales: int = option(3, "scales of the discriminator")
    judge_width: int = option(64, "channels of its first layer")
    density_width: int = option(128, "channels of E")
    density_blocks: int = option(4, "residual blocks of E")
    rate: float = option(2e-4, "learning rate")
    decay: float = option(0.5, "share at the end of the steps in which the learning rate falls to 0")

    def __post_init__(self) -> None:
        if min(self.width, self.judge_width, self.density_width, self.scales) < 1:
            raise ValueError(f"widths and scales are at least 1, got {self}")
        if min(self.blocks, self.density_blocks) < 0:
            raise ValueError(f"blocks and density_blocks are at least 0, got {self}")
        if not all(0 <= share <= 1 for share in (self.saturation, self.decay)):
            raise ValueError(f"saturation and decay lie in [0, 1], got {self}")


class DensityEstimator(nn.Module):
    """The paper's E: from the features of a generator's halvings to a map of how densely nuclei lie.

    Parameters
    ----------
    inner
        Channels of the generator at full size.
    width, blocks
        Channels and residual blocks of E.
    """

    def __init__(self, inner: int, width: int, blocks: int) -> None:
        super().__init__()
        channels = sum(inner * 2**level for level in range(1, _HALVINGS + 1))
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            InstanceNorm(width),
            nn.ReLU(),
            *(ResidualBlock(width) for _ in range(blocks)),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return (B, 1, H, W), about 0 to 1, of what `ResNet.encode` gives for (B, 3, H, W)."""
        size = features[1].shape[2:]
        together = [interpolate(level, size=size, mode="bilinear", align_corners=False) for level in features]
        density = self.layers(torch.cat(together, dim=1)).float()
        return interpolate(density, scale_factor=4, mode="bilinear", align_corners=False)


def _generator(config: Config) -> ResNet:
    return ResNet(config.width, _HALVINGS, config.blocks)


def _in_words(config: Config) -> str:
    return f"family {SPEC.family!r} with width={config.width}, blocks={config.blocks}"


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
    return NetworkGenerator(network, spec, device)


def derived(pictures: Mapping[str, npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[np.uint8]]:
    """Return what the IHC tells of stain and nuclei (section 2, domain knowledge).

    Parameters
    ----------
    pictures
        ``ihc``: (H, W, 3) in 0..255, sides multiples of 16 px, at about 0.5 µm/px.

    Returns
    -------
    dict
        ``dab``: (H, W, 3), its DAB alone, on white: K_M. ``density``: (H, W, 1), the nuclei's centres under
        Gaussians of σ 11 px, from 0 to 255 where they lie most densely: K_N.
    """
    stain = Stain.default()
    hematoxylin, dab = stain.separate(pictures["ihc"])
    thick = cv2.morphologyEx(
        dab, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_MEMBRANE_PX, _MEMBRANE_PX))
    )
    blue_and_brown = _lit([(hematoxylin, stain.hematoxylin), (np.asarray(thick, np.float32), stain.dab)])
    return {"dab": _lit([(dab, stain.dab)]), "density": _density(_nuclei(blue_and_brown))[..., None]}


def _lit(
    stains: list[tuple[npt.NDArray[np.float32], tuple[float, float, float]]],
) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) in 0..255: white light through stains, each (H, W) in OD with its vector."""
    od = np.stack([sum(amount * vector[channel] for amount, vector in stains) for channel in range(3)], axis=-1)
    return np.asarray(np.rint(255 * np.power(np.float32(10), -od)), np.uint8)


def _nuclei(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return (H, W): which pixels are the middle of a nucleus of (H, W, 3) in 0..255."""
    tile = np.ascontiguousarray(rgb.transpose(2, 0, 1))[None]
    spec, usual = hdab.SPEC, hdab.Config()
    finder = hdab.Hdab(spec, usual, Stain.default(), usual.hematoxylin_od[1], usual.dab_od[1])
    center = finder.for_slide(tile)(tile)[0, 0]
    peak = local_maxima(center, round(hdab.RULES.radius_um / spec.mpp), hdab.RULES.threshold)
    _, _, _, centres = cv2.connectedComponentsWithStats(peak.astype(np.uint8), connectivity=8)
    middle = np.zeros(peak.shape, np.bool_)
    x, y = np.rint(centres[1:]).astype(np.intp).T
    middle[y, x] = True
    return middle


def _density(middle: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    density = cv2.GaussianBlur(middle.astype(np.float32), (0, 0), _DENSITY_SIGMA_PX, borderType=cv2.BORDER_REFLECT)
    return np.asarray(np.rint(255 * density / max(float(density.max()), 1e-9)), np.uint8)


def membrane_mask(dab: Tensor, saturation: float) -> Tensor:
    """Return the paper's M, (B, 1, H, W) of 0 and 1: where DAB alone is at least as saturated as this (HSV).

    Parameters
    ----------
    dab
        K_M, (B, 3, H, W) in [-1, 1].
    saturation
        In [0, 1].
    """
    light = (dab + 1) / 2
    most, least = light.amax(dim=1, keepdim=True), light.amin(dim=1, keepdim=True)
    return (most - least >= saturation * most).float()


class Recipe(PairRecipe):
    """The paper's objective (eq. 1 to 5) with least-squares discriminators; each step teaches E, then D, then G.

    Parameters as in `wsiscore.models.contract.RecipeFactory`.
    """

    pair = PAIRS
    gan_loss = "squares"
    multiple_px = SPEC.multiple_px

    def what(self) -> str:
        """Return the generator in words, for an error text."""
        return _in_words(self.config)

    def make(self) -> dict[str, nn.Module]:
        """Return the generator, the discriminator that sees H&E beside IHC, and E if it has a weight."""
        config: Config = self.config
        self._generator = _generator(config)
        parts: dict[str, nn.Module] = {
            "generator": self._generator,
            "judge": MultiScaleJudge(config.scales, config.judge_width, 6),
        }
        if config.nuclei:
            parts["estimator"] = DensityEstimator(config.width, config.density_width, config.density_blocks)
        return parts

    def learn(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Teach E on true IHC, the discriminator, then the generator."""
        given, true = (at[name] for name in PAIRS)
        losses: dict[str, Tensor] = {}
        if self.config.nuclei:
            losses["density"] = self._estimate(true, at["density"])
        with self.mixed():
            painted = self._generator(given)
        losses["judge"] = self.judge(given, true, painted)
        painting = {"adversarial": self.convinced(given, painted), "l1": self.config.l1 * l1_loss(painted, true)}
        if self.config.membrane:
            mask = membrane_mask(at["dab"], self.config.saturation)
            with self.mixed():
                stained = self._generator((given + 1) * mask - 1)
            painting["membrane"] = self.config.membrane * l1_loss(stained, at["dab"])
        if self.config.nuclei:
            painting["nuclei"] = self.config.nuclei * self._misplaced(painted, at["density"])
        self.descend("generator", torch.stack(list(painting.values())).sum())
        return losses | painting

    def _estimate(self, true: Tensor, density: Tensor) -> Tensor:
        """Teach E one step and return its loss (eq. 1); the encoder does not learn from it."""
        with self.mixed():
            with torch.no_grad():
                features = self._generator.encode(true)
            found = self.networks["estimator"](features)
        loss: Tensor = self.config.density * mse_loss(found, (density + 1) / 2)
        self.descend("estimator", loss)
        return loss

    def _misplaced(self, painted: Tensor, density: Tensor) -> Tensor:
        """Return how far the nuclei that E finds in what is painted are off (eq. 3); E does not learn from it."""
        estimator = self.networks["estimator"].requires_grad_(False)
        with self.mixed():
            found = estimator(self._generator.encode(painted))
        estimator.requires_grad_(True)
        return mse_loss(found, (density + 1) / 2)


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read the published program's generator.

    Parameters
    ----------
    path
        ``latest_net_G.pth``: the state dict of a ResNet of three halvings without weights in its normalisation.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is not such a network.
    """
    what = "a generator of TDKstain (a ResNet of 3 halvings with instance normalisation)"
    width, blocks, weights = read_resnet(path, lambda width, blocks: _generator(Config(width, blocks)), what)
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
)
