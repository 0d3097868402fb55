"""Training data with truth: annotated and rendered pictures mixed, all crops of a step from one appearance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wsiscore.errors import TruthError
from wsiscore.models.contract import Recipe
from wsiscore.stain import Stain
from wsiscore.training.augment import MARGIN_PX, drop_invisible, without_margin
from wsiscore.training.disturb import Disturbance
from wsiscore.training.known import blank_strip, cell_targets, rotation, warped
from wsiscore.training.prepare import RenderedDataset
from wsiscore.training.recolour import Crop, Laboratory, Outlined, Stained, outlined_of, stained_of
from wsiscore.training.truth_files import TruthOptions, read_folder

__all__ = ["TruthSampler", "TruthTrainingData", "read_truth"]

_SIDES = (0.8, 1.0, 1.0, 1.2, 1.4, 1.8, 2.6)  # sides of crops of rendered fields, relative to the crop asked for
_REAL_SIDES = 4  # so many of these for annotated pictures, which are smaller
_STEP_PX = 32
_TYPICAL_UM = (4.6, 11.0)  # range of the typical nucleus where a picture has no size
_AT_AN_EDGE, _CROPS_AT_IT = 0.25, 0.6
_TRIES = 4  # at a picture that is not nearly empty
_FEW = 8

Picture = npt.NDArray[np.uint8]
Source = Outlined | Stained


@dataclass(frozen=True, slots=True)
class TruthTrainingData:
    """Annotated pictures and rendered fields.

    Parameters
    ----------
    rendered
        Rendered fields.
    folders
        Folders of annotated pictures.
    groups
        Pictures that have their stain in common; recoloured ones of a folder are one group.
    weights
        Of the pictures of each group.
    rendered_fraction
        Fraction of the steps on rendered fields.
    mpp
        Resolution of crops, µm/px.
    """

    rendered: RenderedDataset
    folders: tuple[Path, ...]
    groups: tuple[tuple[Source, ...], ...] = field(repr=False)
    weights: tuple[tuple[float, ...], ...] = field(repr=False)
    rendered_fraction: float
    mpp: float
    options: Mapping[str, Any]

    @property
    def tiles(self) -> tuple[Path, ...]:
        """Unlabelled tiles: none."""
        return ()

    @property
    def kind(self) -> str:
        """What the examples are."""
        return "rendered"

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def sampler(self, _: Recipe, *, batch: int, crop_px: int, seed: int, first: int) -> TruthSampler:
        """Return the batches of a training."""
        return TruthSampler(self, batch, crop_px, seed, first)

    def describe(self) -> dict[str, Any]:
        """Return what decides the batches, JSON-ready."""
        return {
            "rendered": asdict(self.rendered.settings),
            "truth": [str(folder) for folder in self.folders],
            "pictures": len(self),
            "weights": [list(own) for own in self.weights],
            "rendered_fraction": self.rendered_fraction,
            **self.options,
        }

    def summary(self) -> str:
        """Return a sentence for the card."""
        names = ", ".join(folder.name for folder in self.folders)
        own = self.rendered.settings
        return (
            f"Trained on {len(self)} annotated pictures ({names}) and {len(self.rendered)} rendered fields"
            f" (seed {own.seed})."
        )

    def examples(self, most: int) -> Iterator[Picture]:
        """Yield evenly spread rendered fields, (H, W, 3)."""
        for number in range(0, len(self.rendered), -(-len(self.rendered) // most)):
            yield self.rendered.field(number)[0]


def read_truth(
    folders: Sequence[Path], options: TruthOptions, rendered: RenderedDataset, rendered_fraction: float
) -> TruthTrainingData:
    """Read folders of annotated pictures, as `read_folder`, for a training at the resolution of the rendered fields.

    Raises
    ------
    TruthError, RoiError
        If a folder cannot be used.
    """
    groups: list[tuple[Source, ...]] = []
    weights: list[tuple[float, ...]] = []
    for folder in folders:
        pictures = read_folder(folder, options)
        recoloured: list[tuple[Source, float]] = []
        for picture in pictures:
            if picture.recolour and (outlined := outlined_of(picture)):
                recoloured.append((outlined, picture.weight))
        if recoloured:
            groups.append(tuple(source for source, _ in recoloured))
            weights.append(tuple(weight for _, weight in recoloured))
        stained = [picture for picture in pictures if not picture.recolour and picture.weight > 0]
        for name in dict.fromkeys(picture.group for picture in stained):
            own = [picture for picture in stained if picture.group == name]
            stain = Stain.estimate(np.concatenate([picture.rgb.reshape(-1, 3)[::3] for picture in own]))
            groups.append(tuple(stained_of(picture, stain) for picture in own))
            weights.append(tuple(picture.weight for picture in own))
        if not recoloured and not stained:
            raise TruthError(f"{folder}: no annotated picture can be used; are all weights 0, or outlines missing?")
    about = {
        "mpp": options.mpp, "unmarked": options.unmarked, "recolour": options.recolour,
        "regions": str(options.regions) if options.regions else None,
    }  # fmt: skip
    mpp = rendered.settings.mpp
    return TruthTrainingData(rendered, tuple(folders), tuple(groups), tuple(weights), rendered_fraction, mpp, about)


@dataclass(frozen=True, slots=True)
class TruthSampler(Dataset[dict[str, Tensor]]):
    """Batches by step number; a step has as many pixels as `batch` crops of `crop_px`, in crops of several sizes.

    Parameters
    ----------
    data
        What is sampled.
    batch, crop_px
        Items per batch, and the usual side of each.
    seed
        Of all random choices.
    first
        Tells the processes of a training from each other.
    """

    data: TruthTrainingData
    batch: int
    crop_px: int
    seed: int
    first: int = 0

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step.

        ``rgb`` is (B, 3, S, S), ``maps`` and ``known`` (B, 4, S, S): targets and how much they count, ``inside``
        (B, 1, S, S): 0 beyond the edge of a slide; all uint8 in 0..255 but ``inside``.
        """
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.seed, step, self.first] if self.first else [self.seed, step])
        rendered = rng.random() < self.data.rendered_fraction
        sides = _SIDES if rendered else _SIDES[:_REAL_SIDES]
        side = _rounded(self.crop_px * sides[rng.integers(len(sides))])
        side = min(side, _rounded(self.data.rendered.settings.side_px)) if rendered else side
        n = max(1, round(self.batch * (self.crop_px / side) ** 2))
        crops: Sequence[Any] = self._rendered(rng, n, side) if rendered else self._annotated(rng, n, side)
        return _finished(rng, crops, side, rendered=rendered)

    def _annotated(self, rng: np.random.Generator, n: int, side: int) -> list[Crop]:
        data = self.data
        totals = np.array([sum(own) for own in data.weights])
        which = int(rng.choice(len(totals), p=totals / totals.sum()))
        group, weights = data.groups[which], np.array(data.weights[which])
        laboratory = Laboratory(rng)
        gains = float(np.exp(rng.normal(0, 0.35))), float(np.exp(rng.normal(-0.25, 0.4)))
        zoom = float(np.exp(rng.normal(0.05, 0.2)))
        typical_um = float(np.exp(rng.uniform(*np.log(_TYPICAL_UM))))
        crops = []
        for _ in range(n):
            own = _pick(rng, group, weights)
            whole = side + 2 * MARGIN_PX
            if isinstance(own, Outlined):
                crops.append(own.crop(rng, laboratory, whole, data.mpp, typical_um))
            else:
                crops.append(own.crop(rng, laboratory, gains, whole, data.mpp, zoom))
        return crops

    def _rendered(self, rng: np.random.Generator, n: int, side: int) -> list[Any]:
        """Return crops of one field; their second array is the cells and the third what lies beyond the field."""
        dataset = self.data.rendered
        rgb, cells = dataset.field(int(rng.integers(len(dataset))))
        rgb, cells = np.ascontiguousarray(rgb), np.ascontiguousarray(cells)
        scale = float(np.exp(rng.normal(-0.03, 0.15))) if rng.random() < 0.6 else 1.0
        scale = max(scale, 1.0) if side > 0.67 * cells.shape[0] else scale
        whole = side + 2 * MARGIN_PX
        crops = []
        for _ in range(n):
            matrix = rotation(rng, cells.shape, whole, scale, free=bool(rng.random() < 0.5))
            there = warped(np.ones(cells.shape, np.uint8), matrix, whole, values=False)
            placed = warped(cells, matrix, whole, values=False).astype(np.int32)
            crops.append((warped(rgb, matrix, whole), placed, there == 0))
        return crops


def _pick(rng: np.random.Generator, group: Sequence[Source], weights: npt.NDArray[np.float64]) -> Source:
    """Return a picture of a group, seldom one that is nearly empty."""
    for _ in range(_TRIES):
        own = group[int(rng.choice(len(group), p=weights / weights.sum()))]
        if isinstance(own, Stained) or own.labels.max() > _FEW or rng.random() < 0.3:
            break
    return own


def _rounded(side: float) -> int:
    return max(_STEP_PX, int(side / _STEP_PX + 0.5) * _STEP_PX)


def _finished(rng: np.random.Generator, crops: Sequence[Any], side: int, *, rendered: bool) -> dict[str, Tensor]:
    """Disturb all crops alike, remove their margins, cut some at an edge, and stack them."""
    inner = np.s_[MARGIN_PX : MARGIN_PX + side, MARGIN_PX : MARGIN_PX + side]
    pictures = Disturbance(rng)(np.stack([np.ascontiguousarray(crop[0][inner]) for crop in crops]))
    edge = rng.random() < _AT_AN_EDGE
    batch: dict[str, list[Picture]] = {"maps": [], "known": [], "inside": []}
    for rgb, crop in zip(pictures, crops, strict=True):
        targets = _rendered_targets(rgb, *crop) if rendered else crop[1:]
        maps, weights = (without_margin(target).copy() for target in targets)
        inside = np.ones((1, side, side), np.uint8)
        if edge and rng.random() < _CROPS_AT_IT:
            blank_strip(rng, rgb, maps, weights, inside)
        for name, array in (("maps", maps), ("known", weights), ("inside", inside)):
            batch[name].append(array)
    stacked = {"rgb": np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))}
    stacked |= {name: np.stack(arrays) for name, arrays in batch.items()}
    return {name: torch.from_numpy(array) for name, array in stacked.items()}


def _rendered_targets(
    rgb: Picture, before: Picture, cells: npt.NDArray[np.int32], beyond: npt.NDArray[np.bool_]
) -> tuple[Picture, Picture]:
    """Return maps and weights of a rendered crop: nuclei that cannot be seen, and shadows that are none, count less."""
    drawn = cells != 0
    shadows = _shadows(before, drawn)
    drop_invisible(rgb, cells)
    return cell_targets(cells, None, beyond | (drawn & (cells == 0)), shadows)


def _shadows(rgb: Picture, nucleus: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return where blurred bluish shadows lie that are no nuclei: real ones like them mostly are."""
    od = cv2.GaussianBlur(-np.log10(np.maximum(rgb, 1).astype(np.float32) / 255), (0, 0), 2.0)
    over = od - np.percentile(od[::4, ::4], 30, axis=(0, 1)).astype(np.float32)
    near = cv2.dilate(nucleus.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return np.asarray(~near & (over[..., 0] > 0.03) & (over[..., 2] < 1.5 * over[..., 0]), np.bool_)
