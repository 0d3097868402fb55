"""What decides the weights of a training, whatever the family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["TrainSettings"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the weights, whatever the family.

    Parameters
    ----------
    family
        Name of the generator family.
    config
        Its `Config`, by field.
    steps, batch, crop_px
        Gradient steps, items per step (in each process), and the side of an item in pixels.
    seed
        Of the initial weights and of sampling.
    start
        SHA-256 of the weights of the model to start from, or None.

    Raises
    ------
    ValueError
        If steps, batch or crop_px is less than 1.
    """

    family: str
    config: Mapping[str, Any]
    steps: int
    batch: int
    crop_px: int
    seed: int
    start: str | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.crop_px) < 1:
            raise ValueError(f"steps, batch and crop_px are at least 1, got {self}")
