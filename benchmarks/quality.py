"""Which flags sound pictures get, and the same pictures spoilt on purpose.

    python benchmarks/quality.py --sound fields:0.25 slides/a.svs --not-h-dab he:0.25 --limit 8

Takes pictures, or folders of them, of hematoxylin and DAB and of other stains, each with its µm/px after a colon if it
does not say it itself. A picture is cut to 400 µm and measured as it is; the first --limit of each folder are also
spoilt: stain at 20 %, a pen line, Gaussian blur, a fold, and a µm/px six times too large or four times too small.
Prints a line a picture that is flagged wrongly or missed, and a Markdown table: pictures by kind, and how many of them
got each flag. A picture of the kind "sound" should have none, each other kind the one it is named after.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.quality.assess import ADVICE, Quality, assess
from wsiscore.quality.measures import MEASURE_MPP, MEASURES, measure
from wsiscore.regions import Region, Roi
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain
from wsiscore.tiles import TileGrid

Pixels = npt.NDArray[np.uint8]

CORE_PX = 192  # as of the default model
ACCEPTED_MPP = (0.05, 2 * MEASURE_MPP)  # others are refused with an error
FIELD_UM = 400.0
SUFFIXES = {".png", ".jpg", ".tif", ".svs"}
WANTED = {
    "sound": None,
    "stain at 20 %": "pale",
    "pen, blue": "pen",
    "pen, black": "pen",
    "blur, 1 µm": "blur",
    "fold": "fold",
    "µm/px × 6": "mpp_implausible",
    "µm/px ÷ 4": "mpp_implausible",
    "other stain": "not_h_dab",
}
PEN_UM, FOLD_UM = 40.0, 80.0
HEMATOXYLIN, DAB = np.array((0.65, 0.704, 0.286)), np.array((0.268, 0.57, 0.776))


def scaled(rgb: Pixels, strength: float) -> Pixels:
    """Return a picture with its optical density multiplied."""
    return np.clip(np.rint(255 * (np.maximum(rgb, 1) / 255) ** strength), 0, 255).astype(np.uint8)


def with_pen(rgb: Pixels, mpp: float, colour: tuple[int, int, int]) -> Pixels:
    """Return a picture with an opaque line across it."""
    drawn, (height, width) = rgb.copy(), rgb.shape[:2]
    cv2.line(drawn, (0, height // 3), (width, 2 * height // 3), colour, max(1, round(PEN_UM / mpp)))
    return drawn


def folded(rgb: Pixels, mpp: float) -> Pixels:
    """Return a picture with a strip on which the tissue lies twice, with the stain that a fold holds back."""
    width = min(round(FOLD_UM / mpp), rgb.shape[1] // 2)
    od, left = -np.log10(np.maximum(rgb, 1) / 255), rgb.shape[1] // 4
    strip = od[:, left : left + width]
    strip += strip[:, ::-1].copy() + 0.4 * (HEMATOXYLIN + DAB)
    return np.clip(255 * 10**-od, 0, 255).astype(np.uint8)


def quality_of(path: Path, mpp: float | None) -> Quality:
    """Measure the whole of a picture."""
    with Slide(path, mpp) as slide:
        grid = TileGrid.over(slide.width_px * slide.mpp, slide.height_px * slide.mpp, MEASURE_MPP, CORE_PX, 0)
        stain = Stain.estimate(slide.read(Region(0, 0, grid.width_px, grid.height_px, MEASURE_MPP)))
        values = np.full((grid.rows, grid.cols, len(MEASURES)), np.nan, np.float32)
        for tile in grid:
            values[tile.row, tile.col] = measure(slide.read(tile.write), stain, MEASURE_MPP)
    return assess(values, grid, [Roi("all", shapely.box(*grid.region.bounds_um))])


def pictures(given: list[str]) -> Iterator[tuple[Path, float | None, int]]:
    """Yield path, µm/px and number within its folder."""
    for each in given:
        name, _, number = each.rpartition(":")
        path, mpp = (Path(name), float(number)) if name else (Path(each), None)
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
        for rank, file in enumerate(file for file in files if "mask" not in file.stem):
            yield file, mpp, rank


def field_of(path: Path, mpp: float | None) -> tuple[Pixels, float]:
    """Return the middle of a slide at its own resolution."""
    with Slide(path, mpp) as slide:
        width, height = (min(size, round(FIELD_UM / slide.mpp)) for size in (slide.width_px, slide.height_px))
        region = Region((slide.width_px - width) // 2, (slide.height_px - height) // 2, width, height, slide.mpp)
        return slide.read(region), slide.mpp


def kinds_of(rgb: Pixels, mpp: float) -> dict[str, tuple[Callable[[], Pixels], float]]:
    """Return how to make the kinds of spoilt pictures, and the µm/px to state."""
    return {
        "stain at 20 %": (lambda: scaled(rgb, 0.2), mpp),
        "pen, blue": (lambda: with_pen(rgb, mpp, (25, 45, 160)), mpp),
        "pen, black": (lambda: with_pen(rgb, mpp, (30, 30, 30)), mpp),
        "blur, 1 µm": (lambda: cv2.GaussianBlur(rgb, (0, 0), 1 / mpp).astype(np.uint8), mpp),
        "fold": (lambda: folded(rgb, mpp), mpp),
        "µm/px × 6": (lambda: rgb, 6 * mpp),
        "µm/px ÷ 4": (lambda: rgb, mpp / 4),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound", nargs="+", default=[], metavar="PATH[:MPP]")
    parser.add_argument("--not-h-dab", nargs="+", default=[], metavar="PATH[:MPP]")
    parser.add_argument("--limit", type=int, default=4, help="pictures of each folder to spoil")
    options = parser.parse_args()
    flags: dict[str, Counter[str]] = {kind: Counter() for kind in WANTED}
    totals: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "field.png"

        def count(kind: str, name: str, rgb: Pixels, mpp: float) -> None:
            cv2.imwrite(str(file), rgb[..., ::-1])
            quality = quality_of(file, mpp)
            flags[kind].update(quality.flags)
            totals[kind] += 1
            wanted = WANTED[kind]
            if (wanted not in quality.flags) if wanted else quality.flags:
                values = " ".join(f"{key} {value:.2f}" for key, value in quality.slide.items())
                print(f"{kind}: {name}: {';'.join(quality.flags) or 'no flag'} ({values})", flush=True)

        for path, mpp, rank in pictures(options.sound):
            rgb, own = field_of(path, mpp)
            count("sound", str(path), rgb, own)
            if rank < options.limit:
                for kind, (spoilt, stated) in kinds_of(rgb, own).items():
                    if ACCEPTED_MPP[0] <= stated <= ACCEPTED_MPP[1]:
                        count(kind, str(path), spoilt(), stated)
                    else:
                        refused[kind] += 1
        for path, mpp, _ in pictures(options.not_h_dab):
            count("other stain", str(path), *field_of(path, mpp))
    print("| kind | pictures | " + " | ".join(ADVICE) + " | flagged as wanted | refused besides |")
    print("|---" * (len(ADVICE) + 4) + "|")
    for kind, wanted in WANTED.items():
        hits = flags[kind][wanted] if wanted else "–"
        counts = " | ".join(str(flags[kind][flag]) for flag in ADVICE)
        print(f"| {kind} | {totals[kind]} | {counts} | {hits} | {refused[kind]} |")


if __name__ == "__main__":
    main()
