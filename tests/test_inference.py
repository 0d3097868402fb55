"""What the mosaic holds is what the generator gives, however often the run was killed."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import shapely
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import Darkness, as_model, whole, write_png

from wsiscore.errors import ModelError, MosaicError, OutputError, SlideError
from wsiscore.inference import infer, infer_tiles
from wsiscore.map_codes import DAB_CHANNEL
from wsiscore.models.card import Weights
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState
from wsiscore.regions import Region, Roi
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain, dab_od_map
from wsiscore.tiles import TileList


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    rgb = np.random.default_rng(0).integers(0, 256, (150, 210, 3), np.uint8)
    return Slide(write_png(tmp_path / "noise.png", rgb), mpp=0.5)


def everything(slide: Slide) -> list[Roi]:
    return whole(slide.width_px * slide.mpp, slide.height_px * slide.mpp)


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tile_px=st.sampled_from([32, 64, 128]), margin_px=st.integers(0, 11))
def test_the_seams_do_not_show(slide: Slide, tmp_path: Path, tile_px: int, margin_px: int) -> None:
    """A generator that treats each pixel alone gives the same mosaic in every grid."""
    path = tmp_path / f"{tile_px}-{margin_px}.ome.zarr"
    mosaic = infer(slide, everything(slide), as_model(Darkness(tile_px=tile_px, margin_px=margin_px)), path)
    expected = 1 - slide.read(mosaic.grid.region).transpose(2, 0, 1).astype(np.float32) / 255
    assert mosaic.read(0, 0, 210, 150)[:3] == pytest.approx(expected, abs=0.501 / 255)


def test_a_picture_comes_out_as_it_went_in(slide: Slide, tmp_path: Path) -> None:
    mosaic = infer(slide, everything(slide), as_model(Darkness(image=True)), tmp_path / "m.ome.zarr")
    assert (mosaic.read(0, 0, 210, 150).transpose(1, 2, 0) == slide.read(mosaic.grid.region)).all()
    virtual = Slide(mosaic.path)
    assert (virtual.width_px, virtual.height_px, virtual.mpp) == (210, 150, 0.5)
    assert (virtual.read(Region(0, 0, 210, 150, 0.5)) == slide.read(mosaic.grid.region)).all()


def test_the_density_of_dab_is_that_of_the_image_in_one_piece(slide: Slide, tmp_path: Path) -> None:
    mosaic = infer(slide, everything(slide), as_model(Darkness()), tmp_path / "m.ome.zarr")
    whole = slide.read(Region(0, 0, slide.width_px, slide.height_px, 0.5))
    wanted = dab_od_map(whole, Stain.from_json(mosaic.about["stain"]), 0.5)[8:-8, 8:-8]
    assert wanted.max() > 0.1
    found = mosaic.read(0, 0, slide.width_px, slide.height_px, [DAB_CHANNEL])[0, 8:-8, 8:-8]
    assert found + 0.1 == pytest.approx(wanted + 0.1, rel=0.0076)  # half a step of its codes


def test_only_tiles_that_touch_a_roi_are_read(slide: Slide, tmp_path: Path) -> None:
    mosaic = infer(slide, [Roi("r", shapely.box(30, 30, 40, 40))], as_model(Darkness()), tmp_path / "m.ome.zarr")
    assert {tuple(place) for place in np.argwhere(mosaic.states())} == set(mosaic.tiles.tiles)
    assert 0 < len(mosaic.tiles.tiles) < len(mosaic.grid)


def test_a_finished_mosaic_is_not_made_again(slide: Slide, tmp_path: Path) -> None:
    infer(slide, everything(slide), as_model(Darkness()), tmp_path / "m.ome.zarr")
    again = Darkness()
    infer(slide, everything(slide), as_model(again), tmp_path / "m.ome.zarr")
    assert again.calls == 0


def test_the_pyramid_is_the_mean_of_the_level_below(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (700, 1301, 3), np.uint8)
    slide = Slide(write_png(tmp_path / "large.png", rgb), mpp=0.5)
    mosaic = infer(
        slide, everything(slide), as_model(Darkness(tile_px=256, margin_px=8, image=True)), tmp_path / "m.ome.zarr"
    )
    group = zarr.open_group(mosaic.path, mode="r")
    full = np.pad(np.asarray(group["0"][:]), ((0, 0), (0, 0), (0, 1)), mode="edge").astype(float)
    mean = full.reshape(3, 350, 2, 651, 2).mean(axis=(2, 4))
    assert np.asarray(group["1"][:]) == pytest.approx(mean, abs=0.51)
    assert max(group["2"].shape) <= 512


def test_ome_metadata_places_every_level_on_the_slide(slide: Slide, tmp_path: Path) -> None:
    mosaic = infer(slide, everything(slide), as_model(Darkness()), tmp_path / "m.ome.zarr")
    ome = dict(zarr.open_group(mosaic.path, mode="r").attrs)["ome"]
    assert ome["version"] == "0.5"
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["c", "y", "x"]
    for level, dataset in enumerate(ome["multiscales"][0]["datasets"]):
        scale, translation = (transform[transform["type"]] for transform in dataset["coordinateTransformations"])
        top_left = translation[1] - scale[1] / 2  # the corner of the first pixel
        assert scale[1:] == [0.5 * 2**level] * 2
        assert top_left == pytest.approx(-slide.mpp / 2)


def test_a_mosaic_of_other_settings_is_refused_and_left_alone(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "m.ome.zarr"
    tiles = TileList.plan(slide, everything(slide), mpp=0.5, tile_px=64, margin_px=8)
    one = as_model(Darkness())
    infer_tiles(slide, tiles, one, path)
    before = bytes_of(path)
    for other, what in (
        (replace(one, card=replace(one.card, config={"width": 2})), "model"),
        (replace(one, card=replace(one.card, weights=Weights("w", "1" * 64))), "model"),
    ):
        with pytest.raises(MosaicError, match=rf"other settings \({what}\).*-o"):
            infer_tiles(slide, tiles, other, path)
    with pytest.raises(MosaicError, match=r"other settings \(batch_size\)"):
        infer_tiles(slide, tiles, one, path, batch_size=3)
    assert bytes_of(path) == before


def test_tiles_must_fit_the_generator(slide: Slide, tmp_path: Path) -> None:
    tiles = TileList.plan(slide, everything(slide), mpp=0.25, tile_px=64, margin_px=8)
    with pytest.raises(MosaicError, match=r"0\.25 µm/px .* --at 0\.5"):
        infer_tiles(slide, tiles, as_model(Darkness()), tmp_path / "m.ome.zarr")
    with pytest.raises(ModelError, match="multiple of 8 px"):
        infer(slide, everything(slide), as_model(Darkness()), tmp_path / "m.ome.zarr", tile_px=60)


def test_what_is_no_mosaic_says_so(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=3)
    for path in (tmp_path / "other.zarr", tmp_path / "nothing"):
        with pytest.raises(MosaicError, match="not a mosaic of wsiscore"):
            Mosaic.open(path)


class Holed(Slide):
    """A slide with a place that cannot be decoded."""

    hole = Region(0, 0, 1, 1, 0.5)

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        if region.intersection(self.hole):
            raise SlideError("broken tile")
        return super().read(region)


def test_a_broken_tile_is_left_out_and_known(tmp_path: Path) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (400, 400, 3), np.uint8)
    slide = Holed(write_png(tmp_path / "holed.png", rgb), mpp=0.5)
    mosaic = infer(slide, everything(slide), as_model(Darkness()), tmp_path / "m.ome.zarr")
    assert mosaic.states()[0, 0] == TileState.UNREADABLE
    assert np.count_nonzero(mosaic.states() == TileState.UNREADABLE) == 1
    unreadable = mosaic.unreadable_um()
    assert unreadable is not None
    assert unreadable.bounds == (0, 0, 24, 24)


def test_a_damaged_slide_is_refused(tmp_path: Path, slide: Slide) -> None:
    holed = Holed(slide.path, mpp=0.5)
    holed.hole = Region(0, 0, 60, 1, 0.5)
    with pytest.raises(SlideError, match=r"2 of 20 tiles cannot be read; the file is damaged"):
        infer(holed, everything(slide), as_model(Darkness()), tmp_path / "m.ome.zarr")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_unwritable_folder_says_so(slide: Slide, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="choose another folder"):
        infer(slide, everything(slide), as_model(Darkness()), tmp_path / "locked" / "m.ome.zarr")


def test_a_file_in_the_way_says_so(slide: Slide, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        infer(slide, everything(slide), as_model(Darkness()), tmp_path / "taken" / "m.ome.zarr")


_DYING = """
import os, signal, sys
import numpy as np
from making import Darkness, as_model, whole
from wsiscore.inference import infer
from wsiscore.slide.slide import Slide
from wsiscore.stain import Stain, dab_od_map

source, target, lives = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Dying(Darkness):
    def __call__(self, tiles):
        if self.calls == lives:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(tiles)

slide = Slide(source, mpp=0.5)
infer(slide, whole(slide.width_px * 0.5, slide.height_px * 0.5), as_model(Dying(tile_px=512)), target)
"""


def test_a_run_killed_again_and_again_ends_with_the_bytes_of_one_left_alone(tmp_path: Path) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (3000, 4000, 3), np.uint8)
    source = write_png(tmp_path / "noise.png", rgb)
    script = tmp_path / "dying.py"
    script.write_text(_DYING)

    def run(name: str, lives: int) -> int:
        command = [sys.executable, str(script), str(source), str(tmp_path / name), str(lives)]
        search = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, check=False).returncode

    assert run("whole", 1000) == 0
    exits = [run("killed", lives) for lives in (0, 4, 1000)]
    assert exits == [-signal.SIGKILL] * 2 + [0]
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_another_slide_at_the_same_path_is_refused(slide: Slide, tmp_path: Path) -> None:
    infer(slide, everything(slide), as_model(Darkness()), path := tmp_path / "m.ome.zarr")
    rgb = np.random.default_rng(9).integers(0, 256, (150, 210, 3), np.uint8)
    other = Slide(write_png(slide.path, rgb), mpp=0.5)
    with pytest.raises(MosaicError, match=r"other settings \(slide_sha256\)"):
        infer(other, everything(other), as_model(Darkness()), path)


def test_an_unfinished_mosaic_of_another_file_is_replaced(slide: Slide, tmp_path: Path) -> None:
    broken = Holed(slide.path, mpp=0.5)
    broken.hole = Region(0, 0, 60, 1, 0.5)
    with pytest.raises(SlideError, match="fetch it again"):
        infer(broken, everything(slide), as_model(Darkness()), path := tmp_path / "m.ome.zarr")
    rgb = np.random.default_rng(9).integers(0, 256, (150, 210, 3), np.uint8)
    intact = Slide(write_png(slide.path, rgb), mpp=0.5)
    found = infer(intact, everything(intact), as_model(Darkness()), path)
    clean = infer(intact, everything(intact), as_model(Darkness()), tmp_path / "clean.ome.zarr")
    assert bytes_of(found.path) == bytes_of(clean.path)


def test_a_tile_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (1150, 1150, 3), np.uint8)
    source = write_png(tmp_path / "holed.png", rgb)
    tiles = TileList.plan(sound := Slide(source, mpp=0.5), everything(sound), mpp=0.5, tile_px=256, margin_px=8)
    holed = Holed(source, mpp=0.5)
    holed.hole = Region(1100, 1100, 1, 1, 0.5)  # in none of the windows that the stains are measured on
    infer_tiles(holed, tiles, as_model(Darkness()), path := tmp_path / "m.ome.zarr", batch_size=2)
    found = infer_tiles(sound, tiles, as_model(Darkness()), path, batch_size=2)
    assert (found.states() != TileState.UNREADABLE).all()
    clean = infer_tiles(sound, tiles, as_model(Darkness()), tmp_path / "clean.ome.zarr", batch_size=2)
    assert (found.read(0, 0, 1150, 1150) == clean.read(0, 0, 1150, 1150)).all()
    assert bytes_of(found.path / "0") == bytes_of(clean.path / "0")


class Broken(Darkness):
    """A generator one of whose numbers is not finite."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        maps = super().__call__(tiles)
        maps[-1, 0, 3, 5] = self.value
        return maps


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_error(slide: Slide, tmp_path: Path, value: float) -> None:
    with pytest.raises(ModelError, match="not finite numbers"):
        infer(slide, everything(slide), as_model(Broken(value)), tmp_path / "m.ome.zarr")


@pytest.mark.parametrize("left", ["zarr.json", "done", "0"])
def test_a_part_of_a_layout_is_replaced(slide: Slide, tmp_path: Path, left: str) -> None:
    path = tmp_path / "m.ome.zarr"
    clean = bytes_of(infer(slide, everything(slide), as_model(Darkness()), path).path)
    for entry in path.iterdir():
        if entry.name != left:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    infer(slide, everything(slide), as_model(Darkness()), path)
    assert bytes_of(path) == clean
