"""ATST-Net: H&E to virtual IHC with a pretrained transformer, taught by masks that the next section gives (Xu et al.).

A transformer with a convolutional decoder paints ER, PR, Ki67 or HER2 from H&E, a U-Net goes back, and two
discriminators look on (CycleGAN). Five auxiliary tasks compare what is painted with the IHC of the consecutive section,
which shows the same regions but not the same pixels.

No program is followed. Where the paper is silent the simplest is done:

- The decoder is CellViT's, the picture's own skip included, with instance normalisation below full size. The reverse
  generator is pix2pix's U-Net of 5 halvings. Tiles of any size are taken; positions are interpolated to it.
- Adversarial losses are least squares, as in CycleGAN; no identity terms, no store of earlier pictures.
- SSIM enters the cycle's loss as 1 - SSIM, added to the mean absolute difference.
- Masks are made of the share of light that DAB takes, 1 - 10^-OD, of the published stain vectors. Otsu's cut is not
  lower than that of 0.15 OD, so that a section without DAB has no positive region. The cut of a virtual picture is
  that of its section, and a steep logistic function stands for the threshold, so that a gradient passes.
- Erosion and dilation are by 1 px, and the closing takes squares.
- A patch's error (eq. 3) is the mean over its own pixels; there are 8 × 8 patches.
- Nuclei are counted without CPP-Net: peaks of hematoxylin, at the size of a nucleus, in the positive region; each
  counts as far as it stands out. The count (eq. 5) is that of 64 × 64 px, so that the size of a crop does not matter.
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
from wsiscore.networks.blocks import PatchJudge, UNet, descend, judged
from wsiscore.networks.generator import Learner, NetworkGenerator, fill, fresh, pick_device, read_checkpoint
from wsiscore.networks.stain_losses import MASK_SIGMA_PX, blurred, closed, dark, nuclei_count, soft_mask
from wsiscore.networks.vit import PRETRAINED_PX, TransformerUNet, VisionTransformer
from wsiscore.stain import Stain

__all__ = ["FAMILY", "SPEC", "BothWays", "Config", "Recipe", "build", "derived", "read_published"]

SPEC = GeneratorSpec(
    family="atst",
    channels=("red", "green", "blue"),
    mpp=0.5,
    tile_px=512,
    margin_px=32,
    multiple_px=32,  # the U-Net's halvings, and two tokens for the bottleneck's reflected rim
    dtype="uint8",
)
PAIRS = ("he", "ihc")

_HALVINGS = 5
_LEAST_DARK = 1 - 10**-0.15
_COUNTED_PX = 64.0


@dataclass(frozen=True, slots=True)
class Config:
    """The generators' size, and how they are trained; each field's metadata says what it is."""

    generator: Literal["transformer", "unet"] = option(
        "transformer", "what paints IHC; unet is the ablation of table 2"
    )
    width: int = option(64, "channels of decoder and U-Net at full size; deeper levels have up to 8 times as many")
    encoder_width: int = option(768, "channels of a token")
    depth: int = option(12, "blocks of the transformer, a multiple of 4")
    heads: int = option(0, "heads of each attention; 0: one for each 64 channels of a token")
    token_px: int = option(16, "side of the square that becomes a token: 8 or 16")
    blocks: int = option(5, "residual blocks at the bottleneck; 0 is the ablation of table 3")
    skips: bool = option(True, "join earlier tokens and the picture to the decoder; no is the ablation of table 3")
    reverse: bool = option(False, "run the model the other way, from IHC to H&E; changes nothing in training")
    rate: float = option(2e-4, "learning rate")
    decay: float = option(0.5, "share at the end of the steps in which the learning rate falls to 0")
    adversarial: float = option(1.0, "weight of the discriminators' verdict")
    cycle: float = option(5.0, "weight of cycle consistency, the paper's alpha")
    structure: float = option(1.0, "weight of 1 - SSIM within it")
    location: float = option(
        60.0, "weight of the positive region's error, L1; table 2 sets this and the next four to 0"
    )
    dense: float = option(10.0, "weight of the most positive patches' error, L2")
    sparse: float = option(10.0, "weight of the least positive patches' error, L3")
    intensity: float = option(20.0, "weight of the positive region's mean intensity, L4")
    nuclei: float = option(1.0, "weight of the number of positive nuclei, L5")
    patches: int = option(8, "patches along a side for L2 and L3, at least 2")
    closing_px: int = option(5, "reach of the masks' closing, larger for sections that lie less well on each other")
    judge_width: int = option(64, "channels of the first layer of the discriminators")

    def __post_init__(self) -> None:
        if self.generator not in ("transformer", "unet"):
            raise ValueError(f"generator is transformer or unet, got {self.generator!r}")
        if min(self.width, self.encoder_width, self.depth, self.judge_width) < 1 or self.depth % 4:
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
        """Heads of each attention."""
        return self.heads or max(1, self.encoder_width // 64)


class BothWays(nn.Module):
    """The two generators of a model: H&E to IHC, and back.

    Parameters
    ----------
    config
        Their sizes, and which of them runs.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.reverse = config.reverse
        self.to_ihc: nn.Module = UNet(config.width, _HALVINGS)
        if config.generator == "transformer":
            encoder = VisionTransformer(config.encoder_width, config.depth, config.n_heads, config.token_px)
            self.to_ihc = TransformerUNet(encoder, config.width, config.blocks, skips=config.skips)
        self.to_he = UNet(config.width, _HALVINGS)

    def forward(self, pictures: Tensor) -> Tensor:
        """Turn (B, 3, H, W) in [-1, 1] into the other stain, same shape and range."""
        painted: Tensor = self.to_he(pictures) if self.reverse else self.to_ihc(pictures)
        return painted


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return a generator of virtual IHC, or of virtual H&E if `config` says so; without weights seeded afresh.

    Raises
    ------
    ModelError
        If the weights do not fit, or there is no such device.
    """
    network = fresh(lambda: BothWays(config))
    if weights is not None:
        fill(network, weights, _in_words(config))
    return NetworkGenerator(network, spec, device)


def _in_words(config: Config) -> str:
    size = f"width={config.width}, encoder_width={config.encoder_width}, depth={config.depth}"
    return f"family {SPEC.family!r} with {size}, generator={config.generator}"


def derived(pictures: Mapping[str, npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the automatic mask of the positive region (eq. 1, but for the closing) and the cut that made it.

    Parameters
    ----------
    pictures
        ``ihc``: (H, W, 3) in 0..255.

    Returns
    -------
    dict
        ``mask``: (H, W, 1), 255 in the positive region, else 0. ``cut``: (H, W, 1), everywhere the share of light,
        in 0..255, that DAB takes at least in the positive region.
    """
    dab_od = Stain.default().separate(pictures["ihc"])[1]
    dark = cv2.GaussianBlur(1 - np.power(np.float32(10), -dab_od), (0, 0), MASK_SIGMA_PX)
    dark = np.asarray(dark * 255 + 0.5, np.uint8)
    otsu, _ = cv2.threshold(dark, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    cut = max(round(otsu), round(255 * _LEAST_DARK))
    mask = cv2.morphologyEx(np.where(dark > cut, np.uint8(255), np.uint8(0)), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return {"mask": np.asarray(mask, np.uint8)[..., None], "cut": np.full((*dark.shape, 1), cut, np.uint8)}


def ssim(pictures: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean structural similarity (Wang et al. 2004, σ 1.5 px) of (B, 3, H, W) in [-1, 1]."""
    x, y = (pictures.float() + 1) / 2, (wanted.float() + 1) / 2  # it takes means for light, which is above 0
    mean_x, mean_y = blurred(x, 1.5), blurred(y, 1.5)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance, variances = blurred(x * y, 1.5) - product, blurred(x * x + y * y, 1.5) - squares
    return ((2 * product + 1e-4) * (2 * covariance + 9e-4) / ((squares + 1e-4) * (variances + 9e-4))).mean()


class Recipe(Learner):
    """CycleGAN's objective with SSIM in the cycle and the five auxiliary tasks (eq. 2 to 6).

    Parameters as in `wsiscore.models.contract.RecipeFactory`; `tiles` changes nothing.
    """

    multiple_px = SPEC.multiple_px

    def __init__(
        self, config: Config, *, steps: int, seed: int, device: str, tiles: bool, start: Mapping[str, Any] | None
    ) -> None:
        del tiles
        self.config, self._steps = config, steps
        self._device = torch.device(pick_device(device))
        self.networks = fresh(self._build, seed).to(self._device)
        if start is not None:
            fill(self._both, start, _in_words(config))
        self._judges = nn.ModuleList([self.networks["judge_ihc"], self.networks["judge_he"]])
        self.optimisers = [
            torch.optim.Adam(part.parameters(), config.rate, betas=(0.5, 0.999)) for part in (self._both, self._judges)
        ]

    def _build(self) -> nn.ModuleDict:
        self._both = BothWays(self.config)
        judges = {f"judge_{stain}": PatchJudge(self.config.judge_width) for stain in ("ihc", "he")}
        return nn.ModuleDict({"both": self._both, **judges})

    def step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take gradient step `number` and return its losses by name."""
        config, both = self.config, self._both
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = config.rate * min(1.0, (self._steps - number) / max(self._steps * config.decay, 1))
        he, ihc = self._unit(batch["he"]), self._unit(batch["ihc"])
        mask, cut = (batch[name].to(self._device, non_blocking=True).float() / 255 for name in ("mask", "cut"))
        self._judges.requires_grad_(False)
        with self.mixed():
            fakes = {"ihc": both.to_ihc(he), "he": both.to_he(ihc)}
            back_he, back_ihc = both.to_he(fakes["ihc"]), both.to_ihc(fakes["he"])
            losses = {"adversarial": config.adversarial * self._verdict(fakes, real=True)}
        losses["cycle"] = config.cycle * (self._difference(back_he, he) + self._difference(back_ihc, ihc))
        losses |= self._auxiliary(fakes["ihc"], ihc, mask, cut)
        descend(self.optimisers[0], sum(losses.values()))
        self._judges.requires_grad_(True)
        with self.mixed():
            seen = self._verdict({"ihc": ihc, "he": he}, real=True)
            caught = self._verdict({stain: fake.detach() for stain, fake in fakes.items()}, real=False)
            losses["judges"] = (seen + caught) / 2
        descend(self.optimisers[1], losses["judges"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _difference(self, back: Tensor, wanted: Tensor) -> Tensor:
        difference = l1_loss(back, wanted)
        return difference + self.config.structure * (1 - ssim(back, wanted)) if self.config.structure else difference

    def _auxiliary(self, fake: Tensor, ihc: Tensor, mask: Tensor, cut: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses of the auxiliary tasks (eq. 2 to 5) that have a weight."""
        config = self.config
        mask = closed(mask, config.closing_px)
        (hematoxylin, dab), (fake_hematoxylin, fake_dab) = (torch.split(dark(at), 1, dim=1) for at in (ihc, fake))
        fake_mask = closed(soft_mask(fake_dab, cut), config.closing_px)
        losses: dict[str, Tensor] = {}
        square = (fake_mask - mask) ** 2
        if config.location:
            losses["location"] = config.location * square.mean()
        errors, areas = (adaptive_avg_pool2d(at, config.patches).flatten(1) for at in (square, mask))
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

    def _verdict(self, pictures: Mapping[str, Tensor], *, real: bool) -> Tensor:
        return torch.stack([judged(self.networks[f"judge_{s}"](at), real=real) for s, at in pictures.items()]).sum()

    def weights(self) -> dict[str, Any]:
        """Return the weights of both generators, which is what a model stores."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self._both.state_dict().items()}

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return H&E, IHC, virtual IHC, and virtual H&E."""
        with torch.inference_mode(), self.mixed():
            shown = {stain: self._unit(batch[stain]) for stain in PAIRS}
            shown |= {"virtual_ihc": self._both.to_ihc(shown["he"]), "virtual_he": self._both.to_he(shown["ihc"])}
        return {name: ((at.float() + 1) * 127.5).round().to("cpu", torch.uint8) for name, at in shown.items()}


def _mean_inside(values: Tensor, mask: Tensor) -> Tensor:
    """Return (B,): the mean of (B, 1, H, W) inside a mask, 0 where it is empty."""
    return (values * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) + 1)


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read a pretrained encoder, PathoDuet's or another ViT in timm's layout; all else is new and must be trained.

    What comes of it paints noise until ``wsiscore train --start`` has taught its decoder.

    The file is a state dict, or holds one under ``model``, ``state_dict`` or another name, with or without a prefix to
    its names. Positions are those of pictures of 224 px. A file without ``pretext_token`` gets a new one, at no
    position. Heads of classifiers are passed over.

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
        raise ModelError(f"{path} is not a vision transformer: it holds {held}; wanted '{_FIRST}' and the like")
    width, *_, token_px = state[_FIRST].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    try:
        config = Config(encoder_width=width, depth=depth, token_px=token_px)
    except ValueError as error:
        raise ModelError(f"{path} holds an encoder that does not fit: {error}") from error
    encoder = fresh(lambda: VisionTransformer(width, depth, config.n_heads, token_px))
    if "pretext_token" not in state and isinstance(position := state.get("pos_embed"), Tensor):
        state["pretext_token"] = encoder.pretext_token.detach()
        state["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    fill(encoder, state, f"an encoder of {PRETRAINED_PX} px in timm's layout ({path})")
    weights = fresh(lambda: BothWays(config)).state_dict()
    weights |= {f"to_ihc.encoder.{name}": value for name, value in encoder.state_dict().items()}
    return config, {name: value.numpy() for name, value in weights.items()}


_FIRST = "patch_embed.proj.weight"


def _encoder_state(held: Any) -> dict[str, Tensor]:
    """Return the encoder's weights by timm's names, from wherever they are in a checkpoint; empty if nowhere."""
    if not isinstance(held, dict):
        return {}
    for name, value in held.items():
        if str(name).endswith(_FIRST) and isinstance(value, Tensor) and value.ndim == 4:
            prefix = str(name).removesuffix(_FIRST)
            state = {str(key).removeprefix(prefix): at for key, at in held.items() if str(key).startswith(prefix)}
            if "norm.weight" not in state:  # where timm averages tokens, the same norm stands behind the average
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
    imported="Not trained yet, paints noise until `wsiscore train --start` has trained it: a pretrained encoder",
)
