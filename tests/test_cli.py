"""The commands alone, chained and over a cluster."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from commands import rows, run

from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState
from wsiscore.synthetic.slides import read_truth

WSISCORE = f"{sys.executable} -c 'from wsiscore.cli import main; main()'"


def test_a_slide_is_scored_near_its_truth(rendered: Path, scored: tuple[Path, dict[str, str]]) -> None:
    _, row = scored
    known = ["slide", "model", "positive", "negative", "ki67_index", "low95", "high95", "area_mm2", "call"]
    assert list(row)[: len(known)] == known
    truth = read_truth(rendered.with_suffix(".truth.csv"))
    counted = (truth.kind == "tumour") & (truth.roi != "")
    assert float(row["ki67_index"]) == pytest.approx(truth.ki67_index, abs=6)
    assert int(row["positive"]) + int(row["negative"]) == pytest.approx(counted.sum(), rel=0.25)
    assert (row["slide"], row["model"]) == ("rendered", "hdab")


def test_every_file_is_there_and_says_the_same(scored: tuple[Path, dict[str, str]]) -> None:
    out, row = scored
    folder = out / "rendered"
    files = {"tiles.json", "mosaic.ome.zarr", "cells.parquet", "score.json", "cells.geojson", "run.json"}
    assert {path.name for path in folder.iterdir()} == files | {
        "overlay.jpg",
        "quality.json", "regions.geojson", "report.html", "thumbnail.jpg"
    }  # fmt: skip
    score = json.loads((folder / "score.json").read_text())
    assert f"{score['ki67_index']:.1f}" == row["ki67_index"]
    assert sum(roi["positive"] for roi in score["by_roi"].values()) == score["positive"] == int(row["positive"])
    (roi,) = score["by_roi"].values()
    assert roi == {key: score[key] for key in roi}
    cells = pq.read_table(folder / "cells.parquet").to_pydict()
    assert list(cells) == ["x_um", "y_um", "class", "confidence", "positivity", "dab_od", "roi", "kind", "geometry"]
    assert cells["class"].count("positive") == score["positive"]
    assert len(json.loads((folder / "cells.geojson").read_text())["features"]) == len(cells["x_um"])
    assert list(csv.DictReader(io.StringIO((out / "scores.csv").read_text()))) == [row]
    assert "rendered/report.html" in (out / "index.html").read_text()


def test_the_record_says_how_it_was_made(rendered: Path, scored: tuple[Path, dict[str, str]]) -> None:
    record = json.loads((scored[0] / "rendered" / "run.json").read_text())
    assert record["slide"]["path"] == str(rendered)
    assert len(record["slide"]["sha256"]) == 64
    assert record["settings"]["roi_source"] == str(rendered.with_suffix(".geojson"))
    assert {"rois", "infer", "infer: network", "infer: wait_for_reading", "cells", "write: report.html"} <= set(
        record["stages"]
    )
    assert record["finished"] is not None


def test_tile_infer_score_chain_in_a_pipe(rendered: Path, scored: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    pipe = f"ls {rendered} | {WSISCORE} tile - --size 512 | {WSISCORE} infer - --model hdab | {WSISCORE} score -"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(pipe, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t")) == [scored[1]]
    assert (tmp_path / "wsiscore-out" / "rendered" / "report.html").exists()


def test_a_mosaic_is_scored_again_without_the_model(scored: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    mosaic = scored[0] / "rendered" / "mosaic.ome.zarr"
    assert rows(run("score", mosaic, "-o", tmp_path)) == [scored[1]]
    stricter = rows(run("score", mosaic, "--threshold", "0.9", "--cutoff", "1", "-o", tmp_path))[0]
    assert int(stricter["negative"]) < int(scored[1]["negative"])


def test_positive_cells_have_more_dab(scored: tuple[Path, dict[str, str]]) -> None:
    cells = pq.read_table(scored[0] / "rendered" / "cells.parquet").to_pydict()
    density, positive = np.array(cells["dab_od"]), np.array(cells["class"]) == "positive"
    assert np.median(density[positive]) > np.median(density[~positive]) + 0.05


def test_what_could_not_be_read_is_taken_off_the_area_of_the_score(
    scored: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    copied = shutil.copytree(scored[0] / "rendered" / "mosaic.ome.zarr", tmp_path / "a" / "mosaic.ome.zarr")
    mosaic = Mosaic(copied, writable=True)
    regions = shapely.union_all([roi.outline_um for roi in mosaic.tiles.rois])
    cores = {place: shapely.box(*mosaic.grid.tile(*place).write.bounds_um) for place in mosaic.tiles.tiles}
    place, lost = max(
        ((place, regions.intersection(core).area / 1e6) for place, core in cores.items()), key=lambda one: one[1]
    )
    states = mosaic.states()
    states[place] = TileState.UNREADABLE
    mosaic.mark(states)
    assert run("score", copied, "-o", tmp_path / "out").exit_code == 0
    before = json.loads((scored[0] / "rendered" / "score.json").read_text())
    (path,) = (tmp_path / "out").glob("*/score.json")
    after = json.loads(path.read_text())
    assert lost > 0.01
    assert after["area_mm2"] == pytest.approx(before["area_mm2"] - lost)
    assert sum(roi["area_mm2"] for roi in after["by_roi"].values()) == pytest.approx(after["area_mm2"])


def test_two_slides_of_one_stem_keep_apart(rendered: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for file in rendered.parent.iterdir():
            shutil.copy(file, tmp_path / name)
    both = [tmp_path / name / rendered.name for name in "ab"]
    first = rows(run("score", *both, "-o", tmp_path / "out"))
    again = rows(run("score", *reversed(both), "-o", tmp_path / "out"))
    assert len({row["slide"] for row in first}) == 2
    assert [row["slide"] for row in first] == [row["slide"] for row in again][::-1]
    assert {path.parent.name for path in (tmp_path / "out").glob("*/score.json")} == {row["slide"] for row in first}


def test_a_run_goes_on_from_another_folder(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command is given from is no setting."""
    monkeypatch.chdir(rendered.parent)
    first = rows(run("score", rendered.name, "--model", "hdab", "-o", tmp_path))
    monkeypatch.chdir(tmp_path)
    assert rows(run("score", rendered, "--model", "hdab", "-o", tmp_path)) == first


def test_jobs_in_one_folder_end_with_the_table_of_all(rendered: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copy(rendered, tmp_path / f"{name}.svs")
        shutil.copy(rendered.with_suffix(".geojson"), tmp_path / f"{name}.geojson")
        assert run("score", tmp_path / f"{name}.svs", "-o", tmp_path / "out").exit_code == 0
    assert {row["slide"] for row in csv.DictReader(io.StringIO((tmp_path / "out" / "scores.csv").read_text()))} == {
        "one",
        "two",
    }


def test_cells_as_csv_and_tiles_as_png(rendered: Path, tmp_path: Path) -> None:
    assert run("score", rendered, "--model", "hdab", "--csv", "-o", tmp_path).exit_code == 0
    assert next(csv.DictReader(io.StringIO((tmp_path / "rendered" / "cells.csv").read_text())))["class"] in (
        "positive",
        "negative",
    )
    done = run("tile", rendered, "--size", "256", "--min-coverage", "0.9", "--save", "png", "-o", tmp_path / "tiles")
    tiles = json.loads(Path(done.stdout.strip()).read_text())["tiles"]
    saved = {path.stem for path in (tmp_path / "tiles" / "rendered" / "tiles").glob("*.png")}
    assert saved == {f"{row:04d}_{col:04d}" for row, col in tiles}
    assert tiles


def test_roi_class_selects(rendered: Path, tmp_path: Path) -> None:
    assert run("tile", rendered, "--roi-class", "tumor", "-o", tmp_path).exit_code == 0
    done = run("tile", rendered, "--roi-class", "lymph node", "-o", tmp_path)
    assert done.exit_code == 1
    assert "lymph node" in done.stderr


def test_info(rendered: Path, scored: tuple[Path, dict[str, str]]) -> None:
    done = run("info", rendered, scored[0] / "rendered" / "mosaic.ome.zarr")
    slide, mosaic = rows(done)
    assert (slide["format"], slide["mpp"], slide["width_px"]) == ("Aperio", "0.25", "1800")
    assert mosaic["model"] == "hdab"


def test_no_cluster_says_so(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsiscore.pipeline.executors._ANSWERS_WITHIN", "1s")
    done = run("score", rendered, "--cluster", "tcp://127.0.0.1:1", "-o", tmp_path)
    assert done.exit_code == 1
    assert "no dask scheduler answers at tcp://127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("command", ["score", "tile", "infer", "info"])
def test_usage_is_exit_status_2(command: str, rendered: Path) -> None:
    assert run(command).exit_code == 2
    if command != "info":
        roi = rendered.with_suffix(".geojson")
        done = run(command, rendered, rendered, "--roi", roi)
        assert done.exit_code == 2
        assert "single slide" in done.stderr


@pytest.mark.parametrize("command", ["score", "tile", "infer", "info", "models", "render"])
def test_help_shows_an_example(command: str) -> None:
    assert re.search(r"Example: .*wsiscore", run(command, "--help").output)


@pytest.mark.parametrize(("option", "value"), [("--cutoff", "nan"), ("--radius", "inf"), ("--mpp", "nan")])
def test_numbers_are_finite(rendered: Path, option: str, value: str) -> None:
    done = run("score", rendered, option, value)
    assert done.exit_code == 2
    assert "is not a finite number" in done.stderr


@pytest.mark.parametrize("option", [["--size", "256"], ["--maps", "all"], ["--roi-class", "NoSuch"]])
def test_an_option_that_does_not_apply_to_a_mosaic_is_refused(
    scored: tuple[Path, dict[str, str]], tmp_path: Path, option: list[str]
) -> None:
    done = run("score", scored[0] / "rendered" / "mosaic.ome.zarr", *option, "-o", tmp_path)
    assert done.exit_code == 1
    assert f"leave out {option[0]}" in rows(done)[0]["call"]
