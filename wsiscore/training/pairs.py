"""Training data of families that learn from aligned pictures: one place in several stains, from files or rendered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wsiscore.errors import SlideError
from wsiscore.files import replacing
from wsiscore.slide.slide import Slide
from wsiscore.tiles import TileList
from wsiscore.training.augment import crop
from wsiscore.training.folds import slide_of_tile
from wsiscore.training.prepare import RenderedDataset

__all__ = ["AlignedFiles", "PairSampler", "PairTrainingData", "find_aligned", "find_aligned_slides", "tile_aligned"]

_PICTURES = (".png", ".jpg", ".jpeg")
_BESIDE = (".geojson", ".json", ".xml", ".annotations", ".csv", ".txt")  # what may lie beside slides

Picture = npt.NDArray[np.uint8]
Derived = Callable[[Mapping[str, Picture]], Mapping[str, Picture]]
"""Computes further pictures, (H, W) or (H, W, C), from aligned ones by name."""


@dataclass(frozen=True, slots=True)
class AlignedFiles:
    """Files of one place in several pictures.

    Parameters
    ----------
    files
        A file for each picture; or a single one, a strip, with all of them side by side.
    slide
        Name of its slide, for splits by case.
    """

    files: tuple[Path, ...]
    slide: str

    def read(self, names: Sequence[str]) -> list[Picture]:
        """Return the pictures, (H, W, 3) each, in the order of `names`.

        Raises
        ------
        SlideError
            If a file cannot be read, a strip cannot be divided, or sizes differ.
        """
        pictures = [_read(file) for file in self.files]
        if len(pictures) < len(names):
            [strip], n = pictures, len(names)
            if strip.shape[1] != strip.shape[0] * n:
                size, wanted = (
                    f"{strip.shape[1]} × {strip.shape[0]} px",
                    f"{n} squares side by side: {', '.join(names)}",
                )
                raise SlideError(f"{self.files[0]} is {size}; wanted a strip of {wanted}")
            pictures = np.split(strip, n, axis=1)
        for file, picture in zip(self.files, pictures, strict=False):
            if picture.shape != pictures[0].shape:
                sizes = [f"{at.shape[1]} × {at.shape[0]}" for at in (picture, pictures[0])]
                raise SlideError(f"{file} is {sizes[0]} px, {self.files[0]} {sizes[1]}; aligned pictures have one size")
        return pictures


@dataclass(frozen=True, slots=True)
class PairTrainingData:
    """The data of a family that is trained on aligned pictures: files, or a rendered dataset.

    Parameters
    ----------
    names
        Of the pictures, the input first.
    sets
        Aligned files.
    rendered
        Fields rendered with these names as stains; None where there are files.
    derived
        `Family.derived`: computes further pictures from an aligned set.
    """

    names: tuple[str, ...]
    sets: tuple[AlignedFiles, ...] = ()
    rendered: RenderedDataset | None = None
    derived: Derived | None = None

    @property
    def tiles(self) -> tuple[Path, ...]:
        """Unlabelled tiles: none."""
        return ()

    @property
    def kind(self) -> str:
        """``rendered``, or ``real`` for files."""
        return "rendered" if self.rendered else "real"

    def __len__(self) -> int:
        return len(self.rendered) if self.rendered else len(self.sets)

    def read(self, number: int) -> list[Picture]:
        """Return the pictures of one place, in the order of `names`."""
        if self.rendered is None:
            return self.sets[number].read(self.names)
        return [self.rendered.array(number, name) for name in self.names]

    def sampler(self, _: object, *, batch: int, crop_px: int, seed: int, first: int) -> PairSampler:
        """Return the batches of a training, whatever its recipe."""
        return PairSampler(self, batch, crop_px, seed, first)

    def describe(self) -> dict[str, Any]:
        """Return what decides the batches, JSON-ready."""
        return {
            "names": list(self.names),
            "rendered": asdict(self.rendered.settings) if self.rendered else None,
            "sets": [[str(file) for file in one.files] for one in self.sets],
        }

    def summary(self) -> str:
        """Return a sentence for the card."""
        kind = f"rendered ones (seed {self.rendered.settings.seed})" if self.rendered else "files"
        return f"Trained on {len(self)} sets of aligned pictures ({', '.join(self.names)}), {kind}."

    def examples(self, most: int) -> Iterator[Picture]:
        """Yield evenly spread inputs, (H, W, 3)."""
        for number in range(0, len(self), -(-len(self) // most)):
            yield self.read(number)[0]


@dataclass(frozen=True, slots=True)
class PairSampler(Dataset[dict[str, Tensor]]):
    """Batches by step number.

    Parameters
    ----------
    data
        What is sampled.
    batch, crop_px
        Items per batch, and the side of each.
    seed
        Of all random choices.
    first
        Number of the first item within the step: other processes of the training sample the items before it.
    """

    data: PairTrainingData
    batch: int
    crop_px: int
    seed: int
    first: int = 0

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step, name -> (B, C, crop, crop) uint8: the names and what is derived from them."""
        cv2.setNumThreads(1)
        items = [self._item(np.random.default_rng([self.seed, step, self.first + i])) for i in range(self.batch)]
        return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}

    def _item(self, rng: np.random.Generator) -> dict[str, Picture]:
        data = self.data
        number = int(rng.integers(len(data)))
        pictures = data.read(number)
        if min(pictures[0].shape[:2]) < self.crop_px:
            what = data.sets[number].files[0] if data.sets else "a rendered field"
            size = f"{pictures[0].shape[1]} × {pictures[0].shape[0]} px"
            raise SlideError(f"{what} is {size}; wanted pictures of at least {self.crop_px} px a side")
        layers = crop(rng, np.concatenate(pictures, axis=2), self.crop_px)
        cut = {
            name: np.ascontiguousarray(layers[..., 3 * i : 3 * i + 3], np.uint8) for i, name in enumerate(data.names)
        }
        further = data.derived(cut) if data.derived else {}
        return {name: _channels_first(picture) for name, picture in {**cut, **further}.items()}


def find_aligned(path: Path, names: Sequence[str]) -> list[AlignedFiles]:
    """Find aligned pictures.

    Parameters
    ----------
    path
        A folder with one sub-folder a name, holding files of equal stems; a folder of strips; or a strip.
    names
        Of the pictures.

    Returns
    -------
    Sets of PNG or JPEG files. The slide of each is the folder it lies in below that of its name (or above
    ``tiles``), and its own stem where there is none.

    Raises
    ------
    SlideError
        If there are none, or some have no counterpart.
    """
    if path.is_file():
        return [AlignedFiles((path,), path.stem)]
    if (alike := _by_name(path, names, _is_picture)) is not None:
        found = [AlignedFiles(files, _slide(key)) for key, files in alike.items()]
    else:
        strips = sorted(file for file in path.rglob("*") if _is_picture(file))
        found = [AlignedFiles((file,), _slide(file.relative_to(path).with_suffix(""))) for file in strips]
    if not found:
        wanted = f"the sub-folders {', '.join(names)}, or strips of {len(names)} pictures side by side (PNG or JPEG)"
        raise SlideError(f"{path} holds no aligned pictures; wanted {wanted}")
    return found


def find_aligned_slides(path: Path, names: Sequence[str]) -> list[tuple[Path, ...]]:
    """Find aligned slides: files in the sub-folders `names` of a folder that are neither pictures nor annotations.

    Raises
    ------
    SlideError
        If some have no counterpart of the same stem.
    """
    if not path.is_dir():
        return []
    slides = _by_name(path, names, lambda file: not _is_picture(file) and file.suffix.lower() not in _BESIDE)
    return list((slides or {}).values())


def tile_aligned(tiles: TileList, path: Path, folder: Path, mpp: float | None = None) -> None:
    """Cut the tiles of one slide out of another that is aligned with it, into ``folder/<row>_<col>.png``.

    Parameters
    ----------
    tiles
        Of the first slide.
    path
        The other.
    folder
        Where to.
    mpp
        Of the other slide, where its file does not say.

    Raises
    ------
    SlideError
        If it cannot be read, or its extent differs from the first one's by more than a tile.
    """
    grid = tiles.grid
    folder.mkdir(parents=True, exist_ok=True)
    with Slide(path, mpp) as slide:
        own = slide.width_px * slide.mpp / grid.mpp, slide.height_px * slide.mpp / grid.mpp
        if max(abs(own[0] - grid.width_px), abs(own[1] - grid.height_px)) > grid.tile_px:
            sizes = [f"{w * grid.mpp:.0f} × {h * grid.mpp:.0f} µm" for w, h in (own, (grid.width_px, grid.height_px))]
            raise SlideError(f"{path} is {sizes[0]}, {tiles.slide.name} {sizes[1]}; aligned slides have one extent")
        for row, col in tiles.tiles:
            pixels = slide.read(grid.tile(row, col).read)
            with replacing(folder / f"{row:04d}_{col:04d}.png") as part:
                part.write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())


def _by_name(path: Path, names: Sequence[str], wanted: Callable[[Path], bool]) -> dict[Path, tuple[Path, ...]] | None:
    """Return the wanted files of all sub-folders by their place in them; None if there is no such sub-folder."""
    there = [name for name in names if (path / name).is_dir()]
    if not there:
        return None
    if missing := [name for name in names if name not in there]:
        raise SlideError(f"{path} holds {there[0]}/ but no {missing[0]}/; wanted a sub-folder for each picture")
    found: dict[Path, list[Path]] = {}
    for name in names:
        for file in sorted((path / name).rglob("*")):
            if file.is_file() and file.name[0] != "." and wanted(file):
                found.setdefault(file.relative_to(path / name).with_suffix(""), []).append(file)
    for key, files in found.items():
        having = [file.relative_to(path).parts[0] for file in files]
        if having != list(names):
            odd = next(name for name in names if having.count(name) != 1)
            raise SlideError(f"{path} holds {having.count(odd)} files {odd}/{key}.*; wanted one in each sub-folder")
    return {key: tuple(files) for key, files in found.items()}


def _slide(key: Path) -> str:
    return slide_of_tile(key) if len(key.parts) > 1 else key.name


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _PICTURES and path.name[0] != "."


def _read(path: Path) -> Picture:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SlideError(f"{path} cannot be read; wanted a picture, PNG or JPEG")
    return picture.astype(np.uint8)[..., ::-1]


def _channels_first(picture: Picture) -> Picture:
    return np.ascontiguousarray(picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1))
