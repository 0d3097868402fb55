"""How smooth the viewer is, and how large a report: 300,000 cells on a rendered slide of 100 mm², in headless Chromium.

    python benchmarks/viewer.py --cells 300000 --side-mm 10

Prints the size of report.html and of its parts, the time to open it, and the times of frames while the picture is
dragged, at scales from the whole slide to single nuclei. A frame is from one drawing to the next; the processor time is
that of the page's own thread, which does not depend on what else the machine does. Needs Chromium, and draws without a
graphics card.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import shapely
import tifffile

from wsiscore.analysis.analyse import analyse
from wsiscore.cells.table import Cells
from wsiscore.regions import Region, Roi
from wsiscore.report.pages.slide import write_report
from wsiscore.report.result import Result
from wsiscore.score import score_cells
from wsiscore.slide.slide import Slide
from wsiscore.synthetic.slides import render_slide

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from chromium import Page, chromium

DRAG = """
(async (scale) => {
  const root = document.querySelector('#viewer'), canvas = root.querySelector('canvas');
  const box = canvas.getBoundingClientRect(), times = [], frame = () => new Promise(requestAnimationFrame);
  const fire = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type,
    { pointerId: 1, clientX: box.left + x, clientY: box.top + y, bubbles: true }));
  canvas.setPointerCapture = () => {};
  fire('pointerdown', 500, 300);
  let before = await frame();
  for (let i = 1; i <= 90; i++) {
    fire('pointermove', 500 + 6 * i * (i % 60 < 30 ? 1 : -1), 300 + 2 * i);
    const now = await frame();
    times.push(now - before);
    before = now;
  }
  fire('pointercancel', 0, 0);
  return [times, root.dataset.view, root.dataset.drawn];
})()
"""


def wide_slide(folder: Path, side_um: float) -> Path:
    """Write a square slide of 0.5 µm/px as a pyramid: a rendered field, mirrored and repeated."""
    with Slide(render_slide(folder, "field", index=25, width_px=4096, height_px=4096, seed=1)) as field:
        pixels = field.read(Region(384, 384, 1280, 1280, 0.5))
    pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    pixels = np.concatenate([pixels, pixels[::-1]])
    path, side_px = folder / "wide.tif", int(side_um / 0.5)
    options = {"tile": (512, 512), "compression": "jpeg", "photometric": "rgb", "dtype": np.uint8}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(6):
            size, scale = -(-side_px // 2**level), (2e4 / 2**level,) * 2
            shape, unit = (size, size, 3), {"resolution": scale, "resolutionunit": "CENTIMETER", "metadata": None}
            file.write(repeated(pixels, size), shape=shape, subfiletype=int(level > 0), **unit, **options)
            pixels = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return path


def repeated(pixels: np.ndarray, side_px: int) -> Iterator[np.ndarray]:
    """Yield the tiles of a square that a picture covers again and again."""
    along = np.arange(512)
    for y in range(0, side_px, 512):
        for x in range(0, side_px, 512):
            yield pixels[(y + along)[:, None] % len(pixels), (x + along) % len(pixels)]


def scattered(n: int, side_um: float) -> Cells:
    """Return cells of which a quarter is positive, ordered by y, then x."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(5, side_um - 5, (2, n))
    order = np.lexsort((x, y))
    positivity = np.where(rng.random(n) < 0.25, rng.beta(8, 1, n), rng.beta(1, 8, n))
    od = positivity * rng.uniform(0.4, 1.4, n)
    return Cells(x[order], y[order], rng.beta(5, 2, n), positivity, od, np.zeros(n, np.int64))


def thread_seconds(browser: Page) -> float:
    """Return the processor time that the page's own thread has used, in seconds."""
    metrics = browser.do("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "TaskDuration")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=300_000)
    parser.add_argument("--side-mm", type=float, default=10.0)
    given = parser.parse_args()
    side_um = given.side_mm * 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cells, rois = scattered(given.cells, side_um), [Roi("all", shapely.box(0, 0, side_um, side_um))]
        with Slide(wide_slide(folder, side_um)) as slide:
            score = score_cells(cells, rois, slide="wide", model="none")
            start = time.process_time()
            write_report(folder / "report.html", Result(slide, rois, cells, score, {}, analyse(cells)))
            seconds = time.process_time() - start
        page = (folder / "report.html").read_text(encoding="utf-8")
        (found,) = re.findall(r'id="viewer-data">(.*?)</script>', page)
        data = json.loads(found)
        print(f"report.html: {len(page) / 1e6:.1f} MB, written in {seconds:.1f} s of processor time")
        print(f"  cells: {len(data['cells']['packed']) / 1e6:.2f} MB, {data['cells']['n']} of {given.cells}")
        for level in data["levels"]:
            size = sum(map(len, level["images"].values()))
            print(f"  tiles at {level['mpp']:g} µm/px: {len(level['images'])}, {size / 1e6:.2f} MB")
        print(f"  full detail under {100 * data['detail']['fraction']:.1f} % of the cells")
        with chromium() as browser:
            start = time.perf_counter()
            browser.open((folder / "report.html").as_uri())
            print(f"opened and drawn in {time.perf_counter() - start:.1f} s")
            browser.do("Performance.enable", timeDomain="threadTicks")
            browser.run("document.querySelector('#viewer canvas').focus()")
            browser.press("0")
            for zooms in (0, 3, 3, 3, 3):
                for _ in range(zooms):
                    browser.press("+")
                before = thread_seconds(browser)
                times, view, drawn = browser.run(DRAG)
                own = 1000 * (thread_seconds(browser) - before) / len(times)
                ms = np.sort(times[5:])
                scale = float(view.split()[2])
                print(
                    f"{1 / scale:7.2f} µm a pixel, {int(drawn):7d} cells in view: frame {np.median(ms):.1f} ms, "
                    f"95 % {ms[int(0.95 * len(ms))]:.1f} ms; processor {own:.1f} ms a frame"
                )


if __name__ == "__main__":
    main()
