"""IHCScoreGAN: unsupervised Ki67 scoring with a two-branch generator (Molnar et al.).

An encoder reads the tile. A colour decoder generates a mask with one colour for each class of nuclei, and a second
decoder, the K branch, generates the centre map and the two class maps. The colour decoder is needed in training only:
a model stores and runs the encoder and the K branch, which saves 40 % of the arithmetic and gives the same maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from wsiscore.cells.rules import CenterRules
from wsiscore.errors import ModelError
from wsiscore.models.contract import Family, GeneratorSpec, TargetRules, option
from wsiscore.networks.blocks import ResidualBlock, down_block, up_block
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
from wsiscore.networks.known_maps import fitted, known_losses, map_loss
from wsiscore.networks.learner import Learner, frozen, optimiser_step, to_bytes, total
from wsiscore.networks.slide_norm import PooledNorms

__all__ = ["FAMILY", "SPEC", "Config", "Decoder", "DualUNet", "Encoder", "Recipe", "UNet", "build", "read_published"]

SPEC = GeneratorSpec(
    family="ihcscoregan",
    channels=("center", "positive", "negative"),
    mpp=0.5,
    tile_px=256,
    margin_px=32,
    multiple_px=32,  # four downsamplings, and reflection padding needs two pixels
    # The paper's threshold 0.5 on tanh, and its window of 25 px, a radius of 12 px or 6 µm.
    rules=CenterRules(threshold=0.75, radius_um=6.0),
)


@dataclass(frozen=True, slots=True)
class Config:
    """Size of the generator, and options of its training; the metadata of each field describes it."""

    width: int = option(64, "channels of the first level; the next three have 2, 4 and 8 times as many")
    blocks: int = option(4, "residual blocks at the end of the encoder and at the start of each decoder")
    maps: Literal[3, 4] = option(3, "maps of the K branch; the fourth is of nuclei other than the tumour's")
    norm: Literal["tile", "slide"] = option(
        "tile", "statistics of the normalisation: of each tile, or of the slide (in training, of all crops of a step)"
    )
    detach: Literal["all", "bottleneck", "none"] = option(
        "all", "inputs of the K branch that are detached: the paper's, the published program's, or an ablation"
    )
    color_variation: bool = option(True, "give each nucleus of a coloured mask its own brightness")
    center: Literal["peak", "distance"] = option(
        "peak", "centre map: one peak for each nucleus, or the paper's distance map"
    )
    others: float = option(1.0, "height of the centre map on rendered nuclei of stroma and lymphocytes, in [0, 1]")
    warm_fraction: float = option(0.5, "fraction of the steps trained on rendered labels; all without real tiles")
    warm_rate: float = option(1e-3, "learning rate of the warm start")
    rate: float = option(2e-4, "learning rate of the adversarial stage")
    decay: float = option(0.5, "fraction of each stage, at its end, over which the learning rate falls to 0")
    cycle: float = option(10.0, "weight of cycle consistency, the paper's lambda")
    adversarial: float = option(1.0, "weight of the adversarial loss, the paper's beta")
    identity: float = option(5.0, "weight of the identity terms, the paper's gamma: 10, times 0.5 as published")
    supervised: float = option(0.0, "weight of the K branch's loss on rendered tiles in the adversarial stage")
    discriminator_width: int = option(64, "channels of the first layer of the discriminators")

    def __post_init__(self) -> None:
        if self.width < 1 or self.blocks < 0 or self.discriminator_width < 1:
            raise ValueError(f"width is at least 1 and blocks 0, got {self.width} and {self.blocks}")
        if self.detach not in ("all", "bottleneck", "none") or self.center not in ("peak", "distance"):
            raise ValueError(f"detach is all, bottleneck or none and center peak or distance, got {self}")
        if self.maps not in (3, 4) or self.norm not in ("tile", "slide"):
            raise ValueError(f"maps is 3 or 4 and norm tile or slide, got {self}")
        if not all(0 <= value <= 1 for value in (self.warm_fraction, self.decay, self.others)):
            raise ValueError(f"warm_fraction, decay and others lie in [0, 1], got {self}")


class Encoder(nn.Module):
    """Four downsamplings, then residual blocks (appendix A.1 of the paper)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w = config.width
        self.down = nn.ModuleList(
            [
                nn.Conv2d(3, w, 4, stride=2, padding=1),
                *(down_block(w * factor, 2 * w * factor) for factor in (1, 2, 4)),
            ]
        )
        self.tail = nn.Sequential(*(ResidualBlock(8 * w) for _ in range(config.blocks)))

    def forward(self, tiles: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode (B, 3, H, W) tiles in [-1, 1].

        Returns
        -------
        features
            (B, 8 width, H/16, W/16).
        skips
            Features after each downsampling, finest first: H/2 to H/16.
        """
        skips: list[Tensor] = []
        for down in self.down:
            tiles = down(tiles)
            skips.append(tiles)
        return self.tail(tiles), skips


class Decoder(nn.Module):
    """Residual blocks, then four upsamplings with skip connections from the encoder."""

    def __init__(self, config: Config, maps: int = 3) -> None:
        super().__init__()
        w = config.width
        self.head = nn.Sequential(*(ResidualBlock(8 * w) for _ in range(config.blocks)))
        self.up = nn.ModuleList(
            [
                *(up_block(2 * w * factor, w * factor // 2) for factor in (8, 4, 2)),
                nn.Sequential(nn.ReLU(inplace=True), nn.ConvTranspose2d(2 * w, maps, 4, stride=2, padding=1)),
            ]
        )

    def forward(self, features: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Turn an `Encoder`'s output into (B, maps, H, W) in [-1, 1]."""
        features = self.head(features)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            features = up(torch.cat([features, skip], dim=1))
        return torch.tanh(features.float())


class UNet(nn.Module):
    """One encoder and one decoder: the stored model, or the paper's inverse generator F.

    Parameters
    ----------
    encoder, decoder
        Of the same `Config`; used, not copied.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, tiles: Tensor) -> Tensor:
        """Turn (B, 3, H, W) in [-1, 1] into (B, 3, H, W) in [-1, 1]."""
        features, skips = self.encoder(tiles)
        maps: Tensor = self.decoder(features, skips)
        return maps


class DualUNet(nn.Module):
    """The paper's generator G, for training: one encoder, a colour decoder and a K decoder (figure 1b).

    Parameters
    ----------
    config
        Its size.
    detach
        Inputs of the K decoder that are detached: ``all`` (the paper), the ``bottleneck`` only (the published
        program), or ``none`` (the paper's ablation, table 5).
    """

    def __init__(self, config: Config, detach: Literal["all", "bottleneck", "none"] = "all") -> None:
        super().__init__()
        self.detach = detach
        self.encoder = Encoder(config)
        self.colour = Decoder(config)
        self.cells = Decoder(config, config.maps)

    def forward(self, tiles: Tensor, detach: str | None = None) -> tuple[Tensor, Tensor]:
        """Turn (B, 3, H, W) tiles in [-1, 1] into (colour masks, K maps), each (B, 3, H, W) in [-1, 1]."""
        features, skips = self.encoder(tiles)
        colour = self.colour(features, skips)
        detach = detach or self.detach
        if detach != "none":
            features = features.detach()
        if detach == "all":
            skips = [skip.detach() for skip in skips]
        return colour, self.cells(features, skips)

    def k_branch(self) -> UNet:
        """Return the part that a model stores and runs; it has the same weights."""
        return UNet(self.encoder, self.cells)


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return the encoder and K branch as a generator, newly initialised if `weights` is None.

    Raises
    ------
    ModelError
        If the weights do not fit, or there is no such device.
    """
    network = loaded(lambda: UNet(Encoder(config), Decoder(config, config.maps)), weights, _description(config))
    for layer in network.modules():
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            layer.inplace = True  # each skip passes a ReLU next, so the maps do not change
    return NetworkGenerator(network, spec, device)


def _description(config: Config) -> str:
    maps = f", maps={config.maps}" if config.maps != 3 else ""
    return f"family {SPEC.family!r} with width={config.width}, blocks={config.blocks}{maps}"


class Recipe(Learner):
    """The paper's objective (eq. 1 to 7) with least-squares losses, after supervised training on rendered tiles.

    The supervised stage trains the K branch and, if there are real tiles, the colour decoder and the inverse generator
    F. Without real tiles it is the only stage and trains the K branch only. Parameters as for
    `wsiscore.models.contract.RecipeFactory`.
    """

    multiple_px = SPEC.multiple_px

    def __init__(
        self, config: Config, *, steps: int, seed: int, device: str, tiles: bool, start: Mapping[str, Any] | None
    ) -> None:
        self.config = config
        self.targets = TargetRules(config.center, config.color_variation, config.others, config.maps)
        self._tiles, self._steps = tiles, steps
        self._warm = round(steps * config.warm_fraction) if tiles else steps
        self._device = torch.device(pick_device(device))
        self.networks = initialised(self._build, seed).to(self._device)
        if start is not None:
            load_weights(self._g.k_branch(), fitted(start, config.blocks, config.maps), _description(config))
        self._norms = PooledNorms(self._g if config.norm == "slide" else None)
        parts = dict(self.networks.named_children())
        self._discriminators = [part for name, part in parts.items() if name.startswith("discriminator")]
        generators = [part for name, part in parts.items() if not name.startswith("discriminator")]
        self.optimisers = [
            torch.optim.Adam((p for part in group for p in part.parameters()), config.rate, betas=(0.5, 0.999))
            for group in (generators, self._discriminators)
            if group
        ]

    def _build(self) -> nn.ModuleDict:
        self._g = DualUNet(self.config, self.config.detach)
        parts: dict[str, nn.Module] = {"g": self._g}
        if self._tiles:
            parts["f"] = UNet(Encoder(self.config), Decoder(self.config))
            width = self.config.discriminator_width
            parts |= {f"discriminator_{domain}": PatchDiscriminator(width) for domain in "xyk"}
        return nn.ModuleDict(parts)

    def step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take gradient step `number` and return its losses by name."""
        if "known" in batch:
            return self._known_step(batch, number)
        images = {name: self.to_unit(tiles) for name, tiles in batch.items()}
        if number < self._warm:
            self.set_learning_rate(self.config.warm_rate, self.config.decay, number, 0, self._warm)
            losses = self._supervised(images)
            optimiser_step(self.optimisers[0], total(losses))
        else:
            self.set_learning_rate(self.config.rate, self.config.decay, number, self._warm, self._steps)
            losses = self._adversarial(images)
        return {name: loss.detach() for name, loss in losses.items()}

    def _known_step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take a step on annotated and rendered nuclei."""
        rate, decay, rise = self.config.warm_rate, self.config.decay, min(100, self._steps // 10)
        self.set_learning_rate(rate, decay, number, 0, self._steps, rise=rise)
        with self._norms.counting(batch["inside"].to(self._device)), self.mixed_precision():
            losses = known_losses(self._g.k_branch()(self.to_unit(batch["rgb"])), batch["maps"], batch["known"])
        optimiser_step(self.optimisers[0], total(losses), clip=1.0)
        return {name: loss.detach() for name, loss in losses.items()}

    def _supervised(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses on rendered tiles."""
        with self.mixed_precision():
            if not self._tiles:
                return {"rendered_k": map_loss(self._g.k_branch()(images["rgb"]), images["maps"])}
            colour, maps = self._g(images["rgb"], "none")
            return {
                "rendered_k": map_loss(maps, images["maps"]),
                "rendered_y": l1_loss(colour, images["colour"]),
                "rendered_x": l1_loss(self.networks["f"](images["colour"]), images["rgb"]),
            }

    def _adversarial(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update the generators, then the discriminators, and return the losses."""
        config, f = self.config, self.networks["f"]
        x, y, k = images["tiles"], images["mask_colour"], images["mask_maps"]
        with frozen(*self._discriminators), self.mixed_precision():
            (fake_y, fake_k), fake_x = self._g(x), f(y)
            (back_y, back_k), back_x = self._g(fake_x), f(fake_y)
            (same_y, same_k), same_x = self._g(y), f(x)
            fakes = {"x": fake_x, "y": fake_y, "k": fake_k}
            cycle = l1_loss(back_x, x) + l1_loss(back_y, y) + l1_loss(back_k, k)
            identity = l1_loss(same_x, x) + l1_loss(same_y, y) + l1_loss(same_k, k)
            losses = {
                "cycle": config.cycle * cycle,
                "adversarial": config.adversarial * self._gan_loss(fakes, real=True),
                "identity": config.identity * identity,
            }
            if config.supervised:
                losses["supervised"] = config.supervised * map_loss(self._g(images["rgb"], "none")[1], images["maps"])
        optimiser_step(self.optimisers[0], total(losses))
        with self.mixed_precision():
            loss = self._gan_loss({"x": x, "y": y, "k": k}, real=True)
            loss = loss + self._gan_loss({name: fake.detach() for name, fake in fakes.items()}, real=False)
        losses["discriminators"] = loss / 2
        optimiser_step(self.optimisers[1], losses["discriminators"])
        return losses

    def _gan_loss(self, images: Mapping[str, Tensor], *, real: bool) -> Tensor:
        """Return the sum of the adversarial losses of images by domain: x, y and k."""
        logits = (self.networks[f"discriminator_{domain}"](tiles) for domain, tiles in images.items())
        return torch.stack([gan_loss(each, real=real) for each in logits]).sum()

    def weights(self) -> dict[str, Any]:
        """Return the weights of the encoder and the K branch, which a model stores."""
        return weights_of(self._g.k_branch())

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tiles with the output of G and, if there are real tiles, masks with the output of F."""
        with torch.inference_mode(), self.mixed_precision():
            source = "tiles" if self._tiles else "rgb"
            x = self.to_unit(batch[source])
            colour, maps = self._g(x)
            shown = {source: x, "maps": maps[:, :3]}
            if self._tiles:
                y = self.to_unit(batch["mask_colour"])
                shown |= {"colour": colour, "mask_colour": y, "inverse": self.networks["f"](y)}
        return {name: to_bytes(images).cpu() for name, images in shown.items()}


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read the encoder and K branch from the published program's checkpoint.

    Parameters
    ----------
    path
        ``IHCScoreGAN_*.pt``: a dict whose ``genA2B`` is the state dict of G.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is another checkpoint.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint.get("genA2B") if isinstance(checkpoint, dict) else None
    first, last = "input.model.0.weight", "kp_output.model.1.weight"
    if not (isinstance(state, dict) and first in state and last in state):
        held = ", ".join(map(repr, list(checkpoint)[:3])) if isinstance(checkpoint, dict) else "no dict"
        raise ModelError(f"{path} is not an IHCScoreGAN checkpoint: it holds {held}; wanted 'genA2B'")
    blocks = len({name.split(".")[1] for name in state if name.startswith("kp_ext_f2.")})
    published = _published_names(blocks)
    if missing := [name for name in published if not isinstance(state.get(name), Tensor)]:
        raise ModelError(f"{path} is not a complete IHCScoreGAN checkpoint: {missing[0]!r} is missing")
    weights = {ours: state[theirs].float().numpy() for theirs, ours in published.items()}
    return Config(width=state[first].shape[0], blocks=blocks), weights


def _published_names(blocks: int) -> dict[str, str]:
    """Return the published name of each stored weight -> its name in this package."""
    layers = {"input.model.0": "encoder.down.0"}
    for level in (1, 2, 3):
        layers[f"down{level}.model.1"] = f"encoder.down.{level}.1"
        layers[f"kp_up{level}.model.1"] = f"decoder.up.{level - 1}.1"
    layers["kp_output.model.1"] = "decoder.up.3.1"
    for theirs, ours in (("ext_f1", "encoder.tail"), ("kp_ext_f2", "decoder.head")):
        for block in range(blocks):
            for from_, to in ((1, 0), (5, 3)):
                layers[f"{theirs}.{block}.conv_block.{from_}"] = f"{ours}.{block}.block.{to}"
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in layers.items() for kind in ("weight", "bias")}


def adapt(config: Config, spec: GeneratorSpec) -> GeneratorSpec:
    """Return the spec of a model of this configuration."""
    channels = (*(name for name in spec.channels if name != "other"), *("other",) * (config.maps - 3))
    return replace(spec, channels=channels, norm=config.norm)


FAMILY = Family(
    name=SPEC.family,
    spec=SPEC,
    config=Config,
    build=build,
    recipe=Recipe,
    read_published=read_published,
    adapt=adapt,
    from_truth=True,
    renamed={"judge_width": "discriminator_width", "warm_share": "warm_fraction"},
)
