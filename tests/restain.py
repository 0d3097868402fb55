"""A family of another package, for tests: it turns an H&E picture into IHC by its colours alone, pixel for pixel.

Hematoxylin becomes hematoxylin where there is little of it and DAB where there is much. Right about nothing, but
plain, quick, free of seams, and with cells to count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiscore.models.card import Card
from wsiscore.models.contract import Family, GeneratorSpec
from wsiscore.models.store import write_model

SPEC = GeneratorSpec(
    "restain", ("red", "green", "blue"), mpp=0.5, tile_px=256, margin_px=16, multiple_px=8, dtype="uint8"
)
HE = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HEMATOXYLIN, DAB = np.array([0.65, 0.70, 0.29]), np.array([0.27, 0.57, 0.78])


@dataclass(frozen=True)
class Config:
    """Its one weight, before training."""

    start: float = 0.55


class Restain:
    """The generator; `cut` is the amount of hematoxylin from which a pixel turns brown."""

    device = "cpu"

    def __init__(self, spec: GeneratorSpec, cut: float) -> None:
        self.spec, self.cut = spec, cut

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return its weights by name."""
        return {"cut": np.array([self.cut], np.float32)}

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn (B, 3, H, W) RGB into (B, 3, H, W) in [0, 1]."""
        self.spec.check(tiles)
        density = -np.log10((np.moveaxis(tiles, 1, -1).astype(np.float32) + 1) / 256)
        blue = np.maximum(density @ np.linalg.inv(HE).astype(np.float32)[:, :1], 0)
        brown = 1 / (1 + np.exp(-30 * (blue - self.cut)))
        density = blue * ((1 - brown) * 0.8 * HEMATOXYLIN + brown * 1.2 * DAB)
        return np.moveaxis(10**-density, -1, 1).astype(np.float32)


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> Restain:
    """Return it with its weight, or with that of the configuration."""
    return Restain(spec, config.start if weights is None else float(weights["cut"][0]))


FAMILY = Family(name="restain", spec=SPEC, config=Config, build=build)


def write(folder: Path, start: float = 0.55) -> Path:
    """Write a model of this family."""
    card = Card(folder.name, "restain", "1", "A test.", "none", "nothing", SPEC, asdict(Config(start)))
    write_model(folder, card, {"cut": np.array([start], np.float32)})
    return folder
