"""Which tiles are trained on and which are kept for testing, split by case: no case is on both sides."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsiscore.errors import SlideError
from wsiscore.files import replacing

__all__ = ["SlideCase", "Split", "read_slide_cases", "slide_of_tile", "split_by_case", "write_split"]

_COLUMNS = ("slide", "case")


@dataclass(frozen=True, slots=True)
class SlideCase:
    """The case a slide belongs to, and its date as text that sorts (2018-05-31), empty if not known."""

    name: str
    date: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """Tiles to train on and tiles kept for testing, sorted."""

    train: tuple[Path, ...]
    test: tuple[Path, ...] = ()


def slide_of_tile(tile: Path) -> str:
    """Return the stem of a tile's slide, from ``<stem>/tiles/<tile>.png`` as `wsiscore tile --save png` writes it."""
    return tile.parent.parent.name if tile.parent.name == "tiles" else tile.parent.name


def read_slide_cases(path: Path) -> dict[str, SlideCase]:
    """Read the case of each slide.

    Parameters
    ----------
    path
        CSV with the columns ``slide`` (its file's stem), ``case`` and, for a chronological split, ``date``.

    Raises
    ------
    SlideError
        If it cannot be read or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise SlideError(f"{path} cannot be read as a table of cases: {error}") from error
    if not rows or any(row.get(column) is None for row in rows for column in _COLUMNS):
        raise SlideError(
            f"{path} is not a table of cases; wanted a CSV with the columns slide, case and, if known, date"
        )
    return {row["slide"]: SlideCase(row["case"], row.get("date") or "") for row in rows}


def split_by_case(
    tiles: Sequence[Path],
    *,
    slide_of: Callable[[Path], str] = slide_of_tile,
    cases: Mapping[str, SlideCase] | None = None,
    folds: int = 0,
    fold: int = 0,
    order: str = "random",
    test_fraction: float = 0.0,
    seed: int = 0,
    unique: int | None = None,
) -> Split:
    """Divide tiles so that no case has some on both sides.

    Parameters
    ----------
    tiles
        Pictures.
    slide_of
        Returns the slide of a tile.
    cases
        Slide -> case; without it every slide is a case.
    folds, fold
        Keep part `fold`, from 0, of `folds` equal parts for testing (table 7 of the paper); 0 folds: `test_fraction`.
        With one seed, the parts of all folds are disjoint and together hold all cases.
    order
        ``random``, or ``chronological``: the latest cases are kept for testing (tables 1 and 2 of the paper).
    test_fraction
        Fraction of the cases kept for testing.
    seed
        Of the order of cases and of the choice of `unique` tiles; not that of the training.
    unique
        Keep no more than this many tiles to train on (table 6 of the paper).

    Raises
    ------
    SlideError
        If a slide has no case, a case no date that a chronological split needs, or a side would be empty.
    ValueError
        If a number lies out of range.
    """
    if not 0 <= test_fraction < 1 or folds < 0 or folds == 1 or (folds and not 0 <= fold < folds):
        raise ValueError(
            f"wanted 0 <= fold < folds and 0 <= test_fraction < 1, got {fold}, {folds} and {test_fraction}"
        )
    of = {tile: _case(slide_of(tile), cases) for tile in sorted(tiles)}
    dates: dict[str, str] = {}
    for case in of.values():
        dates[case.name] = max(dates.get(case.name, ""), case.date)
    names = sorted(dates)
    if order == "chronological":
        if undated := [name for name in names if not dates[name]]:
            raise SlideError(f"case {undated[0]!r} has no date; a chronological split needs the column date")
        names.sort(key=lambda name: (dates[name], name))
    else:
        np.random.default_rng(seed).shuffle(names)
    if folds:
        kept = set(np.array_split(np.array(names, dtype=object), folds)[fold])
    else:
        kept = set(names[len(names) - round(test_fraction * len(names)) :])
    split = Split(*(tuple(t for t in of if (of[t].name in kept) == side) for side in (False, True)))
    if unique is not None and unique < len(split.train):
        picked = np.random.default_rng(seed).permutation(len(split.train))[:unique]
        split = Split(tuple(split.train[i] for i in sorted(picked.tolist())), split.test)
    if not split.train or ((folds or test_fraction) and not split.test):
        raise SlideError(f"{len(names)} cases cannot be split in this way; give more slides or a smaller fraction")
    return split


def write_split(path: Path, split: Split, slide_of: Callable[[Path], str] = slide_of_tile) -> None:
    """Write ``slide,tile,part`` for every tile; part is train or test."""
    with replacing(path) as whole, whole.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["slide", "tile", "part"])
        for part, tiles in (("train", split.train), ("test", split.test)):
            rows.writerows([slide_of(tile), str(tile), part] for tile in tiles)


def _case(slide: str, cases: Mapping[str, SlideCase] | None) -> SlideCase:
    if cases is None:
        return SlideCase(slide)
    if slide not in cases:
        raise SlideError(f"the table of cases has no line for slide {slide!r}")
    return cases[slide]
