"""A family of another package: darkness as centre map, scaled by one weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiscore.cells.rules import CenterRules
from wsiscore.errors import ModelError
from wsiscore.models.contract import Family, Generator, GeneratorSpec, option

SPEC = GeneratorSpec(
    "dots", ("center", "positive", "negative"), mpp=0.5, tile_px=64, margin_px=8, multiple_px=8, rules=CenterRules()
)


@dataclass(frozen=True)
class Config:
    """Options of the family."""

    start: float = option(0.5, "strength of a model that was not trained")


class Dots:
    """The generator."""

    device = "cpu"

    def __init__(self, spec: GeneratorSpec, strength: float) -> None:
        self.spec, self.strength = spec, strength

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the weights by name."""
        return {"strength": np.array([self.strength], np.float32)}

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn (B, 3, H, W) RGB into (B, 3, H, W) maps in [0, 1]."""
        right_shape = tiles.ndim == 4 and tiles.shape[1] == 3
        if tiles.dtype != np.uint8 or not right_shape or any(side % 8 for side in tiles.shape[2:]):
            raise ValueError(f"tiles are uint8 (B, 3, H, W), multiples of 8 px, got {tiles.dtype} {tiles.shape}")
        dark = 1 - tiles.mean(axis=1, dtype=np.float32) / 255
        center = np.minimum(dark * np.float32(self.strength), 1)
        return np.stack([center, dark, 1 - dark], axis=1)


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> Generator:
    """Return the generator, with the weights of a model or as the options say; it runs on the CPU alone."""
    del device
    if weights is None:
        return Dots(spec, config.start)
    if set(weights) != {"strength"}:
        raise ModelError("the weights are not those of family 'dots': 'strength' is missing")
    return Dots(spec, float(weights["strength"][0]))


FAMILY = Family(name="dots", spec=SPEC, config=Config, build=build)
