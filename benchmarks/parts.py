"""What each part beside the network costs, before and after it was made faster: side by side, in turn, in one run.

    python benchmarks/parts.py store sample_slides/high.svs        half floats against 8-bit codes: disk, cells, time
    python benchmarks/parts.py decode sample_slides/high.svs       JPEG decoded whole and averaged against half size
    python benchmarks/parts.py ahead sample_slides/high.svs        one batch with the generator against two

Times are of the processor, but for ``ahead``, where they are by the clock. Only ratios compare across machines.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
from scipy.spatial import KDTree

from wsiscore.cells.find import find_cells
from wsiscore.cells.table import Cells
from wsiscore.inference import infer_tiles
from wsiscore.models.store import Model, default_model, load_model
from wsiscore.mosaic import Mosaic
from wsiscore.roi.annotations import read_rois
from wsiscore.roi.beside import roi_file_beside
from wsiscore.roi.tissue import find_tissue
from wsiscore.slide.readers.tiff import TiffReader
from wsiscore.slide.slide import Slide
from wsiscore.tiles import TileList

WITHIN_UM = 2.0


def compare(ways: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> None:
    """Time the ways in turn, and print each one's median and its ratio to the first, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if number:  # the first round loads what is loaded late
                seconds[name].append(clock() - start)
    first = seconds[next(iter(ways))]
    for name, own in seconds.items():
        ratios = sorted(b / a for a, b in zip(first, own, strict=True))
        print(
            f"{name:<28} {statistics.median(own):8.3f} s   {statistics.median(ratios):5.2f} of the first "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def planned(slide: Slide, model: Model) -> TileList:
    """Return the tiles of a slide's regions."""
    file = roi_file_beside(slide.path)
    rois = read_rois(file, mpp=slide.mpp) if file else find_tissue(slide)
    spec = model.spec
    return TileList.plan(slide, rois, mpp=spec.mpp, tile_px=spec.tile_px, margin_px=spec.margin_px)


def store(path: Path, name: str, rounds: int) -> None:
    """Compare mosaics of half floats and of codes: what they take and which cells they give."""
    slide, made = Slide(path), {}
    models = {dtype: load_model(name, maps="needed") for dtype in ("float16", "uint8")}
    models["float16"].generator.spec = replace(models["float16"].spec, dtype="float16")
    tiles = planned(slide, models["uint8"])
    with tempfile.TemporaryDirectory() as folder:
        for dtype, model in models.items():
            made[dtype] = infer_tiles(slide, tiles, model, Path(folder) / dtype)
            files = [file for file in made[dtype].path.rglob("*") if file.is_file()]
            area = sum(roi.outline_um.area for roi in tiles.rois) / 1e6
            size = sum(file.stat().st_size for file in files)
            print(f"{dtype:<8} {size / area / 1e6:6.2f} MB/mm² {len(files) / area:6.1f} files/mm² ({area:.2f} mm²)")
        differences(*(find_cells(mosaic) for mosaic in made.values()))
        again = [0]

        def run(model: Model) -> Mosaic:
            again[0] += 1
            mosaic = infer_tiles(slide, tiles, model, Path(folder) / str(again[0]))
            find_cells(mosaic)
            return mosaic

        compare({dtype: lambda model=model: run(model) for dtype, model in models.items()}, rounds, time.process_time)


def differences(before: Cells, after: Cells) -> None:
    """Print how many cells are the same."""
    found = KDTree(np.column_stack([after.x_um, after.y_um]))
    distance, which = found.query(np.column_stack([before.x_um, before.y_um]), distance_upper_bound=WITHIN_UM)
    same = np.isfinite(distance)
    matched = len(np.unique(which[same]))
    flips = int((before.stained[same] != after.stained[which[same]]).sum())
    print(
        f"{len(before)} cells: {len(before) - matched} lost, {len(after) - matched} new, {flips} of another class, "
        f"index {100 * before.stained.mean():.3f} to {100 * after.stained.mean():.3f} %"
    )


def decode(path: Path, rounds: int) -> None:
    """Compare a JPEG decoded whole and averaged with one decoded at half its size."""
    reader = TiffReader(path)
    width, height, _ = reader.levels[0]
    width, height = min(width, 4096) // 2, min(height, 4096) // 2
    if reader.read_half(0, 0, 0, 8, 8) is None:
        raise SystemExit(f"{path} is not a tiled JPEG")

    def whole() -> np.ndarray:
        reader._tile.cache_clear()
        return cv2.resize(reader.read(0, 0, 0, 2 * width, 2 * height), (width, height), interpolation=cv2.INTER_AREA)

    def half() -> np.ndarray:
        reader._half_tile.cache_clear()
        return reader.read_half(0, 0, 0, width, height)

    difference = np.abs(whole().astype(int) - half())
    print(
        f"difference in grey levels: mean {difference.mean():.2f}, 99 % {np.quantile(difference, 0.99):.0f}, "
        f"most {difference.max()}"
    )
    compare({"whole, averaged": whole, "half size": half}, rounds, time.process_time)


def ahead(path: Path, name: str, rounds: int) -> None:
    """Compare one batch with the generator at a time with two."""
    slide, model = Slide(path), load_model(name, maps="needed")
    tiles = planned(slide, model)
    with tempfile.TemporaryDirectory() as folder:
        again = [0]

        def run(calls: int) -> None:
            again[0] += 1
            with patch("wsiscore.tile_pass._CALLS", calls):
                infer_tiles(slide, tiles, model, Path(folder) / str(again[0]))

        compare({"one batch": lambda: run(1), "two batches": lambda: run(2)}, rounds, time.perf_counter)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["store", "decode", "ahead"])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", default=default_model())
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.part == "decode":
        decode(given.slide, given.rounds)
    else:
        {"store": store, "ahead": ahead}[given.part](given.slide, given.model, given.rounds)


if __name__ == "__main__":
    main()
