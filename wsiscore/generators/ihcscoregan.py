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

from wsiscore.errors import ModelError
from wsiscore.generators import CellRules, GeneratorSpec
from wsiscore.nets import NetworkGenerator, ResidualBlock, fill, fresh, read_checkpoint

__all__ = ["SPEC", "Config", "Decoder", "DualUNet", "Encoder", "UNet", "build", "read_published"]

SPEC = GeneratorSpec(
    family="ihcscoregan",
    channels=("center", "positive", "negative"),
    mpp=0.5,
    tile_px=256,
    margin_px=32,
    multiple_px=32,  # four halvings, and the bottleneck's reflected rim needs two pixels
    # The paper's threshold 0.5 on tanh, and its window of 25 px: 12 px, 6 µm, to each side.
    rules=CellRules(threshold=0.75, radius_um=6.0),
)


@dataclass(frozen=True, slots=True)
class Config:
    """The generator's size.

    Parameters
    ----------
    width
        Channels of the first level; the next three have 2, 4 and 8 times as many. 64 in the paper.
    blocks
        Residual blocks that end the encoder, and as many that begin each decoder. 4 in the published
        network (the paper's text has 8 of a single convolution).
    """

    width: int = 64
    blocks: int = 4

    def __post_init__(self) -> None:
        if self.width < 1 or self.blocks < 0:
            raise ValueError(f"width is at least 1 and blocks 0, got {self.width} and {self.blocks}")


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
                nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * w, 3, 4, stride=2, padding=1)),
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

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (B, 3, H, W) tiles in [-1, 1] into (colour masks, K maps), each (B, 3, H, W) in [-1, 1]."""
        features, skips = self.encoder(tiles)
        colour = self.colour(features, skips)
        if self.detach != "none":
            features = features.detach()
        if self.detach == "all":
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
    return NetworkGenerator(network, spec, device)


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
    return nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(inner, outer, 4, stride=2, padding=1), nn.InstanceNorm2d(outer))


def _up(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1), nn.InstanceNorm2d(outer))


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
