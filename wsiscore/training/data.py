"""What a training step sees: every batch is a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsiscore.errors import SlideError
from wsiscore.models.contract import Recipe, TargetRules
from wsiscore.training.augment import (
    blank,
    counterstain,
    crop,
    cut_and_turn,
    defocus,
    disturb,
    fade,
    forget_unseen,
    inner,
)
from wsiscore.training.prepare import Pool
from wsiscore.training.targets import colour_mask, k_maps, random_classes, read_nuclei

__all__ = ["Draws", "Sources", "batches"]

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sources:
    """What is drawn from.

    Parameters
    ----------
    pool
        Rendered fields.
    tiles
        Pictures of real, unlabelled tiles; may be empty.
    masks
        Files of outlined nuclei for the target domain, of any tissue; where there are none, those of the pool.
    """

    pool: Pool
    tiles: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()

    @property
    def rendered(self) -> bool:
        """Whether all that is drawn is rendered."""
        return not self.tiles

    def draws(self, recipe: Recipe, *, batch: int, crop_px: int, seed: int, first: int) -> Draws:
        """Return the batches of a training."""
        return Draws(self, recipe.targets or TargetRules(), batch, crop_px, seed, first)

    def about(self) -> dict[str, Any]:
        """Return what decides the batches, JSON-ready."""
        return {
            "pool": asdict(self.pool.settings),
            "tiles": [str(path) for path in self.tiles],
            "masks": [str(path) for path in self.masks],
        }

    def in_words(self) -> str:
        """Return a sentence for the card."""
        words = [f"{len(self.pool)} rendered fields (seed {self.pool.settings.seed})"]
        if self.tiles:
            words.append(f"{len(self.tiles)} unlabelled tiles")
        if self.masks:
            words.append(f"{len(self.masks)} files of outlined nuclei")
        return f"Trained on {', '.join(words)}."

    def examples(self, most: int) -> Iterator[Picture]:
        """Yield evenly spread tiles, or rendered fields where there are none; (H, W, 3)."""
        paths: tuple[Any, ...] = self.tiles or tuple(range(len(self.pool)))
        for source in paths[:: -(-len(paths) // most)]:
            yield _read(source) if isinstance(source, Path) else self.pool.field(source)[0]


@dataclass(frozen=True, slots=True)
class Draws(Dataset[dict[str, Tensor]]):
    """Batches by the number of their step.

    Parameters
    ----------
    sources
        What is drawn from.
    targets
        How nuclei become maps.
    batch, crop_px
        Items a batch, and the side of each.
    seed
        Of all that is drawn.
    first
        Number of the first item in the step: other processes of the training draw the items before.
    """

    sources: Sources
    targets: TargetRules
    batch: int
    crop_px: int
    seed: int
    first: int = 0

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return one step's batch, name -> (B, 3, crop, crop) uint8, as `wsiscore.generators.Recipe` wants it."""
        cv2.setNumThreads(1)
        items = [self._item(np.random.default_rng([self.seed, step, self.first + i])) for i in range(self.batch)]
        return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}

    def _item(self, rng: np.random.Generator) -> dict[str, Picture]:
        rgb, cells = self._rendered(rng)
        inside = inner(cells[None])[0]
        rgb = defocus(rng, fade(rng, counterstain(rng, rgb, inside), inside), cells)
        rgb = disturb(rng, rgb)
        forget_unseen(rgb, cells)
        blank(rng, rgb, cells)
        item = {
            "rgb": np.ascontiguousarray(rgb.transpose(2, 0, 1)),
            "maps": inner(k_maps(cells, self.targets)),
        }
        if self.sources.tiles:
            item["colour"] = inner(colour_mask(cells, rng, self.targets.color_variation))
            item["tiles"] = self._tile(rng)
            item["mask_colour"], item["mask_maps"] = self._mask(rng)
        return item

    def _rendered(self, rng: np.random.Generator) -> tuple[Picture, npt.NDArray[np.int32]]:
        rgb, cells = self.sources.pool.field(int(rng.integers(len(self.sources.pool))))
        return cut_and_turn(rng, rgb, cells, self.crop_px)

    def _tile(self, rng: np.random.Generator) -> Picture:
        path = self.sources.tiles[int(rng.integers(len(self.sources.tiles)))]
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None or min(picture.shape[:2]) < self.crop_px:
            found = "cannot be read" if picture is None else f"is {picture.shape[1]} × {picture.shape[0]} px"
            raise SlideError(f"{path} {found}; wanted a picture of at least {self.crop_px} px a side")
        return np.ascontiguousarray(crop(rng, picture.astype(np.uint8)[..., ::-1], self.crop_px).transpose(2, 0, 1))

    def _mask(self, rng: np.random.Generator) -> tuple[Picture, Picture]:
        """Return the coloured mask and the maps of nuclei that have nothing to do with the tile."""
        if self.sources.masks:
            labels = read_nuclei(self.sources.masks[int(rng.integers(len(self.sources.masks)))])
            numbers = np.unique(np.append(labels, 0), return_inverse=True)[1][:-1].reshape(labels.shape)  # 0, 1, 2, …
            _, cells = cut_and_turn(rng, np.zeros((*labels.shape, 3), np.uint8), numbers, self.crop_px)
        else:
            _, cells = self._rendered(rng)
        cells = random_classes(cells, rng)
        return inner(colour_mask(cells, rng, self.targets.color_variation)), inner(k_maps(cells, self.targets))


def _read(path: Path) -> Picture:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SlideError(f"{path} cannot be read any more; the training is done, the model was not written")
    return picture.astype(np.uint8)[..., ::-1]


def batches(draws: Dataset[dict[str, Tensor]], steps: Sequence[int], workers: int) -> Iterator[Mapping[str, Tensor]]:
    """Return an iterator over the batches of some steps, drawn ahead by `workers` processes (0: by this one)."""
    return iter(DataLoader(draws, batch_size=None, sampler=steps, num_workers=workers))
