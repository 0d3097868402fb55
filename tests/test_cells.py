"""The cells are those of the whole image, whatever the blocks; a flat top is one cell."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage as ndi
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import mosaic_of

from wsiscore.cells.find import find_cells
from wsiscore.cells.rules import CenterRules
from wsiscore.cells.table import Cells
from wsiscore.errors import MosaicError
from wsiscore.regions import Roi

_counter = itertools.count()
some = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rough_maps(seed: int, height: int, width: int, levels: int) -> npt.NDArray[np.float64]:
    """Smoothed noise, quantised so that ties and plateaus abound."""
    rng = np.random.default_rng(seed)
    maps = np.stack([ndi.gaussian_filter(rng.random((height, width)), 2) for _ in range(4)])
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return np.round((maps - low) / (high - low) * levels) / levels


def columns(cells: Cells) -> list[list[float]]:
    return [list(getattr(cells, name)) for name in ("x_um", "y_um", "confidence", "positivity", "dab_od", "roi")]


@some
@given(
    st.integers(0, 999),
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from([3, 20, 1000]),
    st.integers(5, 100),
    st.sampled_from([0.0, 0.3, 0.9]),
)
def test_blocks_change_nothing(
    tmp_path: Path, seed: int, height: int, width: int, levels: int, block: int, smooth_um: float
) -> None:
    mosaic = mosaic_of(tmp_path / f"{next(_counter)}.zarr", rough_maps(seed, height, width, levels), 24)
    rules = CenterRules(0.4, 1.5, smooth_um)
    whole = find_cells(mosaic, rules=rules, block_px=1000)
    assert columns(find_cells(mosaic, rules=rules, block_px=block)) == columns(whole)


@given(st.floats(0.6, 2), st.integers(10, 50), st.integers(10, 50))
@some
def test_smoothing_makes_one_cell_of_two_hills_and_moves_no_single_one(
    tmp_path: Path, smooth_um: float, x: int, y: int
) -> None:
    maps = np.zeros((4, 60, 60))
    maps[0, y, x] = 1
    mosaic = mosaic_of(tmp_path / f"{next(_counter)}.zarr", maps, 24)
    only = find_cells(mosaic, rules=CenterRules(0.001, 1.5, smooth_um))
    assert (only.x_um.tolist(), only.y_um.tolist()) == ([(x + 0.5) * 0.5], [(y + 0.5) * 0.5])
    rows, columns = np.mgrid[:60, :60]
    hills = [np.exp(-((rows - y) ** 2 + (columns - x - aside) ** 2) / 4.5) for aside in (-2, 2)]
    maps[0] = np.maximum(*hills)
    mosaic = mosaic_of(tmp_path / f"{next(_counter)}.zarr", maps, 24)
    assert len(find_cells(mosaic, rules=CenterRules(0.2, 1.0))) == 2
    assert len(find_cells(mosaic, rules=CenterRules(0.2, 1.0, 1.0))) == 1


@some
@given(st.integers(0, 999), st.integers(2, 6))
def test_they_are_the_maxima_of_equation_8(tmp_path: Path, seed: int, radius_px: int) -> None:
    """Against the paper's definition on the whole image; no two pixels of the centre map are equal."""
    maps = rough_maps(seed, 70, 80, 10**6).astype(np.float16).astype(np.float64)
    maps[1:3] += 0.01  # so that every pixel has a class
    one = int(np.float16(1).view(np.uint16))  # neighbouring float16 have neighbouring bit patterns
    different = np.arange(one - maps[0].size + 1, one + 1, dtype=np.uint16).view(np.float16)
    maps[0].flat[np.argsort(maps[0], axis=None)] = different
    mosaic = mosaic_of(tmp_path / f"{next(_counter)}.zarr", maps, 32, radius_um=radius_px * 0.5)
    highest = ndi.maximum_filter(maps[0], 2 * radius_px + 1, mode="constant")
    y, x = np.nonzero((maps[0] == highest) & (maps[0] > 0.5))
    cells = find_cells(mosaic, block_px=40)
    found = {(round(cx / 0.5 - 0.5), round(cy / 0.5 - 0.5)) for cx, cy in zip(cells.x_um, cells.y_um, strict=True)}
    assert len(y)
    assert found == set(zip(x.tolist(), y.tolist(), strict=True))
    assert (cells.positive == (maps[1].astype(np.float16) >= maps[2].astype(np.float16))[y, x]).all()


@some
@given(st.integers(0, 999), st.integers(0, 30), st.integers(0, 30))
def test_shifting_the_mosaic_shifts_the_cells(tmp_path: Path, seed: int, dx: int, dy: int) -> None:
    maps = rough_maps(seed, 60, 60, 50)
    maps[0, :4], maps[0, -4:], maps[0, :, :4], maps[0, :, -4:] = 0, 0, 0, 0
    before = find_cells(mosaic_of(tmp_path / f"{next(_counter)}.zarr", maps, 24))
    shifted = np.pad(maps, ((0, 0), (dy, 0), (dx, 0)))
    after = find_cells(mosaic_of(tmp_path / f"{next(_counter)}.zarr", shifted, 24))
    assert after.x_um == pytest.approx(before.x_um + dx * 0.5)
    assert after.y_um == pytest.approx(before.y_um + dy * 0.5)
    assert (after.positivity == before.positivity).all()


@pytest.mark.parametrize("block", [7, 16, 33, 500])
def test_a_saturated_plateau_across_many_blocks_is_one_cell(tmp_path: Path, block: int) -> None:
    maps = np.zeros((4, 100, 100))
    maps[0, 10:90, 10:90] = 1
    maps[1, 10:90, 10:90] = 1
    cells = find_cells(mosaic_of(tmp_path / "m.zarr", maps, 32), block_px=block)
    assert (list(cells.x_um), list(cells.y_um), list(cells.positivity)) == ([25.0], [25.0], [1.0])


def test_a_top_with_a_dip_is_one_cell(tmp_path: Path) -> None:
    maps = np.zeros((4, 40, 40))
    maps[0, 20, 18], maps[0, 20, 19], maps[0, 20, 20] = 1, 0.9, 1
    assert len(find_cells(mosaic_of(tmp_path / "m.zarr", maps, 32))) == 1


@some
@given(st.integers(0, 999))
def test_swapping_the_classes_mirrors_them(tmp_path: Path, seed: int) -> None:
    maps = rough_maps(seed, 60, 60, 10**6)
    cells = find_cells(mosaic_of(tmp_path / f"{next(_counter)}.zarr", maps, 24))
    mirrored = find_cells(mosaic_of(tmp_path / f"{next(_counter)}.zarr", maps[[0, 2, 1, 3]], 24))
    assert mirrored.positivity == pytest.approx(1 - cells.positivity)


def test_only_cells_in_the_rois_count_and_know_the_first_that_holds_them(tmp_path: Path) -> None:
    maps = np.zeros((4, 40, 40))
    maps[0, 10, [5, 15, 25, 35]] = 1
    rois = [Roi("b", shapely.box(5, 0, 14, 20)), Roi("a", shapely.box(0, 0, 10, 20))]
    cells = find_cells(mosaic_of(tmp_path / "m.zarr", maps, 32), rois)
    assert list(cells.roi) == [1, 0, 0]


def test_a_rescore_needs_no_new_inference(tmp_path: Path) -> None:
    maps = np.zeros((4, 40, 40))
    maps[0, 10, 10], maps[0, 30, 30] = 0.6, 0.9
    mosaic = mosaic_of(tmp_path / "m.zarr", maps, 32)
    assert len(find_cells(mosaic)) == 2
    assert len(find_cells(mosaic, rules=CenterRules(0.7, 1.5))) == 1


def test_no_cells_is_an_empty_table(tmp_path: Path) -> None:
    assert len(find_cells(mosaic_of(tmp_path / "m.zarr", np.zeros((4, 40, 40)), 32))) == 0


def test_an_unfinished_mosaic_is_not_scored(tmp_path: Path) -> None:
    mosaic = mosaic_of(tmp_path / "m.zarr", np.zeros((4, 40, 40)), 32, skip=1)
    with pytest.raises(MosaicError, match=r"lacks 1 tiles.*infer"):
        find_cells(mosaic)


def test_columns_have_one_length() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Cells(*(np.zeros(n) for n in (1, 1, 1, 1, 1)), np.zeros(2, np.int64))


def test_a_maximum_without_class_evidence_is_no_cell(tmp_path: Path) -> None:
    maps = np.zeros((4, 40, 40))
    maps[0, 10, 10] = maps[0, 30, 30] = 0.9
    maps[1, 30, 30] = 0.2
    cells = find_cells(mosaic_of(tmp_path / "m.zarr", maps, 32))
    assert (list(cells.x_um), list(cells.positive)) == ([15.25], [True])
