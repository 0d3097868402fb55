"""The measures of a tile follow the stain and the focus, and a slide spoilt on purpose is flagged."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import shapely
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from making import Darkness, as_model, whole, write_png

from wsiscore.cli import main
from wsiscore.errors import ResolutionError
from wsiscore.inference import infer
from wsiscore.mosaic import Mosaic
from wsiscore.quality.assess import ADVICE, LIMITS, Quality, assess
from wsiscore.quality.measures import MEASURES, measure
from wsiscore.regions import Region, Roi
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain
from wsiscore.synthetic.pairs import render_pair
from wsiscore.tiles import TileGrid

Pixels = npt.NDArray[np.uint8]

MPP = 0.25
SIDE_PX = 1024
CORE_PX = 192


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    """Return a rendered field of hematoxylin and DAB, 256 µm wide."""
    return render(tmp_path_factory.mktemp("field"), 3)


def render(folder: Path, seed: int) -> Pixels:
    from wsiscore.synthetic.slides import render_slide

    path = render_slide(folder, "field", index=30, width_px=SIDE_PX, height_px=SIDE_PX, mpp=MPP, seed=seed)
    with Slide(path) as slide:
        return slide.read(Region(0, 0, SIDE_PX, SIDE_PX, MPP))


def scaled(rgb: Pixels, strength: float) -> Pixels:
    return np.clip(np.rint(255 * (np.maximum(rgb, 1) / 255) ** strength), 0, 255).astype(np.uint8)


def blurred(rgb: Pixels, sigma_px: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma_px), dtype=np.uint8)


def of(rgb: Pixels, stain: Stain | None = None, mpp: float = MPP) -> dict[str, float]:
    return dict(zip(MEASURES, measure(rgb, stain or Stain.default(), mpp).tolist(), strict=True))


def quality_of(rgb: Pixels, mpp: float = MPP) -> Quality:
    """Assess a whole picture in tiles of 96 µm."""
    side = rgb.shape[0] * mpp
    grid = TileGrid.over(side, side, mpp, round(96 / mpp), 0)
    values, stain = np.full((grid.rows, grid.cols, len(MEASURES)), np.nan, np.float32), Stain.estimate(rgb)
    for tile in grid:
        at = tile.write
        values[tile.row, tile.col] = measure(rgb[at.y : at.y + at.height, at.x : at.x + at.width], stain, mpp)
    return assess(values, grid, whole(side, side))


@given(st.lists(st.floats(0.6, 6), min_size=2, max_size=2, unique=True))
@settings(max_examples=10)
def test_more_blur_means_less_focus(field: Pixels, sigmas: list[float]) -> None:
    less, more = sorted(sigmas)
    if more > 1.1 * less:
        assert of(field)["focus"] > of(blurred(field, less))["focus"] > of(blurred(field, more))["focus"]


@given(st.floats(0.3, 0.9))
@settings(max_examples=10)
def test_strength_scales_with_the_stain_and_focus_does_not_change(field: Pixels, strength: float) -> None:
    before, after = of(field), of(scaled(field, strength))
    for name in ("hematoxylin", "dab", "stain", "background"):
        assert after[name] == pytest.approx(strength * before[name], rel=0.1, abs=0.02)
    assert after["focus"] == pytest.approx(before["focus"], abs=0.1)


def test_the_measures_do_not_depend_on_the_resolution_of_the_model(field: Pixels) -> None:
    half = cv2.resize(field, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.uint8)
    assert of(field) == pytest.approx(of(half, mpp=2 * MPP), rel=1e-6)


def test_a_tile_of_glass_has_no_tissue_and_nothing_else(field: Pixels) -> None:
    glass = of(np.full((128, 128, 3), 255, np.uint8))
    assert [glass[name] for name in ("tissue", "hematoxylin", "dab", "pink", "pen", "fold")] == [0] * 6
    assert np.isnan(glass["focus"])


@pytest.mark.parametrize("side", [1, 7, 30])
def test_a_sliver_of_a_tile_says_only_how_much_tissue_it_has(field: Pixels, side: int) -> None:
    values = of(field[:side, :64])
    assert np.isfinite(values.pop("tissue"))
    assert np.isnan(list(values.values())).all()


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_sound_slide_has_no_flag(tmp_path: Path, seed: int) -> None:
    assert quality_of(render(tmp_path, seed)).flags == ()


def with_pen(rgb: Pixels, colour: tuple[int, int, int]) -> Pixels:
    drawn = rgb.copy()
    cv2.line(drawn, (0, 300), (SIDE_PX, 700), colour, 120)
    return drawn


def folded(rgb: Pixels) -> Pixels:
    od = -np.log10(np.maximum(rgb, 1) / 255)
    strip = od[:, 200:520]
    strip += strip[:, ::-1].copy() + 0.4 * np.array((0.918, 1.274, 1.062))
    return np.clip(255 * 10**-od, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("flag", "spoil"),
    [
        ("pale", lambda rgb: scaled(rgb, 0.2)),
        ("blur", lambda rgb: blurred(rgb, 4)),
        ("fold", folded),
        ("pen", lambda rgb: with_pen(rgb, (30, 30, 30))),
        ("pen", lambda rgb: with_pen(rgb, (20, 40, 160))),
        ("pen", lambda rgb: with_pen(rgb, (0, 0, 255))),
        ("pen", lambda rgb: with_pen(rgb, (20, 120, 50))),
        ("pen", lambda rgb: with_pen(rgb, (190, 30, 40))),
    ],
)
def test_a_spoilt_slide_is_flagged(field: Pixels, flag: str, spoil: object) -> None:
    assert callable(spoil)
    assert flag in quality_of(spoil(field)).flags


@pytest.mark.parametrize(("ground", "flags"), [(0.1, ()), (0.02, ("pale",)), (0.0, ())])
def test_dark_nuclei_on_a_faded_ground_are_pale_and_glass_is_not(ground: float, flags: tuple[str, ...]) -> None:
    values = sound(2, 2)
    values[..., MEASURES.index("background")] = ground
    assert assess(values, grid_of(2, 2), whole(64, 64)).flags == flags


@pytest.mark.parametrize("factor", [6.0, 0.2])
def test_nuclei_of_an_implausible_size_are_flagged(field: Pixels, factor: float) -> None:
    size = round(SIDE_PX * factor * MPP / 0.5)
    seen = cv2.resize(field, (size, size), interpolation=cv2.INTER_AREA if size < SIDE_PX else cv2.INTER_LINEAR)
    assert "mpp_implausible" in quality_of(seen.astype(np.uint8), 0.5).flags


@pytest.mark.parametrize("seed", range(4))
def test_hematoxylin_and_eosin_is_not_h_dab(seed: int) -> None:
    pair = render_pair(np.random.default_rng(seed), 512, 512, MPP, ("he",))
    assert "not_h_dab" in quality_of(np.ascontiguousarray(pair.pictures["he"])).flags


def test_hematoxylin_and_eosin_gets_no_call_no_index_on_its_page_and_exit_status_1(tmp_path: Path) -> None:
    pair = render_pair(np.random.default_rng(0), 256, 256, 0.5, ("he",))
    write_png(tmp_path / "he.png", np.ascontiguousarray(pair.pictures["he"]))
    options = ["--mpp", "0.5", "--model", "hdab", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["score", str(tmp_path / "he.png"), *options])
    assert done.exit_code == 1, done.output
    (row,) = csv.DictReader(io.StringIO(done.stdout), delimiter="\t")
    assert row["call"] == "unsuitable"
    assert "not_h_dab" in row["flags"].split(";")
    page = (tmp_path / "out" / "he" / "report.html").read_text()
    assert "no Ki67 index" in page
    assert "Score a section stained with hematoxylin and DAB" in page


def grid_of(rows: int, cols: int) -> TileGrid:
    return TileGrid(cols * 64, rows * 64, 0.5, 64, 0)


def sound(rows: int, cols: int) -> npt.NDArray[np.float32]:
    one = {"tissue": 1, "focus": -0.7, "size_um": 6, "hematoxylin": 0.6, "dab": 0.8, "stain": 1, "background": 0.1}
    return np.tile(np.array([one.get(name, 0) for name in MEASURES], np.float32), (rows, cols, 1))


def test_the_order_of_tiles_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values = sound(4, 6) * rng.uniform(0.5, 1.5, (4, 6, len(MEASURES))).astype(np.float32)
    shuffled = rng.permutation(values.reshape(24, -1)).reshape(values.shape)
    one, other = (assess(each, grid_of(4, 6), whole(192, 128)) for each in (values, shuffled))
    assert one.slide == pytest.approx(other.slide)
    assert one.flags == other.flags


def test_only_what_lies_in_the_regions_is_flagged_and_its_area_is_that_of_the_regions() -> None:
    values, pen = sound(4, 6), MEASURES.index("pen")
    values[0, 0, pen] = 1
    near, far = Roi("near", shapely.box(16, 16, 128, 128)), Roi("far", shapely.box(64, 64, 128, 128))
    assert assess(values, grid_of(4, 6), [far]).flags == ()
    (finding,) = assess(values, grid_of(4, 6), [near]).findings
    assert (finding.flag, finding.area_mm2) == ("pen", pytest.approx(16 * 16 / 1e6))


def test_tiles_that_could_not_be_read_are_flagged_with_their_area() -> None:
    values, unread = sound(4, 6), np.zeros((4, 6), bool)
    values[1, 2], unread[1, 2] = np.nan, True
    (finding,) = assess(values, grid_of(4, 6), whole(192, 128), unread).findings
    assert (finding.flag, finding.area_mm2) == ("tiles_missing", pytest.approx(32 * 32 / 1e6))


def test_nothing_measured_is_no_error() -> None:
    quality = assess(np.full((2, 2, len(MEASURES)), np.nan, np.float32), grid_of(2, 2), whole(64, 64))
    assert quality.flags == ()
    assert set(quality.to_json()["measures"].values()) == {None}


def test_every_flag_has_its_sentence_and_its_advice() -> None:
    from wsiscore.analysis.flags import FLAGS

    assert set(ADVICE) <= set(FLAGS)
    assert set(LIMITS) - set(MEASURES) == {
        *("least_size_um", "magnified_focus", "reduced_focus"),
        *("ground", "least_ground"),
    }


@pytest.fixture
def mosaic(slide: Slide, tmp_path: Path) -> Mosaic:
    return infer(slide, whole(200, 200), as_model(Darkness()), tmp_path / "m.ome.zarr")


def test_a_mosaic_holds_the_measures_of_each_tile(slide: Slide, mosaic: Mosaic) -> None:
    measures, stain = mosaic.measures(), Stain.from_json(mosaic.about["stain"])
    assert measures is not None
    for tile in mosaic.grid:
        expected = measure(slide.read(tile.write), stain, mosaic.grid.mpp)
        assert measures[tile.row, tile.col] == pytest.approx(expected, nan_ok=True)
    array = zarr.open_group(mosaic.path, mode="r")["quality"]
    assert isinstance(array, zarr.Array)
    assert array.metadata.dimension_names == ("row", "col", "measure")
    assert array.attrs["measures"] == list(MEASURES)


def test_a_mosaic_of_an_earlier_version_has_no_measures(mosaic: Mosaic) -> None:
    group = zarr.open_group(mosaic.path, mode="r+")
    about = dict(mosaic.about)
    del about["measures"], group["quality"]
    group.attrs["wsiscore"] = about
    assert Mosaic.open(mosaic.path).measures() is None


def test_a_picture_has_no_measures(slide: Slide, tmp_path: Path) -> None:
    assert infer(slide, whole(200, 200), as_model(Darkness(image=True)), tmp_path / "p.ome.zarr").measures() is None


def test_a_slide_is_not_enlarged_more_than_twice(tmp_path: Path) -> None:
    path = write_png(tmp_path / "coarse.png", np.full((80, 80, 3), 200, np.uint8))
    with Slide(path, 5.0) as coarse, pytest.raises(ResolutionError, match=r"5 µm/px .* reads 0\.5.* --mpp"):
        infer(coarse, whole(400, 400), as_model(Darkness()), tmp_path / "m.ome.zarr")
    spec = as_model(Darkness())
    with Slide(path, 1.0) as twice:
        assert infer(twice, whole(80, 80), replace(spec), tmp_path / "n.ome.zarr").complete
