"""Fixtures every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: the tests share the cores, not each test

import numpy as np
import pytest
from hypothesis import settings
from making import write_png

from wsiscore.slide.slide import Slide
from wsiscore.synthetic.slides import render_slide

# A busy machine is no failure; and what CI tries is the same each time, so that a red run can be seen again.
settings.register_profile("wsiscore", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("wsiscore")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real slides and published numbers, or skip."""
    folder = Path(os.environ.get("WSISCORE_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("the shared data folder is not here")
    return folder


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small rendered slide with its ROI beside it."""
    return render_slide(tmp_path_factory.mktemp("slides"), "rendered", index=30, width_px=1800, height_px=1600, seed=5)


@pytest.fixture
def slide(tmp_path: Path) -> Iterator[Slide]:
    """Return an open slide of 200 µm × 200 µm, of bright noise, at ``slide.png``."""
    rgb = np.random.default_rng(1).integers(180, 255, (400, 400, 3), np.uint8)
    with Slide(write_png(tmp_path / "slide.png", rgb), 0.5) as opened:
        yield opened
