"""Pairs of a predicted and a true picture of the same area, matched by stem."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsiscore.errors import TruthError
from wsiscore.evaluation.tables import shortened, warn_about
from wsiscore.files import stem
from wsiscore.slide.readers.registry import open_reader

__all__ = [
    "PICTURES",
    "PicturePair",
    "check_size",
    "find_picture_pairs",
    "is_mosaic",
    "read_pair",
    "read_picture",
    "same_size",
]

PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
"""Endings of picture files."""

_MOSAIC = "mosaic.ome.zarr"
_LARGEST_PX = 2**25  # 5,792² px: the measures need some hundred bytes per pixel

Pixels = npt.NDArray[np.uint8]


class PicturePair(NamedTuple):
    """Paths of a predicted and a true picture, and their stem."""

    stem: str
    predicted: Path
    truth: Path


def find_picture_pairs(predicted: Path, truth: Path, endings: Sequence[str] = PICTURES) -> list[PicturePair]:
    """Match the pictures of two folders by stem; a warning names those without a partner.

    Parameters
    ----------
    predicted, truth
        Folders of pictures, or output folders of `wsiscore infer` with a mosaic for each slide, or the folder of one
        slide. Two files are a pair whatever their names.
    endings
        Endings of the files to read, with the dot.

    Returns
    -------
    list of PicturePair
        Sorted by stem.

    Raises
    ------
    TruthError
        If a folder does not exist or has no picture, two files have the same stem, or no stem is in both.
    """
    found, true = _by_stem(predicted, endings), _by_stem(truth, endings)
    if predicted.is_file() and truth.is_file():
        return [PicturePair(stem(predicted), predicted, truth)]
    both = sorted(set(found) & set(true))
    if not both:
        raise TruthError(
            f"{predicted} and {truth} have no stem in common: found {shortened(sorted(found))}, and "
            f"{shortened(sorted(true))}; name the truth as the prediction"
        )
    warn_about("left out, no truth", sorted(set(found) - set(true)))
    warn_about("truth without a prediction", sorted(set(true) - set(found)))
    return [PicturePair(name, found[name], true[name]) for name in both]


def is_mosaic(path: Path) -> bool:
    """Return whether this is an OME-Zarr folder."""
    return (path / "zarr.json").is_file() or (path / ".zattrs").is_file()


def _by_stem(path: Path, endings: Sequence[str]) -> dict[str, Path]:
    if not path.exists():
        raise TruthError(f"{path} does not exist; wanted a folder of pictures")
    if path.is_file() or is_mosaic(path):
        return {_name(path, endings) or stem(path): path}
    if is_mosaic(path / _MOSAIC):
        return {path.absolute().name: path / _MOSAIC}
    found: dict[str, Path] = {}
    for entry in sorted(path.iterdir()):
        file = entry / _MOSAIC if is_mosaic(entry / _MOSAIC) else entry
        if name := _name(file, endings):
            if name in found:
                raise TruthError(f"{found[name]} and {file} are both of {name}; keep the one to use")
            found[name] = file
    if not found:
        raise TruthError(f"{path} holds no picture; wanted files {' '.join(endings)}, or what `wsiscore infer` wrote")
    return found


def _name(path: Path, endings: Sequence[str]) -> str:
    """Return the stem of a picture, or the name of a mosaic's slide; an empty text for other files."""
    if path.is_dir():
        return path.absolute().parent.name if path.name == _MOSAIC else ""
    return stem(path) if path.name.casefold().endswith(tuple(endings)) else ""


def read_pair(pair: PicturePair) -> tuple[Pixels, Pixels]:
    """Read a predicted and a true picture of the same size, each (H, W, 3) RGB, 0..255.

    Raises
    ------
    SlideError
        If one cannot be read.
    TruthError
        If their sizes differ.
    """
    found, true = read_picture(pair.predicted), read_picture(pair.truth)
    same_size(pair, found, true)
    return found, true


def read_picture(path: Path) -> Pixels:
    """Read a whole picture at its own resolution, (H, W, 3) RGB, 0..255.

    Raises
    ------
    SlideError
        If it cannot be read.
    TruthError
        If it is too large to be measured whole.
    """
    source = open_reader(path)
    try:
        width, height, _ = source.levels[0]
        check_size(path, width, height)
        return source.read(0, 0, 0, width, height)
    finally:
        source.close()


def check_size(path: Path, width: int, height: int) -> None:
    """Raise a TruthError if a picture of this size is too large to be measured whole."""
    if width * height > _LARGEST_PX:
        raise TruthError(f"{path} is {width} × {height} px, too large to be measured whole; crop fields from it")


def same_size(pair: PicturePair, found: npt.NDArray[np.generic], true: npt.NDArray[np.generic]) -> None:
    """Raise a TruthError unless both have the same height and width."""
    if found.shape[:2] != true.shape[:2]:
        sizes = [f"{pixels.shape[1]} × {pixels.shape[0]} px" for pixels in (found, true)]
        raise TruthError(
            f"{pair.predicted} is {sizes[0]} and {pair.truth} {sizes[1]}; wanted the same area at the same scale"
        )
