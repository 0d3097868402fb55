"""Fixtures every test may use."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: the tests share the cores, not each test

import pytest
from hypothesis import settings

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
