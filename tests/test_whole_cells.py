"""A family of whole cells, in a package of its own, from the slide to the report; and its maps, needed or all."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from making import IDENTITY, MEASURED, component_mosaic

from wsiscore.cells.rules import ComponentRules
from wsiscore.cli import main
from wsiscore.errors import MosaicError
from wsiscore.models.card import Card, read_card
from wsiscore.models.contract import GeneratorSpec
from wsiscore.models.store import write_model
from wsiscore.mosaic import Mosaic
from wsiscore.synthetic.slides import read_truth, render_slide

FAMILY = '''
"""Nuclei by colour: brown is positive, blue negative; the density of both is a further map."""
from dataclasses import dataclass

import cv2
import numpy as np

from wsiscore.cells.rules import ComponentRules
from wsiscore.models.contract import Family, GeneratorSpec
from wsiscore.stain import Stain

SPEC = GeneratorSpec(
    "nuclei", ("density", "positive", "boundary", "negative"), mpp=0.25, tile_px=256, margin_px=16, multiple_px=8,
    rules=ComponentRules(threshold=120 / 255),
)
RUNS = []


@dataclass(frozen=True)
class Config:
    pass


class Nuclei:
    device = "cpu"

    def weights(self):
        return {}

    def __init__(self, spec):
        self.spec = spec

    def __call__(self, tiles):
        self.spec.check(tiles)
        RUNS.append(self.spec.channels)
        return np.stack([self.maps(np.ascontiguousarray(tile.transpose(1, 2, 0))) for tile in tiles])

    def maps(self, rgb):
        blue, brown = (cv2.GaussianBlur(od, (0, 0), 1.5) for od in Stain.default().separate(rgb))
        cell, positive = blue + brown > 0.36, brown > 0.22
        of = {"density": np.clip((blue + brown) / 4, 0, 1), "boundary": np.zeros_like(blue)}
        of |= {"positive": 0.8 * (cell & positive), "negative": 0.8 * (cell & ~positive)}
        return np.stack([of[name] for name in self.spec.channels]).astype(np.float32)


def build(config, spec, weights, device):
    return Nuclei(spec)


FAMILY = Family(name="nuclei", spec=SPEC, config=Config, build=build)
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the family for this module's tests and return the folder of a model of it."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "lab_nuclei.py").write_text(FAMILY)
    about = folder / "lab_nuclei-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-nuclei\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[wsiscore.generators]\nnuclei = lab_nuclei\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec = importlib.import_module("lab_nuclei").SPEC
        write_model(folder / "model", Card("nuclei", "nuclei", "1", "A test.", "none", "nothing", spec, {}), None)
        yield folder / "model"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered slide, smaller than the one that all tests share."""
    return render_slide(tmp_path_factory.mktemp("slides"), "small", index=40, width_px=1300, height_px=1100, seed=21)


@pytest.fixture(scope="module")
def scored(model: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return the folder of the results of scoring a slide, and its row."""
    out = tmp_path_factory.mktemp("out")
    return out / "small", row(run("score", slide, "--model", model, "-o", out))


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def row(done: Result) -> dict[str, str]:
    return next(iter(csv.DictReader(io.StringIO(done.stdout), delimiter="\t")))


def test_it_is_scored_to_the_right_index(slide: Path, scored: tuple[Path, dict[str, str]]) -> None:
    truth = read_truth(slide.with_suffix(".truth.csv"))
    counted = (truth.kind == "tumour") & (truth.roi != "")
    assert float(scored[1]["ki67_index"]) == pytest.approx(truth.ki67_index, abs=6)
    assert int(scored[1]["positive"]) + int(scored[1]["negative"]) == pytest.approx(counted.sum(), rel=0.2)


def test_every_file_says_the_same(scored: tuple[Path, dict[str, str]]) -> None:
    folder, counts = scored
    n = int(counts["positive"]) + int(counts["negative"])
    cells = pq.read_table(folder / "cells.parquet").to_pydict()
    assert (len(cells["x_um"]), cells["class"].count("positive")) == (n, int(counts["positive"]))
    assert 0 < min(cells["confidence"]) <= max(cells["confidence"]) == pytest.approx(0.8, abs=1e-3)
    assert len(json.loads((folder / "cells.geojson").read_text())["features"]) == n
    assert (folder / "overlay.jpg").stat().st_size > 0
    chosen = json.loads((folder / "run.json").read_text())["settings"]
    assert chosen["threshold"] == 120 / 255
    assert 1 <= chosen["least_area_um2"] <= 6.25
    assert "radius_um" not in chosen
    assert f"a connected area of more than {chosen['least_area_um2']:g} µm²" in (folder / "report.html").read_text()


def test_a_rescore_takes_other_thresholds_and_refuses_what_means_nothing(
    scored: tuple[Path, dict[str, str]], slide: Path, model: Path, tmp_path: Path
) -> None:
    mosaic = scored[0] / "mosaic.ome.zarr"
    larger = row(run("score", mosaic, "--least-area", 20, "-o", tmp_path))
    assert int(larger["negative"]) < int(scored[1]["negative"])
    assert int(row(run("score", mosaic, "--threshold", 0.9, "-o", tmp_path))["negative"]) == 0
    for given in ([mosaic], [slide, "--model", model]):
        refused = row(run("score", *given, "--radius", 3, "-o", tmp_path))["call"]
        assert (
            "--radius does not apply to the cells of nuclei, which have the rules --boundary, --least-area, --threshold"
            in refused
        )


def test_other_maps_are_computed_and_kept_when_asked_for(
    scored: tuple[Path, dict[str, str]], slide: Path, model: Path, tmp_path: Path
) -> None:
    runs = importlib.import_module("lab_nuclei").RUNS
    needed = ("positive", "boundary", "negative")
    assert set(runs) == {needed}
    assert Mosaic.open(scored[0] / "mosaic.ome.zarr").channels == (*needed, "dab_od")

    short = run("infer", slide, "--model", model, "--maps", "all", "-o", scored[0].parent)
    assert short.exit_code == 1
    assert "was made without the maps density; delete it or choose another folder" in short.stderr

    everything = ("infer", slide, "--model", model, "-o", tmp_path, "--maps")
    assert run(*everything, "all").exit_code == 0
    mosaic = Mosaic.open(tmp_path / "small" / "mosaic.ome.zarr")
    assert mosaic.channels == ("density", *needed, "dab_od")
    assert mosaic.read(0, 0, 900, 800, ["density"]).max() > 0.1
    n_runs = len(runs)
    assert run(*everything, "needed").exit_code == 0
    assert row(run("score", slide, "--model", model, "-o", tmp_path)) == scored[1]
    assert row(run("score", mosaic.path, "-o", tmp_path)) == scored[1]
    assert len(runs) == n_runs, "the finished mosaic serves"


def test_an_unfinished_mosaic_or_one_with_its_maps_exchanged_does_not_serve(tmp_path: Path) -> None:
    tiles = component_mosaic(tmp_path / "other.zarr", np.zeros((40, 40, 3), np.uint8), 32).tiles
    path, about = tmp_path / "m.zarr", {"output": "components", "model": {}}

    def create(*channels: str) -> Mosaic:
        found = Mosaic.resume(path, tiles, channels, IDENTITY, about)
        return found or Mosaic.create(path, tiles, channels, "float16", IDENTITY, about, MEASURED)

    mosaic = create("density", "positive", "boundary", "negative")
    with pytest.raises(
        MosaicError, match=r"is unfinished and holds more maps; finish it with --maps all, or delete it"
    ):
        create("positive", "boundary", "negative")
    mosaic.finish()
    assert create("positive", "boundary", "negative").channels == mosaic.channels
    with pytest.raises(MosaicError, match=r"started with other settings \(channels\)"):
        create("negative", "boundary", "positive")
    about["output"] = "centers"
    with pytest.raises(MosaicError, match=r"started with other settings \(channels, output\)"):
        create("positive", "boundary", "negative")


def test_a_card_holds_the_rules_that_its_cells_heed(model: Path) -> None:
    rules = json.loads((model / "card.json").read_text())["spec"]["rules"]
    assert rules == {"threshold": 120 / 255, "boundary": 80 / 255, "least_area_um2": None}
    assert read_card(model).spec.rules == ComponentRules(threshold=120 / 255)
    shown = run("models", "info", model)
    assert shown.exit_code == 0, shown.output
    assert "threshold 0.470588, boundary 0.313725, least_area_um2 found on the slide" in shown.stdout


@pytest.mark.parametrize(
    ("channels", "why"),
    [
        (("positive", "negative"), "lack boundary"),
        (("positive", "negative", "negative", "boundary"), "name a map twice"),
    ],
)
def test_channels_are_those_that_the_rules_need(channels: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        GeneratorSpec("nuclei", channels, 0.25, rules=ComponentRules())


def test_what_is_needed_keeps_its_order_among_the_others() -> None:
    spec = GeneratorSpec(
        "nuclei", ("dapi_red", "positive", "boundary", "dapi_blue", "negative"), 0.25, rules=ComponentRules()
    )
    assert (spec.output, spec.needed) == ("components", ("positive", "boundary", "negative"))
    picture = GeneratorSpec("nuclei", ("red", "mask", "green", "blue"), 0.25, dtype="uint8")
    assert (picture.output, picture.needed) == ("image", ("red", "green", "blue"))
