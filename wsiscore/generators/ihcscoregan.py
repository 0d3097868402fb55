"""IHCScoreGAN: unsupervised Ki67 scoring with a two-branch generator (Molnar et al.).

An encoder reads the tile; a colour decoder paints each nucleus by class, and a second decoder, the K branch,
draws the centre map and the two class maps. The colour decoder serves training alone: a model stores and runs
the encoder and the K branch, which saves two fifths of the arithmetic and changes no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from wsiscore.cells.rules import CenterRules
from wsiscore.errors import ModelError
from wsiscore.models.contract import Family, GeneratorSpec, TargetRules, option
from wsiscore.networks.blocks import InstanceNorm, PatchJudge, ResidualBlock, descend, judged, map_error
from wsiscore.networks.generator import Learner, NetworkGenerator, fill, fresh, pick_device, read_checkpoint

__all__ = ["FAMILY", "SPEC", "Config", "Decoder", "DualUNet", "Encoder", "Recipe", "UNet", "build", "read_published"]

SPEC = GeneratorSpec(
    family="ihcscoregan",
    channels=("center", "positive", "negative"),
    mpp=0.5,
    tile_px=256,
    margin_px=32,
    multiple_px=32,  # four halvings, and the bottleneck's reflected rim needs two pixels
    # The paper's threshold 0.5 on tanh, and its window of 25 px: 12 px, 6 µm, to each side.
    rules=CenterRules(threshold=0.75, radius_um=6.0),
)


@dataclass(frozen=True, slots=True)
class Config:
    """The generator's size, and how it is trained; each field's metadata says what it is."""

    width: int = option(64, "channels of the first level; the next three have 2, 4 and 8 times as many")
    blocks: int = option(4, "residual blocks that end the encoder, and as many that begin each decoder")
    detach: Literal["all", "bottleneck", "none"] = option(
        "all", "inputs of the K branch its gradient does not pass: the paper's, the published program's, an ablation"
    )
    color_variation: bool = option(True, "give every nucleus of a coloured mask its own brightness")
    center: Literal["peak", "distance"] = option(
        "peak", "centre map: one clear peak a nucleus, or the paper's distance"
    )
    others: float = option(1.0, "height of the centre map on rendered nuclei of stroma and lymphocytes, in [0, 1]")
    warm_share: float = option(0.5, "share of the steps that learn from rendered truth; all of them without real tiles")
    warm_rate: float = option(1e-3, "learning rate of the warm start")
    rate: float = option(2e-4, "learning rate of the adversarial stage")
    decay: float = option(0.5, "share at the end of each stage in which its learning rate falls to 0")
    cycle: float = option(10.0, "weight of cycle consistency, the paper's lambda")
    adversarial: float = option(1.0, "weight of the discriminators' verdict, the paper's beta")
    identity: float = option(5.0, "weight of the identity terms, the paper's gamma: 10, times 0.5 as published")
    supervised: float = option(0.0, "weight of the K branch's error on rendered tiles in the adversarial stage")
    judge_width: int = option(64, "channels of the first layer of the discriminators")

    def __post_init__(self) -> None:
        if self.width < 1 or self.blocks < 0 or self.judge_width < 1:
            raise ValueError(f"width is at least 1 and blocks 0, got {self.width} and {self.blocks}")
        if self.detach not in ("all", "bottleneck", "none") or self.center not in ("peak", "distance"):
            raise ValueError(f"detach is all, bottleneck or none and center peak or distance, got {self}")
        if not all(0 <= share <= 1 for share in (self.warm_share, self.decay, self.others)):
            raise ValueError(f"warm_share, decay and others lie in [0, 1], got {self}")


class Encoder(nn.Module):
    """Four halvings, then residual blocks (appendix A.1 of the paper)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w = config.width
        self.down = nn.ModuleList(
            [
                nn.Conv2d(3, w, 4, stride=2, padding=1),
                *(_down(w * factor, 2 * w * factor) for factor in (1, 2, 4)),
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
            What each halving gave, finest first: H/2 to H/16.
        """
        skips: list[Tensor] = []
        for down in self.down:
            tiles = down(tiles)
            skips.append(tiles)
        return self.tail(tiles), skips


class Decoder(nn.Module):
    """Residual blocks, then four doublings, each fed the encoder's features of its scale."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w = config.width
        self.head = nn.Sequential(*(ResidualBlock(8 * w) for _ in range(config.blocks)))
        self.up = nn.ModuleList(
            [
                *(_up(2 * w * factor, w * factor // 2) for factor in (8, 4, 2)),
                nn.Sequential(nn.ReLU(inplace=True), nn.ConvTranspose2d(2 * w, 3, 4, stride=2, padding=1)),
            ]
        )

    def forward(self, features: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Turn an `Encoder`'s output into (B, 3, H, W) maps in [-1, 1]."""
        features = self.head(features)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            features = up(torch.cat([features, skip], dim=1))
        return torch.tanh(features.float())


class UNet(nn.Module):
    """One encoder and one decoder: the K branch at work, or the paper's inverse generator F.

    Parameters
    ----------
    encoder, decoder
        Of the same `Config`; held, not copied.
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
        What the K decoder's gradient does not pass: ``all`` of its inputs (the paper), the ``bottleneck``
        alone (the published program), or ``none`` (the paper's ablation, table 5).
    """

    def __init__(self, config: Config, detach: Literal["all", "bottleneck", "none"] = "all") -> None:
        super().__init__()
        self.detach = detach
        self.encoder = Encoder(config)
        self.colour = Decoder(config)
        self.cells = Decoder(config)

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
        """Return the part a model stores and runs, sharing the weights."""
        return UNet(self.encoder, self.cells)


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return the encoder and K branch as a generator; without weights seeded afresh.

    Raises
    ------
    ModelError
        If the weights do not fit, or there is no such device.
    """
    network = fresh(lambda: UNet(Encoder(config), Decoder(config)))
    if weights is not None:
        fill(network, weights, f"family {SPEC.family!r} with width={config.width}, blocks={config.blocks}")
    for layer in network.modules():
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            layer.inplace = True  # saves memory traffic; a skip changed so passes a ReLU next, which ends the same
    return NetworkGenerator(network, spec, device)


class Recipe(Learner):
    """The paper's objective (eq. 1 to 7) with least-squares discriminators, after a warm start on rendered truth.

    The warm start teaches the K branch, and with real tiles to come also the colour decoder and the inverse
    generator F, what is known of rendered tiles. Without real tiles it is all there is, and teaches the K branch
    alone. Parameters as in `wsiscore.models.contract.RecipeFactory`.
    """

    multiple_px = SPEC.multiple_px

    def __init__(
        self, config: Config, *, steps: int, seed: int, device: str, tiles: bool, start: Mapping[str, Any] | None
    ) -> None:
        self.config = config
        self.targets = TargetRules(config.center, config.color_variation, config.others)
        self._tiles, self._steps = tiles, steps
        self._warm = round(steps * config.warm_share) if tiles else steps
        self._device = torch.device(pick_device(device))
        self.networks = fresh(self._build, seed).to(self._device)
        if start is not None:
            fill(self._g.k_branch(), start, f"family {SPEC.family!r} with width={config.width}, blocks={config.blocks}")
        self._painters = [part for name, part in self.networks.named_children() if not name.startswith("judge")]
        self._judges = [part for name, part in self.networks.named_children() if name.startswith("judge")]
        self.optimisers = [
            torch.optim.Adam((p for part in parts for p in part.parameters()), config.rate, betas=(0.5, 0.999))
            for parts in (self._painters, self._judges)
            if parts
        ]

    def _build(self) -> nn.ModuleDict:
        self._g = DualUNet(self.config, self.config.detach)
        parts: dict[str, nn.Module] = {"g": self._g}
        if self._tiles:
            parts["f"] = UNet(Encoder(self.config), Decoder(self.config))
            parts |= {f"judge_{domain}": PatchJudge(self.config.judge_width) for domain in "xyk"}
        return nn.ModuleDict(parts)

    def step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take gradient step `number` and return its losses by name."""
        at = {name: self._unit(pictures) for name, pictures in batch.items()}
        first, last, rate = (0, self._warm, self.config.warm_rate)
        if number >= self._warm:
            first, last, rate = (self._warm, self._steps, self.config.rate)
        falling = max((last - first) * self.config.decay, 1)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (last - number) / falling)
        if number < self._warm:
            losses = self._rendered(at)
            descend(self.optimisers[0], sum(losses.values()))
        else:
            losses = self._adversarial(at)
        return {name: loss.detach() for name, loss in losses.items()}

    def _rendered(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the errors on rendered tiles, of which all is known."""
        with self.mixed():
            if not self._tiles:
                return {"rendered_k": map_error(self._g.k_branch()(at["rgb"]), at["maps"])}
            colour, maps = self._g(at["rgb"], "none")
            return {
                "rendered_k": map_error(maps, at["maps"]),
                "rendered_y": l1_loss(colour, at["colour"]),
                "rendered_x": l1_loss(self.networks["f"](at["colour"]), at["rgb"]),
            }

    def _adversarial(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        config, f = self.config, self.networks["f"]
        x, y, k = at["tiles"], at["mask_colour"], at["mask_maps"]
        for judge in self._judges:
            judge.requires_grad_(False)
        with self.mixed():
            (fake_y, fake_k), fake_x = self._g(x), f(y)
            (back_y, back_k), back_x = self._g(fake_x), f(fake_y)
            (same_y, same_k), same_x = self._g(y), f(x)
            fakes = {"x": fake_x, "y": fake_y, "k": fake_k}
            cycle = l1_loss(back_x, x) + l1_loss(back_y, y) + l1_loss(back_k, k)
            identity = l1_loss(same_x, x) + l1_loss(same_y, y) + l1_loss(same_k, k)
            convinced = self._verdict(fakes, real=True)
            losses = {
                "cycle": config.cycle * cycle,
                "adversarial": config.adversarial * convinced,
                "identity": config.identity * identity,
            }
            if config.supervised:
                losses["supervised"] = config.supervised * map_error(self._g(at["rgb"], "none")[1], at["maps"])
        descend(self.optimisers[0], sum(losses.values()))
        for judge in self._judges:
            judge.requires_grad_(True)
        with self.mixed():
            seen = self._verdict({"x": x, "y": y, "k": k}, real=True)
            caught = self._verdict({name: fake.detach() for name, fake in fakes.items()}, real=False)
            losses["judges"] = (seen + caught) / 2
        descend(self.optimisers[1], losses["judges"])
        return losses

    def _verdict(self, pictures: Mapping[str, Tensor], *, real: bool) -> Tensor:
        return torch.stack([judged(self.networks[f"judge_{d}"](at), real=real) for d, at in pictures.items()]).sum()

    def weights(self) -> dict[str, Any]:
        """Return the weights of the encoder and the K branch, which is what a model stores."""
        branch = self._g.k_branch().state_dict()
        return {name: value.detach().cpu().contiguous().numpy().copy() for name, value in branch.items()}

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what G makes of tiles, and F of masks where it is trained."""
        with torch.inference_mode(), self.mixed():
            source = "tiles" if self._tiles else "rgb"
            x = self._unit(batch[source])
            colour, maps = self._g(x)
            shown = {source: x, "maps": maps}
            if self._tiles:
                y = self._unit(batch["mask_colour"])
                shown |= {"colour": colour, "mask_colour": y, "inverse": self.networks["f"](y)}
        return {name: ((at.float() + 1) * 127.5).round().to("cpu", torch.uint8) for name, at in shown.items()}


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read the encoder and K branch from the published program's checkpoint.

    Parameters
    ----------
    path
        ``IHCScoreGAN_*.pt``: a dict whose ``genA2B`` is the state dict of G.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is not such a checkpoint.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint.get("genA2B") if isinstance(checkpoint, dict) else None
    first, last = "input.model.0.weight", "kp_output.model.1.weight"
    if not (isinstance(state, dict) and first in state and last in state):
        held = ", ".join(map(repr, list(checkpoint)[:3])) if isinstance(checkpoint, dict) else "no dict"
        raise ModelError(f"{path} is not an IHCScoreGAN checkpoint: it holds {held}; wanted 'genA2B'")
    blocks = len({name.split(".")[1] for name in state if name.startswith("kp_ext_f2.")})
    published = _published_names(blocks)
    if lost := [name for name in published if not isinstance(state.get(name), Tensor)]:
        raise ModelError(f"{path} is not a whole IHCScoreGAN checkpoint: {lost[0]!r} is missing")
    weights = {ours: state[theirs].float().numpy() for theirs, ours in published.items()}
    return Config(width=state[first].shape[0], blocks=blocks), weights


def _down(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(inner, outer, 4, stride=2, padding=1), InstanceNorm())


def _up(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(inplace=True), nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1), InstanceNorm()
    )


def _published_names(blocks: int) -> dict[str, str]:
    """Return the published name of each stored layer's weight and bias -> ours."""
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


FAMILY = Family(
    name=SPEC.family,
    spec=SPEC,
    config=Config,
    build=build,
    recipe=Recipe,
    read_published=read_published,
)
