"""What IHCScoreGAN reads and gives, and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsiscore.cells.rules import CenterRules
from wsiscore.models.contract import GeneratorSpec, option

__all__ = ["SPEC", "Config", "describe"]

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


def describe(config: Config) -> str:
    """Return the generator of a config in words, for error texts."""
    maps = f", maps={config.maps}" if config.maps != 3 else ""
    return f"family {SPEC.family!r} with width={config.width}, blocks={config.blocks}{maps}"
