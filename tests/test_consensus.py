"""Several models on one slide: their disagreement as a number, and maps of each that are resumed and scored again."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from reports import cells_at, words

from wsiscore.analysis.consensus import compare_cells, difference, disagree
from wsiscore.cells.table import Cells
from wsiscore.cli import main
from wsiscore.models.store import find_model, read_card, write_card
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState

ONE, MPP = "hdab", ("--mpp", "0.5")


def tables_of(draw: st.DrawFn) -> Cells:
    n = draw(st.integers(0, 40))
    x, y = (draw(st.lists(st.floats(0, 60), min_size=n, max_size=n)) for _ in range(2))
    return cells_at(x, y, draw(st.lists(st.sampled_from([0.1, 0.9]), min_size=n, max_size=n)))


cells = st.composite(tables_of)()


@given(cells, cells)
def test_agreement_is_the_same_from_either_side(one: Cells, other: Cells) -> None:
    found, back = compare_cells("b", one, other), compare_cells("a", other, one)
    both, alone, by_other, neither = found.matched
    assert back.matched == (both, by_other, alone, neither)
    assert sum(found.matched) <= min(len(one), len(other))
    for here, there in ((found.kappa, back.kappa), (found.found_by_both, back.found_by_both)):
        assert here == pytest.approx(there, nan_ok=True)
        assert math.isnan(here) or -1 <= here <= 1 + 1e-9


@given(st.integers(2, 60), st.integers(0, 1000))
def test_a_model_agrees_with_itself_and_not_with_its_opposite(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = cells_at(10 * rng.permutation(n), rng.uniform(0, 1, n), np.arange(n) % 2)
    same, opposite = compare_cells("b", own, own), compare_cells("b", own, replace(own, stained=~own.positive))
    assert (same.found_by_both, same.kappa) == (1, 1)
    assert opposite.kappa < 0
    assert opposite.index == pytest.approx(100 - same.index)


@given(st.lists(st.floats(0, 100) | st.just(math.nan), min_size=1, max_size=4), st.floats(1, 99))
def test_models_disagree_by_the_cutoff_by_ten_points_or_where_one_finds_nothing(indices, cutoff) -> None:
    known = [index for index in indices if not math.isnan(index)]
    apart = max(known) - min(known) if known else 0
    sides = len({index >= cutoff for index in known})
    assert disagree(indices, cutoff) == (sides == 2 or apart > 10 or 0 < len(known) < len(indices))
    assert difference(indices) == pytest.approx(apart if len(known) > 1 else math.nan, nan_ok=True)


# ---- on a slide


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def row_of(done: Result) -> dict[str, str]:
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    (row,) = csv.DictReader(io.StringIO(done.stdout), delimiter="\t")
    return row


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a second model: the baseline, for which only what is plainly brown is positive."""
    folder = tmp_path_factory.mktemp("models") / "strict"
    folder.mkdir()
    card = read_card(find_model(ONE))
    write_card(folder, replace(card, name="strict", config={"dab_od": [0.6, 0.6, 0.6]}))
    return folder


def field(path: Path) -> Path:
    """Write a field of 600 blue, pale brown and dark brown nuclei, and a region that is all of it."""
    rng, side = np.random.default_rng(2), 625
    rgb = np.full((side, side, 3), 240, np.uint8)
    for x in range(13, side, 25):
        for y in range(13, side, 25):
            colour = [(95, 105, 160), (160, 125, 105), (90, 55, 35)][rng.choice(3, p=[0.6, 0.2, 0.2])]
            cv2.circle(rgb, (x, y), 7, colour, -1)
    assert cv2.imwrite(str(path), cv2.GaussianBlur(rgb, (0, 0), 1)[..., ::-1])
    square = [[0, 0], [side, 0], [side, side], [0, side], [0, 0]]
    path.with_suffix(".geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, strict: Path) -> tuple[Path, Path, dict[str, str]]:
    """Return a slide, its folder of results by two models, and its row."""
    folder = tmp_path_factory.mktemp("consensus")
    slide = field(folder / "s.png")
    done = run("score", slide, *MPP, "--model", f"{ONE},{strict}", "-o", folder / "out")
    return slide, folder / "out" / "s", row_of(done)


def maps(mosaic: Path) -> dict[str, bytes]:
    return {str(file.relative_to(mosaic)): file.read_bytes() for file in sorted(mosaic.rglob("*")) if file.is_file()}


def test_the_first_model_is_reported_and_the_others_beside_it(scored, strict: Path, tmp_path: Path) -> None:
    slide, folder, row = scored
    alone = row_of(run("score", slide, *MPP, "--model", ONE, "-o", tmp_path / "alone"))
    own = row_of(run("score", slide, *MPP, "--model", strict, "-o", tmp_path / "other"))
    by_model = dict(pair.split("=") for pair in row["index_by_model"].split(";"))
    assert by_model == {ONE: alone["ki67_index"], "strict": own["ki67_index"]}
    assert {key for key in row if row[key] != alone[key]} == {
        "flags",
        "index_by_model",
        "model_difference",
        "model_kappa",
    }
    assert (alone["index_by_model"], alone["model_difference"]) == ("", "nan")
    assert "models_disagree" in row["flags"].split(";")
    values = json.loads((folder / "score.json").read_text())
    (other,) = values["other_models"]
    assert (other["model"], str(round(other["ki67_index"], 1))) == ("strict", own["ki67_index"])
    apart = abs(values["ki67_index"] - other["ki67_index"])
    assert values["model_difference"] == pytest.approx(apart)
    assert row["model_difference"] == f"{apart:.1f}"
    assert other["found_by_both"] > 0.9
    assert maps(folder / "models" / "strict" / "mosaic.ome.zarr") == maps(tmp_path / "other" / "s" / "mosaic.ome.zarr")
    page = words((folder / "report.html").read_text())
    assert f"{float(own['ki67_index']):.0f} % by strict" in page
    assert "Largest difference of the local index" in page
    assert run("cohort", folder.parent).exit_code == 0
    assert "Models differ by, points" in words((folder.parent / "index.html").read_text())
    assert "Models differ by" not in words((tmp_path / "alone" / "index.html").read_text())
    (again,) = csv.DictReader(io.StringIO((folder.parent / "scores.csv").read_text()))
    assert again == row


def test_a_killed_comparison_is_resumed_and_a_mosaic_is_compared_again(
    scored, strict: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slide, folder, row = scored
    out = tmp_path / "out"
    shutil.copytree(folder.parent, out)
    mosaic = out / "s" / "models" / "strict" / "mosaic.ome.zarr"
    whole = maps(mosaic)
    states = Mosaic.open(mosaic).states()
    states[:] = TileState.TO_DO
    Mosaic(mosaic, writable=True).mark(states)
    broken = run("score", out / "s" / "mosaic.ome.zarr")
    assert broken.exit_code == 1
    assert "lacks" in row_of(broken)["call"]
    assert row_of(run("score", slide, *MPP, "--model", f"{ONE},{strict}", "-o", out)) == row
    assert maps(mosaic) == whole
    assert row_of(run("score", out / "s" / "mosaic.ome.zarr")) == row
    higher = row_of(run("score", out / "s" / "mosaic.ome.zarr", "--cutoff", "45", "-o", tmp_path / "again"))
    assert not (tmp_path / "again" / "s" / "models").exists()
    assert (higher["index_by_model"], higher["model_kappa"]) == (row["index_by_model"], row["model_kappa"])
    assert row_of(run("score", mosaic))["model"] == "strict"
    shutil.rmtree(mosaic)
    assert row_of(run("score", out / "s" / "mosaic.ome.zarr"))["index_by_model"] == ""
    assert "no longer compared" in caplog.text


@pytest.mark.parametrize(
    ("models", "said"),
    [(f"{ONE},{ONE}", "hdab is named twice"), (f"{ONE},nobody", "nobody"), (f"{ONE},", "has an empty name")],
)
def test_wrong_models_are_a_usage_error(models: str, said: str, tmp_path: Path) -> None:
    done = run("score", "s.svs", "--model", models, "-o", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (tmp_path / "out").exists()
