"""Time, memory and disk by the size of a slide, with a fitted line, and by the number of cells.

    python benchmarks/scale.py slides --model hdab --mm2 1 10 50 --threads 2
    python benchmarks/scale.py cells --cells 1e5 1e6 1e7

A slide is one rendered field of 0.26 mm² repeated: its tiles are encoded once, and written again and again. Each is
scored by a process of its own, whose processor time and peak memory are those that the system says. The cells are
drawn at random.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import shapely
import tifffile

from wsiscore.cells.rules import CenterRules
from wsiscore.cells.table import Cells
from wsiscore.regions import Roi
from wsiscore.roi.geojson import outlines_geojson

MPP, TILE, BLOCK = 0.25, 256, 2048
LEVELS = (1, 4, 16, 64)
TISSUE_MM2 = 400  # of a slide of 80,000 × 80,000 px


def write_slide(path: Path, side_px: int) -> None:
    """Write a square SVS of a repeated field, tiles encoded once; beside it its whole area as a region."""
    from wsiscore.synthetic.appearance import Appearance
    from wsiscore.synthetic.field import render_field

    rng = np.random.default_rng(0)
    field = render_field(rng, BLOCK, BLOCK, MPP, appearance=Appearance.random(rng, 0.15), index=20).rgb
    tail = f"(256x256) JPEG/RGB Q=80|AppMag = 40|MPP = {MPP}|Title = rendered"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for factor in LEVELS:
            side = side_px // factor
            if factor > 1 and side < TILE:
                break
            file.write(
                _encoded(field, factor, -(-side // TILE)),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                description=f"Aperio Image Library v12.0.15\r\n{side_px}x{side_px} [0,0 {side}x{side}] {tail}",
                metadata=None,
                software=False,
            )
            if factor == 1:  # the second picture of an SVS is its thumbnail, in strips
                size = f"{side_px}x{side_px} -> {BLOCK // 4}x{BLOCK // 4}"
                file.write(
                    np.ascontiguousarray(field[::4, ::4]),
                    photometric="rgb",
                    compression="jpeg",
                    rowsperstrip=16,
                    description=f"Aperio Image Library v12.0.15\r\n{size} - |AppMag = 40|MPP = {MPP}",
                    metadata=None,
                    software=False,
                )
    whole = Roi("all", shapely.box(0, 0, side_px * MPP, side_px * MPP))
    path.with_suffix(".geojson").write_text(json.dumps(outlines_geojson([whole], MPP)), encoding="utf-8")


def _encoded(field: np.ndarray, factor: int, n: int) -> Iterator[bytes]:
    """Yield n × n tiles of the repeated field at a level."""
    small = field.reshape(BLOCK // factor, factor, BLOCK // factor, factor, 3).mean((1, 3)).round().astype(np.uint8)
    times = -(-TILE // len(small))
    small = np.tile(small, (times, times, 1))
    across = len(small) // TILE
    tiles = {
        (row, col): imagecodecs.jpeg8_encode(
            np.ascontiguousarray(small[row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE]),
            level=80,
            colorspace="rgb",
            outcolorspace="rgb",
        )
        for row in range(across)
        for col in range(across)
    }
    return (tiles[row % across, col % across] for row in range(n) for col in range(n))


def score(slide: Path, out: Path, options: list[str]) -> dict[str, float]:
    """Score a slide in a process of its own, and return what it cost."""
    command = [sys.executable, "-m", "wsiscore", "score", str(slide), "-o", str(out), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    clock = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    folder = out / slide.stem
    stages = json.loads((folder / "run.json").read_text())["stages"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "clock_s": clock,
        "cpu_s": used.ru_utime + used.ru_stime,
        "rss_mb": used.ru_maxrss / 1024,
        "disk_mb": sum(path.stat().st_size for path in files) / 1e6,
        "files": float(len(files)),
        "report_s": stages.get("write: report.html", 0.0),
    }


def measure_slides(given: argparse.Namespace) -> None:
    """Print a row a size, and the line through them."""
    options = ["--model", given.model, *(["--threads", str(given.threads)] if given.threads else [])]
    areas, rows = [], []
    print(f"{given.model}, {len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f}")
    print("mm²\tpx\tcpu s\tcpu s/mm²\tclock s\tpeak MB\tMB/mm²\tfiles/mm²\treport s", flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for mm2 in given.mm2:
            side = round(mm2**0.5 * 1000 / MPP)
            write_slide(slide := Path(folder) / f"slide-{mm2:g}.svs", side)
            found = score(slide, Path(folder) / "out", options)
            area = (side * MPP / 1000) ** 2
            areas.append(area)
            rows.append(found["cpu_s"])
            print(
                f"{area:.1f}\t{side}\t{found['cpu_s']:.1f}\t{found['cpu_s'] / area:.2f}\t{found['clock_s']:.1f}"
                f"\t{found['rss_mb']:.0f}\t{found['disk_mb'] / area:.2f}\t{found['files'] / area:.1f}"
                f"\t{found['report_s']:.1f}",
                flush=True,
            )
            slide.unlink()
    if len(areas) > 2:
        slope, start = np.polyfit(areas, rows, 1, w=1 / np.asarray(areas))
        print(f"line: {start:.1f} s a slide + {slope:.3f} s a mm²; per mm² beyond the start, against the line:")
        print(
            "  "
            + ", ".join(
                f"{a:.0f} mm² {100 * ((s - start) / a / slope - 1):+.1f} %" for a, s in zip(areas, rows, strict=True)
            )
        )
        print(f"  {TISSUE_MM2} mm² by the line: {start + slope * TISSUE_MM2:.0f} s")


def random_cells(n: int) -> tuple[Cells, Roi]:
    """Return n cells at 3,000 a mm² in a square, ordered as found ones are, a quarter of them positive."""
    rng = np.random.default_rng(0)
    side = (n / 3000) ** 0.5 * 1000
    x, y = rng.uniform(0, side, n), np.sort(rng.uniform(0, side, n))
    positivity = rng.beta(0.5, 1.5, n)
    cells = Cells(x, y, rng.uniform(0.3, 1, n), positivity, positivity * 0.8, np.zeros(n, np.int64))
    return cells, Roi("all", shapely.box(0, 0, side, side))


def measure_cells(given: argparse.Namespace) -> None:
    """Print seconds and peak memory of each step by the number of cells, each step in a process of its own."""
    print("cells\tstep\tcpu s\tpeak MB above the table", flush=True)
    for n in given.cells:
        for step in STEPS:
            code = f"import benchmarks.scale as s; s.run_step({step!r}, {int(n)})"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def run_step(step: str, n: int) -> None:
    """Run one step on random cells, and print what it cost."""
    import resource

    import pyarrow  # noqa: F401 - before the memory is read

    cells, roi = random_cells(n)
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        STEPS[step](cells, roi, Path(folder))
        used = time.process_time() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{n:.0e}\t{step}\t{used:.1f}\t{peak:.0f}", flush=True)


def _parquet(cells: Cells, roi: Roi, folder: Path) -> None:
    from wsiscore.report.tables import write_cells_table

    write_cells_table(folder / "cells.parquet", cells, [roi])


def _geojson(cells: Cells, roi: Roi, folder: Path) -> None:  # noqa: ARG001
    from wsiscore.report.qupath import write_detections

    write_detections(folder / "cells.geojson", cells, mpp=MPP)


def _in_rois(cells: Cells, roi: Roi, folder: Path) -> None:  # noqa: ARG001
    cells.in_rois([roi])


def _score(cells: Cells, roi: Roi, folder: Path) -> None:  # noqa: ARG001
    from wsiscore.score import score_cells

    score_cells(cells, [roi])


def _analyse(cells: Cells, roi: Roi, folder: Path) -> None:  # noqa: ARG001
    from wsiscore.analysis.analyse import analyse

    analyse(cells, CenterRules(positive_od=0.2))


def _local_index(cells: Cells, roi: Roi, folder: Path) -> None:  # noqa: ARG001
    from wsiscore.report.local_index import count_squares, map_side_um

    count_squares(cells, [roi], map_side_um(cells, [roi]))


STEPS: dict[str, Callable[[Cells, Roi, Path], None]] = {
    "in_rois": _in_rois,
    "score": _score,
    "analysis": _analyse,
    "local index": _local_index,
    "cells.parquet": _parquet,
    "cells.geojson": _geojson,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    slides = kinds.add_parser("slides")
    slides.add_argument("--model", default="hdab")
    slides.add_argument("--mm2", type=float, nargs="+", default=[1, 10, 50])
    slides.add_argument("--threads", type=int)
    slides.add_argument("--folder", type=Path, help="Where the slides and results go for a while.")
    slides.set_defaults(run=measure_slides)
    cells = kinds.add_parser("cells")
    cells.add_argument("--cells", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    cells.set_defaults(run=measure_cells)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
