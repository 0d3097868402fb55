"""The benchmark of seams finds those that are there, and none that are not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from making import Darkness, write_png

from wsiscore.slide.slide import Slide

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "seams.py"
SIDE_PX = 384

_spec = importlib.util.spec_from_file_location("seams", FILE)
assert _spec is not None
assert _spec.loader is not None
seams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(seams)


class Shifted(Darkness):
    """Adds a constant of each tile's own, as a network does that normalises by the whole tile."""

    def __call__(self, tiles):
        return super().__call__(tiles) * 0.5 + tiles.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float32) / 1020


@pytest.fixture
def slide(tmp_path):
    rgb = np.random.default_rng(2).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
    rgb[:, 180:] //= 2
    with Slide(write_png(tmp_path / "a.png", rgb), 0.5) as opened:
        yield opened


@pytest.mark.parametrize("image", [False, True])
def test_a_generator_that_sees_one_pixel_has_no_seams(slide, image):
    (row,) = seams.rows("plain", Darkness(image=image), slide, SIDE_PX, [128])
    assert row[:3] == ["plain", "128", "8"]
    assert float(row[3]) > 0.2
    assert row[4:] == ["0.0000"] * 6


@pytest.mark.parametrize("image", [False, True])
def test_a_generator_that_normalises_by_the_tile_has_seams(slide, image):
    (row,) = seams.rows("shifted", Shifted(image=image), slide, SIDE_PX, [128])
    *_, step_at_seams, step_elsewhere = map(float, row[4:])
    assert step_at_seams > 5 * step_elsewhere
    assert float(row[4]) > 0.01


def test_a_known_difference_is_reported_exactly():
    whole, stitched = np.zeros((2, 1, 400, 400), np.float32)
    stitched[:, :, 200:] = 0.25
    measured = seams.difference(whole, stitched, core_px=200)
    assert measured.step_at_seams == pytest.approx(0.125)  # one of two seams, the upright one
    assert measured.step_elsewhere == 0
    assert (measured.max_at_seams, measured.max_elsewhere) == (0.25, 0.25)
    assert measured.mean_elsewhere == pytest.approx(0.125)
    assert seams.difference(whole, stitched, core_px=400) is None


def test_the_table_has_a_row_for_every_size(slide, capsys):
    seams.main(
        ["hdab", "--slide", str(slide.path), "--mpp", "0.5", "--side", str(SIDE_PX), "--sizes", "250", "256", "512"]
    )
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in (head, rule, *rows)} == {len(seams.HEAD) + 1}
    assert ["multiples" in row for row in rows] == [True, False, False]
    assert "no seam" in rows[2]
