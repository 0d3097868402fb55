"""The networks of IHCScoreGAN (appendix A.1 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsiscore.generators.ihcscoregan.config import Config, describe
from wsiscore.networks.blocks import ResidualBlock, down_block, up_block
from wsiscore.networks.generator import loaded

__all__ = ["Decoder", "DualUNet", "Encoder", "UNet", "k_branch"]


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


def k_branch(config: Config, weights: Mapping[str, Any] | None) -> UNet:
    """Return the encoder and K branch for inference, newly initialised if `weights` is None.

    Raises
    ------
    ModelError
        If the weights do not fit.
    """
    network = loaded(lambda: UNet(Encoder(config), Decoder(config, config.maps)), weights, describe(config))
    for layer in network.modules():
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            layer.inplace = True  # each skip passes a ReLU next, so the maps do not change
    return network
