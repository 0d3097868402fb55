"""Training data of families that learn from tiles: each batch is a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
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
    MARGIN_PX,
    blank_edge,
    counterstain,
    crop,
    defocus,
    drop_invisible,
    fade,
    perturb,
    warp,
    without_margin,
)
from wsiscore.training.interrupts import leave_signals_to_parent
from wsiscore.training.mask_files import MaskFiles
from wsiscore.training.prepare import RenderedDataset
from wsiscore.training.targets import colour_mask, k_maps, random_classes

__all__ = ["Sampler", "TrainingData", "batches"]

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data of a family that is trained on tiles.

    Parameters
    ----------
    rendered
        Rendered fields.
    tiles
        Pictures of real, unlabelled tiles; may be empty.
    masks
        Files of outlined nuclei for the target domain, of any tissue; None: those of the rendered fields.
    """

    rendered: RenderedDataset
    tiles: tuple[Path, ...] = ()
    masks: MaskFiles | None = None

    @property
    def kind(self) -> str:
        """``real`` if there are tiles, else ``rendered``."""
        return "real" if self.tiles else "rendered"

    def sampler(self, recipe: Recipe, *, batch: int, crop_px: int, seed: int, first: int) -> Sampler:
        """Return the batches of a training."""
        return Sampler(self, recipe.targets or TargetRules(), batch, crop_px, seed, first)

    def describe(self) -> dict[str, Any]:
        """Return what decides the batches, JSON-ready."""
        return {
            "rendered": asdict(self.rendered.settings),
            "tiles": [str(path) for path in self.tiles],
            "masks": self.masks.describe() if self.masks else None,
        }

    def summary(self) -> str:
        """Return a sentence for the card."""
        words = [f"{len(self.rendered)} rendered fields (seed {self.rendered.settings.seed})"]
        if self.tiles:
            words.append(f"{len(self.tiles)} unlabelled tiles")
        if self.masks:
            words.append(f"{len(self.masks)} files of outlined nuclei")
        return f"Trained on {', '.join(words)}."

    def examples(self, most: int) -> Iterator[Picture]:
        """Yield evenly spread tiles, or rendered fields where there are none; (H, W, 3)."""
        items: tuple[Any, ...] = self.tiles or tuple(range(len(self.rendered)))
        for item in items[:: -(-len(items) // most)]:
            yield _read(item) if isinstance(item, Path) else self.rendered.field(item)[0]


@dataclass(frozen=True, slots=True)
class Sampler(Dataset[dict[str, Tensor]]):
    """Batches by step number.

    Parameters
    ----------
    data
        What is sampled.
    targets
        How nuclei become maps.
    batch, crop_px
        Items per batch, and the side of each.
    seed
        Of all random choices.
    first
        Number of the first item within the step: other processes of the training sample the items before it.
    """

    data: TrainingData
    targets: TargetRules
    batch: int
    crop_px: int
    seed: int
    first: int = 0

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step, name -> (B, 3, crop, crop) uint8, as `Recipe` describes it."""
        cv2.setNumThreads(1)
        items = [self._item(np.random.default_rng([self.seed, step, self.first + i])) for i in range(self.batch)]
        return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}

    def _item(self, rng: np.random.Generator) -> dict[str, Picture]:
        rgb, cells = self._field(rng)
        inside = without_margin(cells[None])[0]
        rgb = defocus(rng, fade(rng, counterstain(rng, rgb, inside), inside), cells)
        rgb = perturb(rng, rgb)
        drop_invisible(rgb, cells)
        blank_edge(rng, rgb, cells)
        item = {
            "rgb": np.ascontiguousarray(rgb.transpose(2, 0, 1)),
            "maps": without_margin(k_maps(cells, self.targets)),
        }
        if self.data.tiles:
            item["colour"] = without_margin(colour_mask(cells, rng, self.targets.color_variation))
            item["tiles"] = self._tile(rng)
            item["mask_colour"], item["mask_maps"] = self._mask(rng)
        return item

    def _field(self, rng: np.random.Generator) -> tuple[Picture, npt.NDArray[np.int32]]:
        rgb, cells = self.data.rendered.field(int(rng.integers(len(self.data.rendered))))
        return warp(rng, rgb, cells, self.crop_px)

    def _tile(self, rng: np.random.Generator) -> Picture:
        path = self.data.tiles[int(rng.integers(len(self.data.tiles)))]
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None or min(picture.shape[:2]) < self.crop_px:
            found = "cannot be read" if picture is None else f"is {picture.shape[1]} × {picture.shape[0]} px"
            raise SlideError(f"{path} {found}; wanted a picture of at least {self.crop_px} px a side")
        return np.ascontiguousarray(crop(rng, picture.astype(np.uint8)[..., ::-1], self.crop_px).transpose(2, 0, 1))

    def _mask(self, rng: np.random.Generator) -> tuple[Picture, Picture]:
        """Return the coloured mask and the maps of nuclei that are unrelated to the tile."""
        if self.data.masks:
            labels = self.data.masks.read(int(rng.integers(len(self.data.masks))))
            cells = crop(rng, np.pad(labels, MARGIN_PX), self.crop_px + 2 * MARGIN_PX)
        else:
            _, cells = self._field(rng)
        cells = random_classes(cells, rng)
        colour = without_margin(colour_mask(cells, rng, self.targets.color_variation))
        return colour, without_margin(k_maps(cells, self.targets))


def _read(path: Path) -> Picture:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SlideError(f"{path} cannot be read any more; the training is finished, but no model was written")
    return picture.astype(np.uint8)[..., ::-1]


def batches(
    sampler: Dataset[dict[str, Tensor]], steps: Sequence[int], workers: int
) -> Generator[Mapping[str, Tensor], None, None]:
    """Yield the batches of some steps, sampled ahead by `workers` processes (0: by this one); close it to end them."""
    yield from DataLoader(
        sampler, batch_size=None, sampler=steps, num_workers=workers, worker_init_fn=leave_signals_to_parent
    )
