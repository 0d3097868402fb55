"""The viewer holds every cell in its place, keeps within its size, and works by keyboard in a browser."""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import shapely
from chromium import CHROMIUM, Page, chromium
from hypothesis import given, settings
from hypothesis import strategies as st
from making import write_png
from reports import HOSTILE, cells_at, report_of, result_of, scattered, whole_roi, words

from wsiscore.cells.table import NO_ROI, Cells, Edit
from wsiscore.regions import Roi
from wsiscore.report.pages.viewer import Shown, embedded, least_certain, pack_cells, served
from wsiscore.report.pyramid import Pyramid
from wsiscore.slide.slide import Slide

NUMBERS = st.lists(
    st.tuples(st.floats(0, 2e5), st.floats(0, 2e5), st.floats(0, 1), st.floats(0, 2.5) | st.just(np.nan)), max_size=20
)


def unpacked(packed: str) -> np.ndarray:
    """Return x, y (µm), confidence, positivity, density, kind and region of each cell, as the viewer reads them."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(12, -1).astype(np.int64)
    x, step = (planes[at] | planes[at + 1] << 8 | planes[at + 2] << 16 for at in (0, 3))
    density = np.where(planes[8] == 255, np.nan, planes[8] / 100)
    return np.stack(
        [
            x / 10,
            np.cumsum(step) / 10,
            planes[6] / 250,
            planes[7] / 250,
            density,
            planes[9],
            planes[10] | planes[11] << 8,
        ]
    )


@settings(max_examples=40)
@given(NUMBERS)
def test_packed_cells_are_the_cells(numbers):
    x, y, positivity, od = np.array(sorted(numbers, key=lambda one: one[1]), np.float64).reshape(-1, 4).T
    cells = dataclasses.replace(cells_at(x, y, positivity, od), roi=np.arange(len(x)) * 300)
    found = unpacked(pack_cells(cells, cells.positive.astype(np.uint8)))
    wanted = [x, y, cells.confidence, positivity, od, cells.positive, cells.roi]
    for own, theirs, off in zip(found, wanted, (0.051, 0.051, 0.0021, 0.0021, 0.0051, 0, 0), strict=True):
        np.testing.assert_allclose(own, theirs, atol=off, rtol=0)


@settings(max_examples=40)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 256]))
def test_the_tiles_of_each_level_cover_the_slide_once(width, height, side):
    class Flat:
        mpp, width_px, height_px = 0.25, width, height

    pyramid = Pyramid(Flat(), 0.5, side)
    for level, mpp in enumerate(pyramid.level_mpp):
        regions = [pyramid.region(tile) for tile in pyramid.tiles(level, (0, 0, width * 0.25, height * 0.25))]
        assert sum(region.width * region.height for region in regions) == -(-width * 0.25 // mpp) * -(
            -height * 0.25 // mpp
        )
        assert len({(region.x, region.y) for region in regions}) == len(regions)
        assert len(regions) == np.prod(pyramid.size(level))
    assert max(width, height) * 0.25 / pyramid.level_mpp[0] <= 1024


def shown(slide: Slide, cells: Cells, rois: list[Roi] | None = None, others: Cells | None = None) -> Shown:
    return Shown(slide, rois or [whole_roi()], cells, others, [], {}, "a", "wsiscore score")


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Slide]:
    """Return a slide of 1280 µm × 1280 µm, which has two levels of tiles."""
    rgb = np.random.default_rng(1).integers(0, 255, (80, 80, 3), np.uint8)
    with Slide(write_png(tmp_path / "wide.png", rgb.repeat(16, 0).repeat(16, 1)), 1.0) as opened:
        yield opened


def test_a_report_has_no_more_tiles_than_fit_and_the_least_certain_cells_first(wide):
    rois = [Roi("all", shapely.box(0, 0, 1280, 1280))]
    cells = scattered(4000, side_um=1280.0)
    cells = dataclasses.replace(cells, positivity=np.where(np.arange(4000) == 77, 0.5, cells.positivity))
    (coarse, fine) = embedded(shown(wide, cells, rois))["levels"]
    assert (len(coarse["images"]), len(fine["images"])) == (9, 25)
    least, more = (sum(len(each) for each in level["images"].values()) * 3 // 4 for level in (coarse, fine))
    data = embedded(shown(wide, cells, rois), most_bytes=least + more // 3, most_cells=3999)
    first, second = data["levels"]
    total = sum(len(each) * 3 // 4 for each in [*first["images"].values(), *second["images"].values()])
    assert len(first["images"]) == 9  # the whole slide is always there
    assert 0 < len(second["images"]) < 25
    assert total <= least + more // 3
    assert f"{int(cells.x_um[77] // 256)}_{int(cells.y_um[77] // 256)}" in second["images"]
    places = unpacked(data["cells"]["packed"])
    assert {f"{int(x // 256)}_{int(y // 256)}" for x, y in places[:2].T} <= set(second["images"])
    assert data["cells"]["all"] == 4000
    assert data["command"] is None  # a file of corrected cells would lack the others
    assert len(places.T) == data["cells"]["counted"] == round(data["detail"]["fraction"] * 4000)
    x, y = places[:2, data["cells"]["doubtful"][0]]
    assert abs(x - cells.x_um[77]) + abs(y - cells.y_um[77]) < 0.2


def test_nuclei_that_do_not_count_are_of_a_kind_of_their_own(slide):
    data, _ = served(shown(slide, scattered(60, 0.5), others=cells_at([3, 5], [4, 199], [1, 0])))
    kinds = unpacked(data["cells"]["packed"])[5]
    assert (data["cells"]["counted"], data["cells"]["others"]) == (60, 2)
    assert np.bincount(kinds.astype(int)).tolist() == [30, 30, 2]


def test_an_edited_cell_has_its_mark_and_no_number_that_nobody_measured(slide):
    cells = dataclasses.replace(cells_at([1], [1], [1], [np.nan]), confidence=np.array([np.nan]))
    cells = dataclasses.replace(cells.marked(np.array([True]), np.array([Edit.ADDED])), roi=np.array([NO_ROI]))
    data, _ = served(shown(slide, cells))
    x, y, confidence, _, density, kind, roi = unpacked(data["cells"]["packed"])[:, 0]
    assert (x, y, confidence, kind, roi) == (1, 1, 255 / 250, 5, 65_535)
    assert np.isnan(density)
    assert data["cells"]["edited"] == 1


def test_the_least_certain_cells_are_those_nearest_to_the_other_class():
    cells = cells_at(range(4), range(4), [0.4, 0.55, 0.9, 0.1], [0.2, 0.9, 0.19, np.nan])
    assert least_certain(cells, {}).tolist()[:2] == [1, 0]
    assert least_certain(cells, {"positive_od": 0.19}).tolist() == [2, 0, 1]
    assert least_certain(cells, {"positive_od": 0.19, "sure": 0.8}).tolist() == [0, 1, 2, 3]
    edited = cells.marked(cells.positive, np.array([Edit.CLASS_CHANGED, 0, 0, 0]))
    assert least_certain(edited, {}).tolist()[0] == 1


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with chromium() as opened:
        yield opened


def drawn(page: Page) -> int:
    return int(page.run("document.querySelector('#viewer').dataset.drawn"))


def view(page: Page) -> list[float]:
    return [float(each) for each in page.run("document.querySelector('#viewer').dataset.view").split()]


def says(page: Page) -> str:
    return " ".join(page.run("document.querySelector('.says').innerText").split())


def test_the_viewer_of_a_report_works_by_keyboard(page, tmp_path, slide):
    path = tmp_path / "report.html"
    report_of(slide, scattered(1000, 0.25), path, name=HOSTILE, rois=[whole_roi(HOSTILE)])
    page.open(path.as_uri())
    page.run("document.querySelector('#viewer canvas').focus()")
    assert drawn(page) == 1000
    before = view(page)
    for key, left in (("1", 750), ("2", 0), ("1", 250), ("2", 1000), (" ", 0), (" ", 1000)):
        page.press(key)
        assert drawn(page) == left, key
    page.press("h")
    assert says(page).startswith("Hot spot: ")
    assert view(page) != before
    page.press("n")
    assert says(page).startswith("Least certain cell 1 of 24 Class")
    page.press("N", shift=True)
    assert says(page).startswith("Least certain cell 24 of 24")
    page.press("Enter")
    first = says(page)
    assert "alert(1)" in first  # the region's name, as text
    page.press("ArrowRight", shift=True)
    assert says(page).startswith("Cell Class")
    assert says(page) != first
    middle, *_ = view(page)
    page.press("ArrowRight")
    assert view(page)[0] > middle
    page.press("Escape")
    assert says(page) == "No cell is chosen."
    page.press("0")
    assert view(page) == before
    assert page.errors == []
    assert page.asked == [path.as_uri()]


INKS = """
[[215, 25, 28], [0, 92, 230]].map(ink => {
  const canvas = document.querySelector('#viewer canvas'), { width, height } = canvas;
  const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data, sum = [0, 0, 0];
  for (let at = 0; at < width * height; at++)
    if (ink.every((value, band) => Math.abs(pixels[4 * at + band] - value) < 12)) {
      sum[0] += at % width; sum[1] += Math.floor(at / width); sum[2]++;
    }
  return [sum[0] / sum[2], sum[1] / sum[2], sum[2]];
})
"""


def test_a_click_shows_the_numbers_of_the_cell_under_it(page, tmp_path, slide):
    path = tmp_path / "report.html"
    cells = cells_at([20, 150], [30, 160], [1, 0], [0.71, np.nan])
    report_of(slide, cells, path, rois=[Roi("nest", shapely.box(0, 0, 200, 200))])
    page.open(path.as_uri(), 390, 844)
    assert page.run("document.documentElement.scrollWidth") <= 390  # nothing is wider than a phone
    box = page.run(
        "(c => { c.scrollIntoView({block: 'center'}); const b = c.getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height] })(document.querySelector('#viewer canvas'))"
    )
    x, y, scale = view(page)
    inks = page.run(INKS)
    for cell, (across, down, count) in enumerate(inks):  # the marks lie where the cells are
        assert count > 3, inks
        assert abs(across + 0.5 - box[2] / 2 - (cells.x_um[cell] - x) * scale) < 1
        assert abs(down + 0.5 - box[3] / 2 - (cells.y_um[cell] - y) * scale) < 1
    for cell, wanted in (
        (0, "Class positive Confidence 0.75 Positivity 1.00 DAB density 0.71 OD Region nest x, y 20.0, 30.0 µm"),
        (1, "Class negative Confidence 0.75 Positivity 0.00 DAB density not known Region nest x, y 150.0, 160.0 µm"),
    ):
        at = {
            "x": box[0] + box[2] / 2 + (cells.x_um[cell] - x) * scale,
            "y": box[1] + box[3] / 2 + (cells.y_um[cell] - y) * scale,
        }
        for kind in ("mousePressed", "mouseReleased"):
            page.do("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)
        assert says(page) == f"Cell {wanted}"
    seen = words(page.run("document.documentElement.outerHTML"))
    assert "50 %" in seen
    assert page.errors == []


def test_a_report_without_cells_shows_the_slide(page, tmp_path, slide):
    report_of(slide, scattered(0), tmp_path / "report.html")
    page.open((tmp_path / "report.html").as_uri())
    page.run("document.querySelector('#viewer canvas').focus()")
    for key in ("Enter", "n", "f", "5"):
        page.press(key)
    assert drawn(page) == 0
    assert page.errors == []
    assert result_of(slide, scattered(0)).score.call == "no cells"
