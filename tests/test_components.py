"""Whole cells are those of the whole image, whatever the blocks, and those that the published program counts."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage as ndi
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import component_mosaic, whole

from wsiscore.cells.components import Components, find_components, find_least_area_um2
from wsiscore.cells.find import find_cells, rules_of
from wsiscore.cells.rules import ComponentRules
from wsiscore.regions import Roi

_counter = itertools.count()
some = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

RULES = ComponentRules(threshold=120 / 255)
LIMITS = {"threshold": 120 / 255, "boundary": 80 / 255}
BIG, SMALL, NONE = (200, 0, 40), (40, 0, 200), (0, 0, 0)
Picture = npt.NDArray[np.uint8]


def segmented(rows: list[str]) -> Picture:
    """Return a segmentation drawn with P positive, N negative, B boundary and anything else nothing."""
    colours = {"P": BIG, "N": SMALL, "B": (0, 200, 0)}
    return np.array([[colours.get(letter, NONE) for letter in row] for row in rows], np.uint8)


def rough(seed: int, height: int, width: int, smooth: float) -> Picture:
    """Return noise whose classified pixels make specks, rings, bridges over corners and holes within holes."""
    rng = np.random.default_rng(seed)
    noise = np.stack([ndi.gaussian_filter(rng.random((height, width)), smooth) for _ in range(2)])
    field = (noise - noise.min()) / (noise.max() - noise.min())
    classified = np.abs(field[0] - np.median(field[0])) > rng.uniform(0.02, 0.2)
    colours = np.where((field[1] > np.median(field[1]))[..., None], BIG, SMALL)
    return np.where(classified[..., None], colours, NONE).astype(np.uint8)


def rows_of(components: Components) -> list[tuple[float, ...]]:
    columns = (getattr(components, name) for name in Components.__slots__)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def by_definition(segmentation: Picture, inferred: npt.NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Return (size, x, y, positive, negative) of the components over 4 px, in the words of the published program."""
    red, green, blue = segmentation.astype(int).transpose(2, 0, 1)
    classified = (red + blue > 120) & (green <= 80) & inferred
    unclassified, _ = ndi.label(np.pad(~classified, 1, constant_values=True))
    outside = {unclassified[0, 0], *unclassified[1:-1, 1:-1][~inferred]}
    cell = ~np.isin(unclassified, list(outside))[1:-1, 1:-1]
    label, count = ndi.label(cell, np.ones((3, 3)))
    found = []
    for number in range(1, count + 1):
        y, x = np.nonzero(label == number)
        positive = classified[y, x] & (red >= blue)[y, x]
        if len(x) > 4:
            n_positive = int(positive.sum())
            centre = (int(np.rint(x.mean())), int(np.rint(y.mean())))
            found.append((len(x), *centre, n_positive, int(classified[y, x].sum()) - n_positive))
    return sorted(found)


@some
@given(
    st.integers(0, 9999),
    st.integers(20, 60),
    st.integers(20, 60),
    st.sampled_from([0.0, 0.7, 2.0]),
    st.integers(7, 60),
    st.integers(0, 3),
)
def test_blocks_change_nothing_and_the_whole_is_as_defined(
    tmp_path: Path, seed: int, height: int, width: int, smooth: float, block: int, skip: int
) -> None:
    segmentation = rough(seed, height, width, smooth)
    mosaic = component_mosaic(tmp_path / f"{next(_counter)}.zarr", segmentation, 24, skip=skip)
    held = np.repeat(np.repeat(mosaic.states() == 1, 24, axis=0), 24, axis=1)[:height, :width]
    once = rows_of(find_components(mosaic, **LIMITS, block_px=1000))
    assert [row[:5] for row in once] == by_definition(segmentation, held)
    assert rows_of(find_components(mosaic, **LIMITS, block_px=block)) == once


@pytest.mark.parametrize("block", [3, 16, 33, 500])
def test_a_ring_across_many_blocks_is_one_cell_with_its_hole(tmp_path: Path, block: int) -> None:
    y, x = np.mgrid[:60, :60]
    ring = np.abs(np.hypot(x - 30, y - 28) - 20) < 3
    segmentation = np.where(ring[..., None], BIG, NONE).astype(np.uint8)
    disc = int((np.hypot(x - 30, y - 28) < 23).sum())
    found = find_components(component_mosaic(tmp_path / "m.zarr", segmentation, 25), **LIMITS, block_px=block)
    assert (list(found.size_px), list(found.x_px), list(found.y_px)) == ([disc], [30], [28])
    assert list(found.positive_px) == [int(ring.sum())]


def test_a_ring_that_the_edge_cuts_open_has_no_hole(tmp_path: Path) -> None:
    drawn = ["PPPPP", "P...P", "P...P", "P...."]
    assert list(
        find_components(component_mosaic(tmp_path / "a.zarr", segmented(drawn), 3), **LIMITS, block_px=3).size_px
    ) == [10]
    closed = ["PPPPP", "P...P", "P...P", "PPPPP"]
    assert list(
        find_components(component_mosaic(tmp_path / "b.zarr", segmented(closed), 3), **LIMITS, block_px=3).size_px
    ) == [20]


def test_corners_join_cells_and_boundaries_part_them(tmp_path: Path) -> None:
    joined = segmented(["......", ".PP...", ".PP...", "...PP.", "...PP.", "......"])
    assert list(find_components(component_mosaic(tmp_path / "a.zarr", joined, 3), **LIMITS, block_px=3).size_px) == [8]
    parted = segmented(["........", ".PPPBPP.", ".PPPBPP.", ".PPPBPP.", "........"])
    found = find_components(component_mosaic(tmp_path / "b.zarr", parted, 3), **LIMITS, block_px=3)
    assert sorted(found.size_px) == [6, 9]


def test_ties_are_positive_and_majorities_win(tmp_path: Path) -> None:
    segmentation = segmented(["............", ".PN.PPN.NNP.", ".PN.PPN.NNP.", ".PN.PPN.NNP.", "............"])
    mosaic = component_mosaic(tmp_path / "m.zarr", segmentation, 5)
    cells = find_cells(mosaic, rules=ComponentRules(120 / 255, least_area_um2=0))
    order = np.argsort(cells.x_um)
    assert list(cells.positivity[order]) == [1 / 2, 2 / 3, 1 / 3]
    assert list(cells.positive[order]) == [True, True, False]


@settings(some, max_examples=10)
@given(st.integers(0, 999))
def test_swapping_the_classes_mirrors_them(tmp_path: Path, seed: int) -> None:
    segmentation = rough(seed, 60, 60, 1.0)
    rules = ComponentRules(120 / 255, least_area_um2=0.5)
    cells = find_cells(component_mosaic(tmp_path / f"{next(_counter)}.zarr", segmentation, 24), rules=rules)
    swapped = np.ascontiguousarray(segmentation[..., ::-1])
    mirrored = find_cells(component_mosaic(tmp_path / f"{next(_counter)}.zarr", swapped, 24), rules=rules)
    assert mirrored.positivity == pytest.approx(1 - cells.positivity)
    assert (list(mirrored.x_um), list(mirrored.y_um)) == (list(cells.x_um), list(cells.y_um))


def test_only_cells_in_the_rois_and_over_the_least_area_count(tmp_path: Path) -> None:
    segmentation = np.zeros((80, 80, 3), np.uint8)
    for row, column, side in ((5, 5, 4), (5, 40, 8), (40, 5, 12), (40, 40, 12)):
        segmentation[row : row + side, column : column + side] = BIG
    mosaic = component_mosaic(tmp_path / "m.zarr", segmentation, 24)
    rules = ComponentRules(120 / 255, least_area_um2=1.0)  # 16 px, which a cell must exceed
    cells = find_cells(mosaic, rules=rules)
    assert (list(cells.x_um), list(cells.y_um)) == ([11.125, 2.625, 11.625], [2.125, 11.625, 11.625])
    assert list(cells.confidence) == pytest.approx([200 / 255] * 3, abs=1e-3)
    assert list(cells.dab_od) == [0, 0, 0]
    rois = [Roi("right", shapely.box(9, 0, 20, 20)), Roi("low", shapely.box(0, 9, 20, 20))]
    assert list(find_cells(mosaic, rois, rules=rules).roi) == [0, 1, 0]
    assert len(find_cells(mosaic, rules=ComponentRules(120 / 255, least_area_um2=5.0))) == 2


def test_the_found_area_separates_debris_from_nuclei_and_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    areas = np.concatenate([rng.integers(5, 20, 60), rng.integers(150, 400, 200)])
    nothing = np.zeros(len(areas))
    components = Components(areas, areas, areas, areas, areas, nothing, nothing)
    assert 20 * 0.25**2 < find_least_area_um2(components, 0.25) < 150 * 0.25**2
    assert find_least_area_um2(components, 0.5) == 49 * 0.25**2, "what lies above 10² px of 0.25 µm becomes 7²"
    first, none = areas[:1], nothing[:1]
    one = Components(first, first, first, first, first, none, none)
    assert find_least_area_um2(one, 0.25) == 0
    _, found = RULES.find(component_mosaic(tmp_path / "m.zarr", rough(1, 60, 60, 1.0), 24))
    assert found.least_area_um2 >= 1


def test_no_cells_is_an_empty_table(tmp_path: Path) -> None:
    assert len(find_cells(component_mosaic(tmp_path / "m.zarr", np.zeros((40, 40, 3), np.uint8), 32))) == 0
    nothing = component_mosaic(tmp_path / "n.zarr", np.zeros((40, 40, 3), np.uint8), 32, skip=4)
    assert len(find_cells(nothing)) == 0


@pytest.mark.shared
def test_the_published_tiles_give_the_published_cells(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/deepliif/published"
    for name, published in json.loads((folder / "postprocess.json").read_text()).items():
        read = cv2.imread(str(folder / f"{name}_fake_B_5.png"))
        assert read is not None
        mosaic = component_mosaic(tmp_path / f"{name}.zarr", read[..., ::-1].astype(np.uint8), 200)
        cells, found = rules_of(mosaic).find(mosaic, block_px=150)
        cells = cells.in_rois(whole(128, 128))
        assert found.least_area_um2 / 0.25**2 == published["size_thresh"]
        expected = [centre for centre in published["centroids_xy"] if centre[3] > published["size_thresh"]]
        ours = zip(cells.x_um / 0.25 - 0.5, cells.y_um / 0.25 - 0.5, cells.positive, strict=True)
        assert sorted(ours) == sorted((x, y, positive) for x, y, positive, _ in expected)
        n_positive = int(cells.positive.sum())
        assert (len(cells), n_positive) == (published["num_total"], published["num_pos"])
        assert round(100 * n_positive / len(cells), 1) == published["percent_pos"]
