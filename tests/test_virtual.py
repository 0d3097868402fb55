"""H&E to virtual IHC to a report: a virtual stain is a slide like any other, and is never taken for a stained one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import restain
import shapely
import tifffile
from click.testing import CliRunner, Result
from making import Darkness, as_model, whole, write_png

from wsiscore.cli import main
from wsiscore.errors import SlideError
from wsiscore.inference import infer
from wsiscore.models import registry
from wsiscore.models.store import default_model
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState
from wsiscore.pipeline.rois import rois_of
from wsiscore.regions import Region, Roi
from wsiscore.slide.ome_tiff import write_ome_tiff
from wsiscore.slide.readers.registry import open_reader
from wsiscore.slide.slide import Slide
from wsiscore.synthetic.pairs import render_pair

MPP = 0.5
SIDE_UM = 300.0  # of the H&E slide
DRAWN_UM = (40.0, 50.0, 230.0, 260.0)

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def he(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an H&E slide with a region drawn beside it in its own pixels, which are not the model's."""
    folder = tmp_path_factory.mktemp("stained")
    side = round(SIDE_UM / 0.25)
    rgb = render_pair(np.random.default_rng(4), side, side, 0.25, ["he"], index=40).pictures["he"]
    path = folder / "case 7.ome.tif"
    tifffile.imwrite(
        path, rgb, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    )
    ring = [[x / 0.25, y / 0.25] for x, y in shapely.box(*DRAWN_UM).exterior.coords]
    drawn = {
        "type": "Feature",
        "properties": {"name": "tumour"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    (folder / "case 7.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [drawn]}))
    return path


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Yield what runs a command that sees the family."""

    def run(*words: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words], input=stdin)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_plugins", lambda: {"restain": "restain"})
        yield run


def in_two_commands(run: Run, he: Path, folder: Path) -> tuple[Path, Result]:
    """Return the folder of the results and what the second command printed."""
    model = restain.write(folder / "blue-to-brown")
    inferred = run("infer", he, "--model", model, "-o", folder / "out", "--ome-tiff")
    assert inferred.exit_code == 0, inferred.output
    scored = run("score", "-", stdin=inferred.stdout)
    assert scored.exit_code == 0, scored.output
    return folder / "out", scored


@pytest.fixture(scope="module")
def two_commands(run: Run, he: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Return what both commands left and printed."""
    return in_two_commands(run, he, tmp_path_factory.mktemp("two commands"))


def test_two_commands_give_a_report_that_says_what_it_is_of(two_commands: tuple[Path, Result], he: Path) -> None:
    out, scored = two_commands
    (line,) = csv.DictReader(scored.stdout.splitlines(), delimiter="\t")
    assert line in csv.DictReader((out / "scores.csv").read_text(encoding="utf-8").splitlines())
    assert (line["slide"], line["model"]) == ("case 7-virtual", f"{default_model()} on virtual blue-to-brown")
    assert float(line["area_mm2"]) == pytest.approx(190 * 210 / 1e6, abs=1e-3)
    assert int(line["positive"]) > 0
    assert int(line["negative"]) > 0

    sha = json.loads((out.parent / "blue-to-brown" / "card.json").read_text(encoding="utf-8"))["weights"]["sha256"]
    generated = {"model": "blue-to-brown", "slide": str(he), "version": "1", "weights_sha256": sha}
    folder = out / "case 7-virtual"
    score, record = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("score.json", "run.json"))
    assert score["virtual"] == record["slide"]["virtual"] == generated
    assert record["settings"]["roi_source"] == str(he.with_name("case 7.geojson"))
    assert list(score["by_roi"]) == ["tumour"]
    report, index = (
        (path / page).read_text(encoding="utf-8") for path, page in ((folder, "report.html"), (out, "index.html"))
    )
    for page in (report, index):
        assert "A virtual stain is the prediction of a network, not a stained slide." in page
        assert "blue-to-brown" in page
    assert sha[:12] in report
    assert str(he) in report


def test_a_cohort_remembers_which_of_its_slides_are_virtual(
    two_commands: tuple[Path, Result], run: Run, rendered: Path
) -> None:
    out, _ = two_commands
    assert run("score", rendered, "-o", out).exit_code == 0
    rows = list(csv.DictReader((out / "scores.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["model"] for row in rows] == [f"{default_model()} on virtual blue-to-brown", default_model()]
    assert "1 of 2 scored slides" in (out / "index.html").read_text(encoding="utf-8")


def test_the_regions_lie_where_they_were_drawn(two_commands: tuple[Path, Result]) -> None:
    out, _ = two_commands
    with Slide(out / "case 7" / "mosaic.ome.zarr") as virtual:
        (roi,), _ = rois_of(virtual)
        assert shapely.equals(shapely.box(*DRAWN_UM), shapely.normalize(roi.outline_um))
        assert (virtual.mpp, virtual.width_px) == (MPP, SIDE_UM / MPP)


def test_a_virtual_stain_generated_again_is_not_scored_from_the_old_cells(run: Run, he: Path, tmp_path: Path) -> None:
    out, _ = in_two_commands(run, he, tmp_path)
    other = restain.write(out.parent / "other", start=0.7)
    refused = run("infer", he, "--model", other, "-o", out)
    assert "other settings (model)" in refused.stderr
    (out / "case 7" / "mosaic.ome.zarr").rename(out / "put away")
    again = run("infer", he, "--model", other, "-o", out)
    scored = run("score", "-", stdin=again.stdout)
    assert scored.exit_code == 1
    header, line = (text.split("\t") for text in scored.stdout.splitlines())
    assert "virtual" in dict(zip(header, line, strict=True))["call"]


def test_models_of_the_wrong_kind_are_refused_before_they_run(run: Run, he: Path, tmp_path: Path) -> None:
    model = restain.write(tmp_path / "blue-to-brown")
    scored = run("score", he, "--model", model, "-o", tmp_path / "out")
    assert scored.exit_code == 1
    assert "blue-to-brown generates a virtual stain and finds no cells" in scored.stdout
    inferred = run("infer", he, "--model", "hdab", "--ome-tiff", "-o", tmp_path / "out")
    assert inferred.exit_code == 1
    assert "hdab finds cells and generates no picture; leave out --ome-tiff" in inferred.stderr
    assert not list(tmp_path.rglob("mosaic.ome.zarr"))


def test_the_ome_tiff_is_the_virtual_stain(two_commands: tuple[Path, Result], run: Run, tmp_path: Path) -> None:
    out, _ = two_commands
    folder = out / "case 7"
    path = folder / "case 7-virtual.ome.tif"
    one, other = open_reader(folder / "mosaic.ome.zarr"), open_reader(path)
    assert other.virtual == one.virtual
    assert other.virtual is not None
    assert (other.levels, other.mpp_xy, other.format) == (one.levels, (MPP, MPP), "OME-TIFF")
    one.close()
    other.close()
    scored = run("score", path, "-o", tmp_path)
    assert f"\t{default_model()} on virtual blue-to-brown\t" in scored.stdout


@pytest.mark.parametrize(("width", "height"), [(1301, 700), (40, 30), (512, 1024)])
def test_an_export_keeps_every_pixel_of_every_level(tmp_path: Path, width: int, height: int) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    generated = Roi("left", shapely.box(0, 0, width * MPP / 3, height * MPP))
    with Slide(write_png(tmp_path / "stained ü.png", rgb), MPP) as slide:
        mosaic = infer(slide, [generated], as_model(Darkness(tile_px=256, image=True)), tmp_path / "m.ome.zarr")
    write_ome_tiff(tmp_path / "v.ome.tif", mosaic.path)
    one, other = open_reader(mosaic.path), open_reader(tmp_path / "v.ome.tif")
    assert one.levels == other.levels
    for number, level in enumerate(one.levels):
        everything = (number, 0, 0, level.width, level.height)
        assert np.array_equal(one.read(*everything), other.read(*everything))
    assert other.virtual == one.virtual
    other.close()
    with openslide.OpenSlide(tmp_path / "v.ome.tif") as elsewhere:
        seen = np.asarray(elsewhere.read_region((0, 0), 0, (width, height)))[..., :3]
        assert float(elsewhere.properties["openslide.mpp-x"]) == pytest.approx(MPP)
    end = max(tile.write.x + tile.write.width for tile in map(mosaic.grid.tile, *zip(*mosaic.tiles.tiles, strict=True)))
    assert np.array_equal(seen[:, : width // 3], rgb[:, : width // 3])
    assert (seen[:, end:] == 255).all()


def test_maps_of_cells_are_not_exported(tmp_path: Path, rendered: Path) -> None:
    with Slide(rendered) as slide:
        mosaic = infer(slide, whole(100, 100), as_model(Darkness()), tmp_path / "m.ome.zarr")
    with pytest.raises(SlideError, match="wanted red, green, blue"):
        write_ome_tiff(tmp_path / "v.ome.tif", mosaic.path)
    assert not list(tmp_path.glob("*v.ome.tif*"))


def test_what_could_not_be_read_is_no_part_of_the_regions(tmp_path: Path) -> None:
    rgb = np.full((256, 256, 3), 200, np.uint8)
    with Slide(write_png(tmp_path / "a.png", rgb), MPP) as slide:
        mosaic = infer(
            slide, whole(128, 128), as_model(Darkness(tile_px=64, margin_px=0, image=True)), tmp_path / "m.ome.zarr"
        )
    states = mosaic.states()
    states[1, 2] = TileState.UNREADABLE
    Mosaic(mosaic.path, writable=True).mark(states)
    with Slide(mosaic.path) as virtual:
        (roi,), _ = rois_of(virtual)
        assert roi.outline_um.area == pytest.approx(128**2 - 32**2)
        assert not shapely.contains_xy(roi.outline_um, 80, 48)
        assert (virtual.read(Region(0, 0, 8, 8, MPP)) == 200).all()
