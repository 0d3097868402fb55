"""Fixtures every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: the tests divide the cores, not each test

import cv2
import numpy as np
import pytest
from hypothesis import settings
from making import write_png

from wsiscore.slide.slide import Slide
from wsiscore.synthetic.slides import render_slide
from wsiscore.training.prepare import RenderedDataset, render_dataset

# A busy machine is no failure; the examples are the same everywhere, so that what fails once fails again. `make fuzz`
# takes the other profile: new examples each time.
settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
settings.register_profile("wsiscore", deadline=None, derandomize=True)
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


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RenderedDataset:
    """Return a small rendered dataset."""
    from training_parts import DATASET

    return render_dataset(tmp_path_factory.mktemp("dataset"), DATASET)


@pytest.fixture(scope="session")
def tiles(dataset: RenderedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return PNG tiles of two slides, as `wsiscore tile --save png` writes them."""
    folder = tmp_path_factory.mktemp("out")
    for slide in ("a", "b"):
        (folder / slide / "tiles").mkdir(parents=True)
        for row in range(3):
            rgb, _ = dataset.field(row + 3 * (slide == "b"))
            cv2.imwrite(str(folder / slide / "tiles" / f"{row:04d}_0000.png"), rgb[..., ::-1])
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep networks this small on one core: on a busy machine threads that wait for one another take minutes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of a small model with fresh weights."""
    from cards import write_small

    return write_small(tmp_path / "small")


@pytest.fixture(scope="session")
def scored(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return the folder of the results of scoring `rendered` with hdab, and its row."""
    from commands import rows, run

    out = tmp_path_factory.mktemp("out")
    done = run("score", rendered, "--model", "hdab", "-o", out)
    assert done.exit_code == 0, done.output
    return out, rows(done)[0]
