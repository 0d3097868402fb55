"""ATST-Net: H&E to virtual IHC with a pretrained transformer and auxiliary losses on positive regions (Xu et al.).

A transformer with a convolutional decoder generates ER, PR, Ki67 or HER2 from H&E, a U-Net generates H&E from IHC, and
there are two discriminators (CycleGAN). Five auxiliary losses compare the generated image with the IHC of the
consecutive section, which shows the same regions but not the same pixels.

No reference program is available. Choices where the paper gives no details:

- The decoder is that of CellViT, with a skip connection from the image and instance normalisation below full size. The
  reverse generator is pix2pix's U-Net with 5 downsamplings. Position embeddings are interpolated to the tile size.
- Adversarial losses are least squares, as in CycleGAN, without identity losses and image buffer.
- The cycle loss adds 1 - SSIM to the mean absolute difference.
- Masks threshold the absorption of DAB, 1 - 10^-OD, with the default stain vectors. Otsu's threshold is at least the
  absorption at 0.15 OD, so that a section without DAB has no positive region. A generated image is masked with the
  threshold of its section, and with a steep logistic function, which has a gradient.
- Erosion and dilation have a radius of 1 px; the closing uses squares.
- The loss of a patch (eq. 3) is the mean over its pixels; there are 8 × 8 patches.
- Nuclei are counted without CPP-Net, as peaks of hematoxylin of nuclear size in the positive region, weighted by their
  height. Counts (eq. 5) are per 64 × 64 px, so that the loss does not depend on the crop size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, l1_loss

from wsiscore.errors import ModelError
from wsiscore.models.contract import Family, GeneratorSpec, option
from wsiscore.networks.blocks import UNet
from wsiscore.networks.checkpoints import read_checkpoint
from wsiscore.networks.discriminators import PatchDiscriminator, gan_loss
from wsiscore.networks.generator import (
    NetworkGenerator,
    initialised,
    load_weights,
    loaded,
    pick_device,
    weights_of,
)
from wsiscore.networks.learner import Learner, frozen, optimiser_step, to_bytes, total
from wsiscore.networks.stain_losses import MASK_SIGMA_PX, absorption, blurred, closed, nuclei_count, soft_mask
from wsiscore.networks.vit import PRETRAINED_PX, TransformerUNet, VisionTransformer
from wsiscore.stain import Stain

__all__ = ["FAMILY", "SPEC", "BothWays", "Config", "Recipe", "build", "derived", "read_published"]

SPEC = GeneratorSpec(
    family="atst",
    channels=("red", "green", "blue"),
    mpp=0.5,
    tile_px=512,
    margin_px=32,
    multiple_px=32,  # the U-Net's downsamplings; reflection padding of the bottleneck needs two tokens
    dtype="uint8",
)
PAIRS = ("he", "ihc")

_DOWNSAMPLINGS = 5
_MIN_ABSORPTION = 1 - 10**-0.15
_COUNTED_PX = 64.0


@dataclass(frozen=True, slots=True)
class Config:
    """Size of the generators, and options of their training; the metadata of each field describes it."""

    generator: Literal["transformer", "unet"] = option(
        "transformer", "network that generates IHC; unet is the ablation of table 2"
    )
    width: int = option(64, "channels of decoder and U-Net at full size; deeper levels have up to 8 times as many")
    encoder_width: int = option(768, "channels of a token")
    depth: int = option(12, "blocks of the transformer, a multiple of 4")
    heads: int = option(0, "attention heads; 0: one for each 64 channels of a token")
    token_px: int = option(16, "side of a patch: 8 or 16")
    blocks: int = option(5, "residual blocks at the bottleneck; 0 is the ablation of table 3")
    skips: bool = option(True, "skip connections to the decoder; no is the ablation of table 3")
    reverse: bool = option(False, "run the model from IHC to H&E; no effect in training")
    rate: float = option(2e-4, "learning rate")
    decay: float = option(0.5, "fraction of the steps, at the end, over which the learning rate falls to 0")
    adversarial: float = option(1.0, "weight of the adversarial loss")
    cycle: float = option(5.0, "weight of the cycle loss, the paper's alpha")
    structure: float = option(1.0, "weight of 1 - SSIM in the cycle loss")
    location: float = option(
        60.0, "weight of the loss on the positive region, L1; table 2 sets this and the next four to 0"
    )
    dense: float = option(10.0, "weight of the loss on the most positive patches, L2")
    sparse: float = option(10.0, "weight of the loss on the least positive patches, L3")
    intensity: float = option(20.0, "weight of the loss on the mean DAB of the positive region, L4")
    nuclei: float = option(1.0, "weight of the loss on the number of positive nuclei, L5")
    patches: int = option(8, "patches along each side for L2 and L3, at least 2")
    closing_px: int = option(5, "radius of the closing of masks; larger for sections that are registered less well")
    discriminator_width: int = option(64, "channels of the first layer of the discriminators")

    def __post_init__(self) -> None:
        if self.generator not in ("transformer", "unet"):
            raise ValueError(f"generator is transformer or unet, got {self.generator!r}")
        if min(self.width, self.encoder_width, self.depth, self.discriminator_width) < 1 or self.depth % 4:
            raise ValueError(f"widths are at least 1 and depth is a multiple of 4, got {self}")
        if self.token_px not in (8, 16):
            raise ValueError(f"token_px is 8 or 16, got {self.token_px}")
        if self.encoder_width % 4 or self.encoder_width % self.n_heads:
            raise ValueError(
                f"encoder_width is a multiple of 4 and of the heads, got {self.encoder_width} and {self.n_heads}"
            )
        if min(self.blocks, self.heads, self.closing_px) < 0 or self.patches < 2 or not 0 <= self.decay <= 1:
            raise ValueError(
                f"blocks, heads and closing_px are at least 0, patches 2, decay lies in [0, 1], got {self}"
            )

    @property
    def n_heads(self) -> int:
        """Attention heads of each block."""
        return self.heads or max(1, self.encoder_width // 64)


class BothWays(nn.Module):
    """The two generators of a model: H&E to IHC, and back.

    Parameters
    ----------
    config
        Their sizes, and which of them the forward pass uses.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.reverse = config.reverse
        self.to_ihc: nn.Module = UNet(config.width, _DOWNSAMPLINGS)
        if config.generator == "transformer":
            encoder = VisionTransformer(config.encoder_width, config.depth, config.n_heads, config.token_px)
            self.to_ihc = TransformerUNet(encoder, config.width, config.blocks, skips=config.skips)
        self.to_he = UNet(config.width, _DOWNSAMPLINGS)

    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, 3, H, W) in [-1, 1] into the other stain, same shape and range."""
        generated: Tensor = self.to_he(images) if self.reverse else self.to_ihc(images)
        return generated


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return a generator of virtual IHC, or of H&E if `config.reverse`, newly initialised if `weights` is None.

    Raises
    ------
    ModelError
        If the weights do not fit, or there is no such device.
    """
    network = loaded(lambda: BothWays(config), weights, _description(config))
    return NetworkGenerator(network, spec, device)


def _description(config: Config) -> str:
    size = f"width={config.width}, encoder_width={config.encoder_width}, depth={config.depth}"
    return f"family {SPEC.family!r} with {size}, generator={config.generator}"


def derived(images: Mapping[str, npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the mask of the positive region (eq. 1, without the closing) and its threshold.

    Parameters
    ----------
    images
        ``ihc``: (H, W, 3) in 0..255.

    Returns
    -------
    dict
        ``mask``: (H, W, 1), 255 in the positive region, else 0. ``cut``: (H, W, 1), constant: the threshold of the
        absorption of DAB, scaled to 0..255.
    """
    dab_od = Stain.default().separate(images["ihc"])[1]
    absorbed = cv2.GaussianBlur(1 - np.power(np.float32(10), -dab_od), (0, 0), MASK_SIGMA_PX)
    absorbed = np.asarray(absorbed * 255 + 0.5, np.uint8)
    otsu, _ = cv2.threshold(absorbed, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    cut = max(round(otsu), round(255 * _MIN_ABSORPTION))
    above = np.where(absorbed > cut, np.uint8(255), np.uint8(0))
    mask = cv2.morphologyEx(above, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return {"mask": np.asarray(mask, np.uint8)[..., None], "cut": np.full((*absorbed.shape, 1), cut, np.uint8)}


def ssim(images: Tensor, target: Tensor) -> Tensor:
    """Return the mean structural similarity (Wang et al. 2004, σ 1.5 px) of (B, 3, H, W) in [-1, 1]."""
    x, y = (images.float() + 1) / 2, (target.float() + 1) / 2  # SSIM is defined for values above 0
    mean_x, mean_y = blurred(x, 1.5), blurred(y, 1.5)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance, variances = blurred(x * y, 1.5) - product, blurred(x * x + y * y, 1.5) - squares
    return ((2 * product + 1e-4) * (2 * covariance + 9e-4) / ((squares + 1e-4) * (variances + 9e-4))).mean()


class Recipe(Learner):
    """CycleGAN's objective with SSIM in the cycle loss and the five auxiliary losses (eq. 2 to 6).

    Parameters as for `wsiscore.models.contract.RecipeFactory`; `tiles` is ignored.
    """

    multiple_px = SPEC.multiple_px

    def __init__(
        self, config: Config, *, steps: int, seed: int, device: str, tiles: bool, start: Mapping[str, Any] | None
    ) -> None:
        del tiles
        self.config, self._steps = config, steps
        self._device = torch.device(pick_device(device))
        self.networks = initialised(self._build, seed).to(self._device)
        if start is not None:
            load_weights(self._both, start, _description(config))
        self._discriminators = nn.ModuleList(self.networks[f"discriminator_{stain}"] for stain in ("ihc", "he"))
        self.optimisers = [
            torch.optim.Adam(part.parameters(), config.rate, betas=(0.5, 0.999))
            for part in (self._both, self._discriminators)
        ]

    def _build(self) -> nn.ModuleDict:
        self._both = BothWays(self.config)
        width = self.config.discriminator_width
        discriminators = {f"discriminator_{stain}": PatchDiscriminator(width) for stain in ("ihc", "he")}
        return nn.ModuleDict({"both": self._both, **discriminators})

    def step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take gradient step `number` and return its losses by name."""
        config, both = self.config, self._both
        self.set_learning_rate(config.rate, config.decay, number, 0, self._steps)
        he, ihc = self.to_unit(batch["he"]), self.to_unit(batch["ihc"])
        mask, cut = (batch[name].to(self._device, non_blocking=True).float() / 255 for name in ("mask", "cut"))
        with frozen(self._discriminators), self.mixed_precision():
            fakes = {"ihc": both.to_ihc(he), "he": both.to_he(ihc)}
            back_he, back_ihc = both.to_he(fakes["ihc"]), both.to_ihc(fakes["he"])
            losses = {"adversarial": config.adversarial * self._gan_loss(fakes, real=True)}
        losses["cycle"] = config.cycle * (self._cycle_loss(back_he, he) + self._cycle_loss(back_ihc, ihc))
        losses |= self._auxiliary(fakes["ihc"], ihc, mask, cut)
        optimiser_step(self.optimisers[0], total(losses))
        with self.mixed_precision():
            loss = self._gan_loss({"ihc": ihc, "he": he}, real=True)
            loss = loss + self._gan_loss({stain: fake.detach() for stain, fake in fakes.items()}, real=False)
        losses["discriminators"] = loss / 2
        optimiser_step(self.optimisers[1], losses["discriminators"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _cycle_loss(self, back: Tensor, target: Tensor) -> Tensor:
        difference = l1_loss(back, target)
        return difference + self.config.structure * (1 - ssim(back, target)) if self.config.structure else difference

    def _auxiliary(self, fake: Tensor, ihc: Tensor, mask: Tensor, cut: Tensor) -> dict[str, Tensor]:
        """Return the weighted auxiliary losses (eq. 2 to 5) with a weight above 0."""
        config = self.config
        mask = closed(mask, config.closing_px)
        (hematoxylin, dab), (fake_hematoxylin, fake_dab) = (
            torch.split(absorption(images), 1, dim=1) for images in (ihc, fake)
        )
        fake_mask = closed(soft_mask(fake_dab, cut), config.closing_px)
        losses: dict[str, Tensor] = {}
        square = (fake_mask - mask) ** 2
        if config.location:
            losses["location"] = config.location * square.mean()
        errors, areas = (adaptive_avg_pool2d(values, config.patches).flatten(1) for values in (square, mask))
        for name, weight, largest in (("dense", config.dense, True), ("sparse", config.sparse, False)):
            if weight:
                chosen = areas.topk(config.patches**2 // 4, largest=largest).indices
                losses[name] = weight * errors.gather(1, chosen).mean()
        if config.intensity:
            wanted, found = _mean_inside(dab, mask), _mean_inside(fake_dab, fake_mask)
            losses["intensity"] = config.intensity * ((found - wanted) ** 2).mean()
        if config.nuclei:
            wanted, found = nuclei_count(hematoxylin * mask), nuclei_count(fake_hematoxylin * fake_mask)
            squares = mask[0].numel() / _COUNTED_PX**2
            losses["nuclei"] = config.nuclei * (found - wanted).abs().mean() / squares
        return losses

    def _gan_loss(self, images: Mapping[str, Tensor], *, real: bool) -> Tensor:
        """Return the sum of the adversarial losses of images by stain."""
        logits = (self.networks[f"discriminator_{stain}"](batch) for stain, batch in images.items())
        return torch.stack([gan_loss(each, real=real) for each in logits]).sum()

    def weights(self) -> dict[str, Any]:
        """Return the weights of both generators, which a model stores."""
        return weights_of(self._both)

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return H&E, IHC, virtual IHC, and virtual H&E."""
        with torch.inference_mode(), self.mixed_precision():
            shown = {stain: self.to_unit(batch[stain]) for stain in PAIRS}
            shown |= {"virtual_ihc": self._both.to_ihc(shown["he"]), "virtual_he": self._both.to_he(shown["ihc"])}
        return {name: to_bytes(images).cpu() for name, images in shown.items()}


def _mean_inside(values: Tensor, mask: Tensor) -> Tensor:
    """Return (B,): the mean of (B, 1, H, W) values inside a mask, 0 if it is empty."""
    return (values * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) + 1)


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read a pretrained encoder, PathoDuet's or another ViT in timm's layout; the other weights are newly initialised.

    The model generates noise until ``wsiscore train --start`` has trained its decoder.

    The file is a state dict, or contains one under ``model``, ``state_dict`` or another key, with or without a prefix
    to its names. Position embeddings are those for images of 224 px. If there is no ``pretext_token``, a new one
    without position embedding is added. Classifier heads are skipped.

    Parameters
    ----------
    path
        ``.pth`` file.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is not such an encoder.
    """
    checkpoint = read_checkpoint(path)
    state = _encoder_state(checkpoint)
    if not state:
        held = ", ".join(map(repr, list(checkpoint)[:3])) if isinstance(checkpoint, dict) else "no dict"
        raise ModelError(f"{path} is not a vision transformer: it holds {held}; wanted '{_FIRST}' and so on")
    width, *_, token_px = state[_FIRST].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    try:
        config = Config(encoder_width=width, depth=depth, token_px=token_px)
    except ValueError as error:
        raise ModelError(f"{path} holds an encoder that does not fit: {error}") from error
    encoder = initialised(lambda: VisionTransformer(width, depth, config.n_heads, token_px))
    if "pretext_token" not in state and isinstance(position := state.get("pos_embed"), Tensor):
        state["pretext_token"] = encoder.pretext_token.detach()
        state["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    load_weights(encoder, state, f"an encoder of {PRETRAINED_PX} px in timm's layout ({path})")
    weights = initialised(lambda: BothWays(config)).state_dict()
    weights |= {f"to_ihc.encoder.{name}": value for name, value in encoder.state_dict().items()}
    return config, {name: value.numpy() for name, value in weights.items()}


_FIRST = "patch_embed.proj.weight"


def _encoder_state(held: Any) -> dict[str, Tensor]:
    """Return the encoder's weights by timm's names, found at any depth of a checkpoint; empty if there are none."""
    if not isinstance(held, dict):
        return {}
    for name, value in held.items():
        if str(name).endswith(_FIRST) and isinstance(value, Tensor) and value.ndim == 4:
            prefix = str(name).removesuffix(_FIRST)
            state = {str(key).removeprefix(prefix): at for key, at in held.items() if str(key).startswith(prefix)}
            if "norm.weight" not in state:  # timm applies the norm after average pooling
                state = {key.replace("fc_norm.", "norm."): at for key, at in state.items()}
            return {key: at for key, at in state.items() if key.split(".")[0] not in _HEADS and isinstance(at, Tensor)}
    return next((state for value in held.values() if (state := _encoder_state(value))), {})


_HEADS = ("head", "head_dist", "fc_norm", "pre_logits")


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
    imported="Not trained yet, generates noise until `wsiscore train --start` has trained it: a pretrained encoder",
)
