"""Engines and precisions side by side: speed of the network, and what becomes of maps, cells and index.

    python benchmarks/engines.py sample_slides/high.svs
    python benchmarks/engines.py sample_slides/high.svs --sets sets.toml OUT --only openvino-bf16

The first prints processor time for a tile, in turn in one run, with the ratio to torch in fp32 and the largest
difference of the maps. The second also scores the annotated pictures of ``sets.toml``, as `left_out.py` reads it, and
prints for each set: cells in common with torch in fp32 (Dice, within 2 µm), pairs of them whose class differs, the
change of the index in points (mean and largest of a picture), F1 and mean error of the index against the annotations.
Mosaics in OUT are not made again.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from left_out import own_counts, picture_files, pictures_of

from wsiscore.cells.find import rules_of
from wsiscore.cells.table import Cells
from wsiscore.engines.choice import PRECISIONS, Engine, Precision
from wsiscore.errors import ModelError
from wsiscore.evaluation.detection.choose import Picture, summarise
from wsiscore.evaluation.detection.matching import match
from wsiscore.models.contract import Generator, SlideAdaptive
from wsiscore.models.store import default_model, load_model
from wsiscore.pipeline.options import InferOptions
from wsiscore.pipeline.steps import infer_slide
from wsiscore.roi.tissue import find_tissue
from wsiscore.slide.slide import Slide
from wsiscore.tiles import TileList, sample_windows

ENGINES: tuple[Engine, ...] = ("torch", "openvino", "onnx")
REFERENCE = "torch-fp32"
COMMON_UM = 2.0  # of two cells that are one

Pair = tuple[Engine, Precision]


def available(model: str, only: Sequence[str]) -> dict[str, Pair]:
    """Return the engines and precisions that this computer has, by name, the reference first."""
    found: dict[str, Pair] = {}
    for engine in ENGINES:
        for precision in PRECISIONS:
            name = f"{engine}-{precision}"
            if only and name not in (REFERENCE, *only):
                continue
            try:
                load_model(model, "cpu", engine=engine, precision=precision)
            except ModelError as error:
                print(f"# {name} is left out: {error}")
                continue
            found[name] = engine, precision
    return found


def speed(slide: Slide, model: str, pairs: dict[str, Pair], rounds: int) -> None:
    """Print processor time and difference of the maps on the tiles of a slide."""
    rois, spec = find_tissue(slide), load_model(model, "cpu", engine="torch").spec
    grid = TileList.plan(slide, rois, mpp=spec.mpp, tile_px=spec.tile_px, margin_px=spec.margin_px)
    tiles = np.stack([slide.read(grid.grid.tile(*place).read) for place in grid.tiles]).transpose(0, 3, 1, 2)
    sample, weights = sample_windows(slide, rois, spec.mpp, spec.multiple_px)
    generators: dict[str, Generator] = {}
    for name, (engine, precision) in pairs.items():
        generator = load_model(model, "cpu", engine=engine, precision=precision).generator
        if isinstance(generator, SlideAdaptive):
            generator = generator.for_slide(sample.transpose(0, 3, 1, 2), weights)
        generators[name] = generator
    maps = {name: generator(tiles) for name, generator in generators.items()}
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for _ in range(rounds):
        for name, generator in generators.items():
            start = time.process_time()
            generator(tiles)
            seconds[name].append(time.process_time() - start)
    print(f"# {len(tiles)} tiles of {spec.tile_px} px, model {model}, {rounds} rounds, processor time")
    write = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n").writerow
    write(("engine", "ms_a_tile", "ratio", "least", "most", "largest_difference", "p99.9"))
    for name, own in seconds.items():
        ratios = sorted(base / mine for base, mine in zip(seconds[REFERENCE], own, strict=True))
        apart = np.abs(maps[name] - maps[REFERENCE])
        write(
            (
                name,
                f"{1000 * statistics.median(own) / len(tiles):.1f}",
                *(f"{value:.2f}" for value in (statistics.median(ratios), ratios[0], ratios[-1])),
                *(f"{value:.1e}" for value in (apart.max(), np.quantile(apart, 0.999))),
            )
        )


def effects(sets: Path, out: Path, model: str, pairs: dict[str, Pair]) -> None:
    """Print what becomes of the annotated pictures of each set."""
    write = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n").writerow
    header = ("set", "engine", "n", "cells", "dice", "flips", "change", "largest", "f1", "recall", "index_error")
    write(header)
    for about in tomllib.loads(sets.read_text(encoding="utf-8"))["set"]:
        expected: dict[str, Cells] = {}
        for name, (engine, precision) in pairs.items():
            folder = out / name / about["name"]
            options = InferOptions(out=folder, model=model, device="cpu", engine=engine, precision=precision)
            for file, mpp in picture_files(about, sets.parent):
                infer_slide(file, replace(options, mpp=mpp))
            pictures = pictures_of(about, sets.parent, folder)
            found = {picture.name: cells_of(picture) for picture in pictures}
            expected = expected or found
            measured = summarise([own_counts(picture, about.get("radius", 6.0)) for picture in pictures])
            numbers = (round(value, 4) for value in (measured.f1, measured.recall, measured.index_error))
            write((about["name"], name, len(found), *compared(found, expected), *numbers))
            sys.stdout.flush()


def cells_of(picture: Picture) -> Cells:
    """Return the cells of a mosaic by its own rules."""
    cells, _ = rules_of(picture.mosaic).find(picture.mosaic)
    return cells.in_rois(picture.mosaic.tiles.rois)


def compared(found: dict[str, Cells], expected: dict[str, Cells]) -> tuple[float, ...]:
    """Return the number of cells, Dice, pairs of different class, mean and largest change of the index."""
    pairs, flips, total, changes = 0, 0, 0, []
    for name, cells in found.items():
        other = expected[name]
        mine, theirs = match(_xy(cells), _xy(other), COMMON_UM)
        pairs += len(mine)
        flips += int((cells.positive[mine] != other.positive[theirs]).sum())
        total += len(cells) + len(other)
        if len(cells) and len(other):
            changes.append(100 * abs(cells.positive.mean() - other.positive.mean()))
    dice = 2 * pairs / max(total, 1)
    n = sum(map(len, found.values()))
    return n, round(dice, 4), flips, round(float(np.mean(changes)), 3), round(float(np.max(changes)), 2)


def _xy(cells: Cells) -> np.ndarray:
    return np.column_stack([cells.x_um, cells.y_um])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", default=default_model())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", default=[], metavar="ENGINE-PRECISION")
    parser.add_argument("--sets", nargs=2, type=Path, metavar=("SETS", "OUT"))
    given = parser.parse_args()
    pairs = available(given.model, given.only)
    with Slide(given.slide) as slide:
        speed(slide, given.model, pairs, given.rounds)
    if given.sets:
        effects(*given.sets, given.model, pairs)


if __name__ == "__main__":
    main()
