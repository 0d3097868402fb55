"""Put real tiles beside rendered ones in one picture, to see what gives the rendered ones away.

    python benchmarks/look_alike.py sheet.png --mpp 0.5 fields=0.12 slides/a.tif=0.3461

Each source is a picture, or a folder of them, and its micrometres per pixel. The left half of the sheet is real.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import render_field

Picture = npt.NDArray[np.uint8]
SIDE_PX, COLUMNS = 256, 4


def open_picture(path: Path) -> Picture:
    """Return (H, W, 3) RGB of a picture file."""
    if path.suffix in {".tif", ".tiff"}:
        pixels = np.squeeze(tifffile.imread(path))
        return np.moveaxis(pixels, 0, -1)[..., :3] if pixels.shape[0] <= 4 else pixels[..., :3]
    return cv2.imread(str(path))[..., ::-1]


def real_tile(rng: np.random.Generator, path: Path, mpp: float, wanted_mpp: float) -> Picture:
    """Return a random tile of a picture at the wanted resolution."""
    picture = open_picture(path)
    span = min(int(SIDE_PX * wanted_mpp / mpp), *picture.shape[:2])
    y, x = (rng.integers(0, side - span + 1) for side in picture.shape[:2])
    part = np.ascontiguousarray(picture[y : y + span, x : x + span])
    way = cv2.INTER_AREA if span > SIDE_PX else cv2.INTER_CUBIC
    return cv2.resize(part, (SIDE_PX, SIDE_PX), interpolation=way)


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("sources", nargs="+", metavar="PATH=MPP")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--difficulty", type=float, default=1.0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    sources = []
    for source in options.sources:
        name, mpp = source.rsplit("=", 1)
        path = Path(name)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        shown = [file for file in files if file.suffix in {".png", ".jpg", ".tif", ".tiff"}]
        sources.append(([file for file in shown if "mask" not in file.name], float(mpp)))
    rows = []
    for row in range(options.rows):
        tiles = []
        for column in range(COLUMNS):
            files, mpp = sources[(row * COLUMNS + column) % len(sources)]
            tiles.append(real_tile(rng, files[rng.integers(len(files))], mpp, options.mpp))
        for _ in range(COLUMNS):
            appearance, index = Appearance.random(rng, options.difficulty), 100 * rng.beta(0.7, 2.0)
            tiles.append(render_field(rng, SIDE_PX, SIDE_PX, options.mpp, appearance=appearance, index=index).rgb)
        tiles.insert(COLUMNS, np.zeros((SIDE_PX, 8, 3), np.uint8))
        rows.append(np.hstack(tiles))
    cv2.imwrite(str(options.sheet), np.ascontiguousarray(np.vstack(rows)[..., ::-1]))


if __name__ == "__main__":
    main()
