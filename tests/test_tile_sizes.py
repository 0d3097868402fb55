"""The default model gives the same cells whatever tiles a slide is cut into."""

from pathlib import Path

import numpy as np
import pytest

from wsiscore.cells.find import find_cells
from wsiscore.inference import infer
from wsiscore.models.store import default_model, load_model
from wsiscore.roi.annotations import read_rois
from wsiscore.slide.slide import Slide


@pytest.fixture(scope="module")
def cells_of(rendered: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return what finds the cells of the rendered slide with tiles of a size, in pixels."""
    folder, model = tmp_path_factory.mktemp("mosaics"), load_model(default_model(), "cpu")

    def find(tile_px: int):
        with Slide(rendered) as slide:
            rois = read_rois(rendered.with_suffix(".geojson"), mpp=slide.mpp)
            return find_cells(infer(slide, rois, model, folder / f"{tile_px}.ome.zarr", tile_px=tile_px))

    return find


def test_tiles_of_any_size_give_the_same_cells(cells_of) -> None:
    expected = cells_of(256)
    assert len(expected) > 100
    for tile_px in (512, 1024):
        found = cells_of(tile_px)
        np.testing.assert_array_equal(found.x_um, expected.x_um)
        np.testing.assert_array_equal(found.y_um, expected.y_um)
        np.testing.assert_array_equal(found.positive, expected.positive)
        np.testing.assert_allclose(found.confidence, expected.confidence, rtol=0, atol=1e-3)
