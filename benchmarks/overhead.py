"""What wsiscore adds to the network: the same tiles, by the network alone and end to end, in turn in one run.

    python benchmarks/overhead.py sample_slides/high.svs --model hdab

Prints tiles a second of both, their ratio round by round, and where the rest went. Only the ratio compares across
machines.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from wsiscore.inference import infer_tiles
from wsiscore.models.contract import Generator, SlideAdaptive
from wsiscore.models.store import Model, default_model, load_model
from wsiscore.roi.annotations import read_rois
from wsiscore.roi.beside import roi_file_beside
from wsiscore.roi.tissue import find_tissue
from wsiscore.slide.slide import Slide
from wsiscore.tile_pass import Clock
from wsiscore.tiles import TileList


def network_alone(generator: Generator, tiles: np.ndarray, batch: int) -> float:
    """Return the seconds the generator takes for tiles in memory, (N, 3, H, W)."""
    start = time.perf_counter()
    for first in range(0, len(tiles), batch):
        generator(tiles[first : first + batch])
    return time.perf_counter() - start


def end_to_end(slide: Slide, tiles: TileList, model: Model, batch: int, clock: Clock) -> float:
    """Return the seconds from the file to the finished mosaic."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        infer_tiles(slide, tiles, model, Path(folder) / "m.ome.zarr", batch_size=batch, clock=clock)
        return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--model", default=default_model())
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    slide, model = Slide(given.slide, given.mpp), load_model(given.model)
    file = roi_file_beside(given.slide)
    rois = read_rois(file, mpp=slide.mpp) if file else find_tissue(slide)
    spec = model.spec
    tiles = TileList.plan(slide, rois, mpp=spec.mpp, tile_px=given.size, margin_px=spec.margin_px)
    pixels = np.stack([slide.read(tiles.grid.tile(*place).read) for place in tiles.tiles]).transpose(0, 3, 1, 2)
    fitted = model.generator
    if isinstance(fitted, SlideAdaptive):
        fitted = fitted.for_slide(pixels[:16])
    network_alone(fitted, pixels, given.batch)
    alone, whole, clock = [], [], Clock()
    for _ in range(given.rounds):
        alone.append(network_alone(fitted, pixels, given.batch))
        whole.append(end_to_end(slide, tiles, model, given.batch, clock))
    n, middle = len(pixels), statistics.median
    ratios = sorted(a / b for a, b in zip(alone, whole, strict=True))
    print(f"{n} tiles of {given.size} px, batches of {given.batch}, model {given.model}, {given.rounds} rounds")
    print(f"network alone  {n / middle(alone):7.1f} tiles/s")
    print(f"end to end     {n / middle(whole):7.1f} tiles/s")
    print(f"ratio          {middle(ratios):7.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f}); 1 is no overhead")
    for name, total in clock.seconds.items():
        print(f"  {name:<18} {100 * total / sum(whole):5.1f} % of end to end")


if __name__ == "__main__":
    main()
