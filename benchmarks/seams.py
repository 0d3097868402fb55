"""The effect of tiling: the stitched maps of an image against the maps of the same image in one piece.

    python benchmarks/seams.py models/ihcscoregan pyramidp2p atst --width 8

Takes folders of models and names of families; a family is newly initialised, with every width set to --width if given.
Prints a Markdown table, maps in 0..1: the mean and largest absolute difference within 8 px of a seam and elsewhere, and
the mean step of the difference between neighbouring pixels, across a seam and elsewhere, which is what is visible.
Both maps are rounded as a mosaic stores them. A margin of the image is left out, because its surroundings differ.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.inference import infer_tiles
from wsiscore.models.card import CARD, Card
from wsiscore.models.contract import Generator, GeneratorSpec, SlideAdaptive
from wsiscore.models.registry import family
from wsiscore.models.store import Model, load_model
from wsiscore.regions import Region, Roi
from wsiscore.slide.slide import Slide
from wsiscore.synthetic.pairs import render_pair
from wsiscore.tiles import TileList

Maps = npt.NDArray[np.float32]

BAND_PX = 8  # to each side of a seam
MARGIN_PX = 128  # of the image, not compared
HEAD = (
    "generator",
    "tile, px",
    "margin, px",
    "spread",
    "seams: mean",
    "max",
    "else: mean",
    "max",
    "step: seams",
    "else",
)


class Difference(NamedTuple):
    """Differences by tiling, in the unit of the maps."""

    mean_at_seams: float
    max_at_seams: float
    mean_elsewhere: float
    max_elsewhere: float
    step_at_seams: float
    step_elsewhere: float


class Fixed:
    """A generator already adapted to a slide, which does not adapt again."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.spec, self.device = generator, generator.spec, generator.device

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> Maps:
        """Turn tiles into maps."""
        return self.generator(tiles)

    def weights(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return a copy of its weights by name."""
        return self.generator.weights()


def generator_of(name: str, width: int | None, device: str, norm: Literal["tile", "slide"] | None) -> Generator:
    """Return a model by its folder, or a family by its name, newly initialised."""
    if (Path(name) / CARD).exists():
        return load_model(Path(name), device, norm=norm).generator
    own = family(name)
    narrow = {field.name: width for field in fields(own.config) if field.name.endswith("width") and width}
    return own.build(own.config(**narrow), replace(own.spec, norm=norm or own.spec.norm), None, device)


def image_for(spec: GeneratorSpec, side_px: int, path: Path) -> Slide:
    """Render a square of the stain that the generator reads, at its resolution."""
    pairs = family(spec.family).pairs or ("he" if spec.rules is None else "ihc",)
    rendered = render_pair(np.random.default_rng(3), side_px, side_px, spec.mpp, pairs[:1])
    cv2.imwrite(str(path), rendered.pictures[pairs[0]][..., ::-1])
    return Slide(path, spec.mpp)


def stored(maps: npt.NDArray[np.generic], dtype: str) -> Maps:
    """Round maps in 0..1 as a mosaic does, and return them in 0..1."""
    if dtype == "uint8":
        return np.rint(np.asarray(maps, np.float32) * 255) / np.float32(255)
    return maps.astype(np.float16).astype(np.float32)


def in_one_piece(generator: Generator, slide: Slide, side_px: int) -> Maps:
    """Return (C, side, side): the maps of the image as a single tile."""
    pixels = slide.read(Region(0, 0, side_px, side_px, generator.spec.mpp))
    return stored(generator(np.ascontiguousarray(pixels.transpose(2, 0, 1))[None])[0], generator.spec.dtype)


def in_tiles(generator: Generator, slide: Slide, side_px: int, tile_px: int) -> tuple[Maps, int]:
    """Return (C, side, side): the maps of the image as a mosaic, and the side of a core."""
    spec, side_um = generator.spec, side_px * generator.spec.mpp
    rois = [Roi("all", shapely.box(0, 0, side_um, side_um))]
    tiles = TileList.plan(slide, rois, mpp=spec.mpp, tile_px=tile_px, margin_px=spec.margin_px)
    card = Card(spec.family, spec.family, "1", "A benchmark.", "none", "nothing", spec, {})
    with tempfile.TemporaryDirectory() as folder:
        mosaic = infer_tiles(slide, tiles, Model(card, generator), Path(folder) / "m.ome.zarr", batch_size=1)
        maps = mosaic.read(0, 0, side_px, side_px)[: len(spec.channels)]
    return (maps / np.float32(255) if maps.dtype == np.uint8 else maps), tile_px - 2 * spec.margin_px


def difference(whole: Maps, stitched: Maps, core_px: int, margin_px: int = MARGIN_PX) -> Difference | None:
    """Compare maps (C, side, side); None if no seam lies inside the margin."""
    side = whole.shape[1]
    place = np.arange(margin_px, side - margin_px)
    nearest = np.rint(place / core_px) * core_px
    seam = (nearest > 0) & (nearest < side)
    near = seam & (np.where(place < nearest, nearest - place, place - nearest + 1) <= BAND_PX)
    if not near.any():
        return None
    inner = np.s_[:, margin_px : side - margin_px, margin_px : side - margin_px]
    error = stitched[inner] - whole[inner]
    apart = np.abs(error)
    at_seams = near[:, None] | near
    across = (place % core_px == 0)[1:]  # the step onto a core's first pixel
    steps = [np.abs(np.diff(error, axis=axis)).mean(axis=(0, 3 - axis)) for axis in (1, 2)]
    on = np.concatenate([step[across] for step in steps])
    off = np.concatenate([step[~across] for step in steps])
    there, elsewhere = apart[:, at_seams], apart[:, ~at_seams]
    numbers = (there.mean(), there.max(), elsewhere.mean(), elsewhere.max(), on.mean(), off.mean())
    return Difference(*(float(number) for number in numbers))


def rows(name: str, generator: Generator, slide: Slide, side_px: int, sizes: list[int]) -> list[list[str]]:
    """Return a row for each size of tile."""
    spec = generator.spec
    if isinstance(generator, SlideAdaptive):
        sample = slide.read(Region(0, 0, side_px, side_px, spec.mpp)).transpose(2, 0, 1)[None]
        generator = Fixed(generator.for_slide(sample))
    whole = in_one_piece(generator, slide, side_px)
    found = []
    for size in sizes:
        if size % spec.multiple_px:
            found.append([name, f"{size}", f"reads multiples of {spec.multiple_px} px", *["–"] * 7])
            continue
        found_difference = difference(whole, *in_tiles(generator, slide, side_px, size))
        numbers = [f"{number:.4f}" for number in found_difference] if found_difference else ["no seam"] + ["–"] * 5
        found.append([name, f"{size}", f"{spec.margin_px}", f"{whole.std():.4f}", *numbers])
    return found


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", nargs="+", metavar="FOLDER|FAMILY")
    parser.add_argument("--width", type=int)
    parser.add_argument("--norm", choices=("tile", "slide"), help="by default as the card says")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--side", type=int, default=2048, help="of the image, px; a multiple of the generators'")
    parser.add_argument("--slide", type=Path, help="use the top left of this slide instead of a rendered image")
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(words)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name in given.generators:
        generator = generator_of(name, given.width, given.device, given.norm)
        with tempfile.TemporaryDirectory() as folder:
            rendered = Path(folder) / "picture.png"
            slide = Slide(given.slide, given.mpp) if given.slide else image_for(generator.spec, given.side, rendered)
            with slide:
                for row in rows(name, generator, slide, given.side, given.sizes):
                    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
