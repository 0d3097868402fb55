"""Pictures that belong together: a predicted one and the true one of the same place, by their stems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsiscore.errors import TruthError
from wsiscore.evaluation.tables import few, warn_of
from wsiscore.slide.readers.registry import open_reader

__all__ = ["PICTURES", "Pair", "check_size", "find_pairs", "is_mosaic", "read_pair", "read_picture", "same_size"]

PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
"""Endings of files that are taken as pictures."""

_MOSAIC = "mosaic.ome.zarr"
_LARGEST_PX = 2**25  # 5,792² px: the measures hold some hundred bytes a pixel

Pixels = npt.NDArray[np.uint8]


class Pair(NamedTuple):
    """Where a predicted picture and the true one are, and what both are called."""

    stem: str
    predicted: Path
    truth: Path


def find_pairs(predicted: Path, truth: Path, endings: Sequence[str] = PICTURES) -> list[Pair]:
    """Find the pictures of two folders that have the same stem; those left alone are named in a warning.

    Parameters
    ----------
    predicted, truth
        Folders of pictures; the folder that `wsiscore infer` wrote, whose slides' folders hold a mosaic, or one of
        these. Or two files, which are a pair whatever they are called.
    endings
        Of the files to take, with their dots.

    Returns
    -------
    list of Pair
        Sorted by stem.

    Raises
    ------
    TruthError
        If a folder is not there or holds nothing, two files have one stem, or no stem is in both.
    """
    found, true = _by_stem(predicted, endings), _by_stem(truth, endings)
    if predicted.is_file() and truth.is_file():
        return [Pair(predicted.stem, predicted, truth)]
    both = sorted(set(found) & set(true))
    if not both:
        raise TruthError(
            f"{predicted} and {truth} have no stem in common: there {few(sorted(found))}; here {few(sorted(true))}; "
            "name the truth as the prediction"
        )
    warn_of("left out for want of truth", sorted(set(found) - set(true)))
    warn_of("truth without a prediction", sorted(set(true) - set(found)))
    return [Pair(stem, found[stem], true[stem]) for stem in both]


def is_mosaic(path: Path) -> bool:
    """Return whether this is an OME-Zarr folder."""
    return (path / "zarr.json").is_file() or (path / ".zattrs").is_file()


def _by_stem(path: Path, endings: Sequence[str]) -> dict[str, Path]:
    if not path.exists():
        raise TruthError(f"{path} is not there; wanted a folder of pictures")
    if path.is_file() or is_mosaic(path):
        return {_stem(path, endings) or path.stem: path}
    if is_mosaic(path / _MOSAIC):
        return {path.absolute().name: path / _MOSAIC}
    found: dict[str, Path] = {}
    for entry in sorted(path.iterdir()):
        file = entry / _MOSAIC if is_mosaic(entry / _MOSAIC) else entry
        if stem := _stem(file, endings):
            if stem in found:
                raise TruthError(f"{found[stem]} and {file} are both of {stem}; leave the one that counts")
            found[stem] = file
    if not found:
        raise TruthError(f"{path} holds no picture; wanted files {' '.join(endings)}, or what `wsiscore infer` wrote")
    return found


def _stem(path: Path, endings: Sequence[str]) -> str:
    """Return what a picture is called, or nothing if it is none."""
    if path.is_dir():
        return path.absolute().parent.name if path.name == _MOSAIC else ""
    name = path.name.casefold()
    longest = sorted((*(f".ome{end}" for end in endings), *endings), key=len, reverse=True)
    return next((path.name[: -len(end)] for end in longest if name.endswith(end)), "")


def read_pair(pair: Pair) -> tuple[Pixels, Pixels]:
    """Read a predicted and a true picture of one size, each (H, W, 3) RGB in 0..255.

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
    """Read a whole picture at its own resolution, (H, W, 3) RGB in 0..255.

    Raises
    ------
    SlideError
        If it cannot be read.
    TruthError
        If it is too large to be measured in one piece.
    """
    source = open_reader(path)
    try:
        width, height, _ = source.levels[0]
        check_size(path, width, height)
        return source.read(0, 0, 0, width, height)
    finally:
        source.close()


def check_size(path: Path, width: int, height: int) -> None:
    """Raise a TruthError if so many pixels are too many to be measured in one piece."""
    if width * height > _LARGEST_PX:
        raise TruthError(f"{path} is {width} × {height} px, too large for one piece; cut fields out of it")


def same_size(pair: Pair, found: npt.NDArray[np.generic], true: npt.NDArray[np.generic]) -> None:
    """Raise a TruthError unless both are of one height and width."""
    if found.shape[:2] != true.shape[:2]:
        sizes = [f"{pixels.shape[1]} × {pixels.shape[0]} px" for pixels in (found, true)]
        raise TruthError(
            f"{pair.predicted} is {sizes[0]} and {pair.truth} {sizes[1]}; wanted the same place at the same scale"
        )
