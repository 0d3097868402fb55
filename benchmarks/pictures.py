"""Make the pictures of docs/tutorial.md from the sample slides: score them, and photograph the pages in Chromium.

Run as ``make pictures``. Chromium, or Chrome, must be installed. Everything shown is rendered.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from chromium import CHROMIUM, chromium  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SLIDE = "near-cutoff"
CROP_PX = (760, 480)
SCALE = 0.75
TILES_MS = 1500  # for the tiles to come


def main() -> None:
    """Write the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wsiscore = [sys.executable, "-m", "wsiscore"]
        subprocess.run([*wsiscore, "score", ROOT / "sample_slides", "-o", folder], check=True)
        photograph((folder / "index.html").as_uri(), "cohort", (1100, 560))
        photograph((folder / SLIDE / "report.html").as_uri(), "report", (1000, 900))
        server = subprocess.Popen([*wsiscore, "view", folder / SLIDE], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            photograph_hot_spot(server.stdout.readline().strip(), "viewer", (1000, 700))
        finally:
            server.terminate()
            server.wait()
        overlay = cv2.imread(str(folder / SLIDE / "overlay.jpg"))
        width, height = CROP_PX
        top, left = (overlay.shape[0] - height) // 2, (overlay.shape[1] - width) // 2
        save(overlay[top : top + height, left : left + width], "cells")


def photograph(address: str, name: str, size: tuple[int, int]) -> None:
    """Write a picture of a page."""
    if CHROMIUM is None:
        raise SystemExit("pictures of pages need Chromium; install it")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=4000"]
        window = f"--window-size={size[0]},{size[1]}"
        subprocess.run([CHROMIUM, *options, window, f"--screenshot={shot}", address], check=True, capture_output=True)
        save(cv2.imread(str(shot)), name)


def photograph_hot_spot(address: str, name: str, size: tuple[int, int]) -> None:
    """Write a picture of a viewer at the hot spot, when its tiles are there."""
    with chromium() as page, tempfile.TemporaryDirectory() as folder:
        page.open(address, *size)
        page.run("document.querySelector('#viewer').focus()")
        page.press("h")
        page.run(f"new Promise(done => setTimeout(done, {TILES_MS}))")
        page.screenshot(shot := Path(folder) / "shot.png")
        save(cv2.imread(str(shot)), name)


def save(picture: cv2.typing.MatLike, name: str) -> None:
    """Write a picture at `SCALE` of its size."""
    small = cv2.resize(picture, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(PICTURES / f"{name}.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
