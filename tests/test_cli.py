"""The commands as a lab runs them: alone, chained, over a cluster, and on what is broken."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from making import write_png

from wsiscore.cli import main
from wsiscore.pipeline import steps
from wsiscore.synthetic.slides import read_truth

WSISCORE = f"{sys.executable} -c 'from wsiscore.cli import main; main()'"


@pytest.fixture(scope="session")
def scored(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return the folder of the results of scoring it, and its row."""
    out = tmp_path_factory.mktemp("out")
    done = run("score", rendered, "--model", "hdab", "-o", out)
    assert done.exit_code == 0, done.output
    return out, rows(done)[0]


def run(*words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin, catch_exceptions=False)


def rows(done: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))


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
        "overlay.jpg", "regions.geojson", "report.html", "thumbnail.jpg"
    }  # fmt: skip
    score = json.loads((folder / "score.json").read_text())
    assert f"{score['ki67_index']:.1f}" == row["ki67_index"]
    assert sum(roi["positive"] for roi in score["by_roi"].values()) == score["positive"] == int(row["positive"])
    (roi,) = score["by_roi"].values()
    assert roi == {key: score[key] for key in roi}
    cells = pq.read_table(folder / "cells.parquet").to_pydict()
    assert list(cells) == ["x_um", "y_um", "class", "confidence", "positivity", "dab_od", "roi"]
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


def test_jobs_that_share_a_folder_end_with_the_table_of_all(rendered: Path, tmp_path: Path) -> None:
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


def test_a_cluster_gives_the_same_table(rendered: Path, scored: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    from distributed import LocalCluster

    (tmp_path / "note.svs").write_text("no slide")
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        done = run(
            "score",
            tmp_path / "note.svs",
            rendered,
            "--model",
            "hdab",
            "--cluster",
            cluster.scheduler_address,
            "-o",
            tmp_path / "out",
        )
    assert done.exit_code == 1
    broken, whole = rows(done)
    assert broken["call"].startswith("error: ")
    assert broken["model"] == "hdab"
    assert whole == scored[1]


def test_no_cluster_says_so(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsiscore.pipeline.engine._ANSWERS_WITHIN", "1s")
    done = run("score", rendered, "--cluster", "tcp://127.0.0.1:1", "-o", tmp_path)
    assert done.exit_code == 1
    assert "no dask scheduler answers at tcp://127.0.0.1:1" in done.stderr


# What is wrong, what the line says. Each is made in an empty folder beside a copy of the rendered slide.


def _text_named_svs(folder: Path, good: Path) -> list[object]:
    (folder / "bad.svs").write_text("this is no slide\n" * 100)
    return [folder / "bad.svs"]


def _truncated(folder: Path, good: Path) -> list[object]:
    (folder / "bad.svs").write_bytes(good.read_bytes()[: good.stat().st_size // 3])
    return [folder / "bad.svs"]


def _empty(folder: Path, good: Path) -> list[object]:
    (folder / "bad.svs").touch()
    return [folder / "bad.svs"]


def _missing(folder: Path, good: Path) -> list[object]:
    return [folder / "nowhere.svs"]


def _no_mpp(folder: Path, good: Path) -> list[object]:
    return [write_png(folder / "bad.png", np.full((300, 300, 3), 200, np.uint8))]


def _no_tissue(folder: Path, good: Path) -> list[object]:
    return [write_png(folder / "bad.png", np.full((3000, 3000, 3), 240, np.uint8)), "--mpp", "0.5"]


def _roi(folder: Path, good: Path, text: str) -> list[object]:
    shutil.copy(good, folder / "bad.svs")
    (folder / "bad.geojson").write_text(text)
    return [folder / "bad.svs"]


def _square(*corners: tuple[float, float]) -> str:
    return json.dumps({"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [corners]}})


def _roi_off_the_slide(folder: Path, good: Path) -> list[object]:
    return _roi(folder, good, _square((9e4, 9e4), (9.1e4, 9e4), (9.1e4, 9.1e4), (9e4, 9e4)))


def _roi_crossing_itself(folder: Path, good: Path) -> list[object]:
    return _roi(folder, good, _square((0, 0), (900, 900), (900, 0), (0, 900), (0, 0)))


def _roi_empty(folder: Path, good: Path) -> list[object]:
    return _roi(folder, good, json.dumps({"type": "FeatureCollection", "features": []}))


def _roi_broken(folder: Path, good: Path) -> list[object]:
    return _roi(folder, good, '{"type": "Feature", "geom')


def _unknown_model(folder: Path, good: Path) -> list[object]:
    return [good, "--model", "nonesuch"]


def _model_without_card(folder: Path, good: Path) -> list[object]:
    (folder / "model").mkdir()
    return [good, "--model", folder / "model"]


def _out_is_a_file(folder: Path, good: Path) -> list[object]:
    (folder / "results").mkdir()
    (folder / "results" / good.stem).write_text("mine")
    (folder / "results").chmod(0o700)
    return [good, "-o", folder / "results"]


def _broken_tile_list(folder: Path, good: Path) -> list[object]:
    (folder / "tiles.json").write_text('{"format": "wsiscore-tiles-1"}')
    return [folder / "tiles.json"]


BAD = [
    (_text_named_svs, "bad.svs"),
    (_truncated, "bad.svs"),
    (_empty, "bad.svs"),
    (_missing, "nowhere.svs"),
    (_no_mpp, "--mpp"),
    (_no_tissue, "no tissue"),
    (_roi_off_the_slide, "bad.geojson|slide"),
    (_roi_crossing_itself, "crosses itself"),
    (_roi_empty, "bad.geojson"),
    (_roi_broken, "bad.geojson"),
    (_broken_tile_list, "tiles.json"),
]


@pytest.mark.parametrize(("make", "says"), BAD, ids=[make.__name__.strip("_") for make, _ in BAD])
def test_what_is_broken_is_one_row_with_its_reason(rendered: Path, tmp_path: Path, make, says: str) -> None:
    words = make(tmp_path, rendered)
    done = run("score", *words, *([] if "-o" in words else ["-o", tmp_path / "out"]))
    assert done.exit_code == 1
    (row,) = rows(done)
    assert row["call"].startswith("error: ")
    assert row["ki67_index"] == "nan"
    assert re.search(says, row["call"]), row["call"]


@pytest.mark.parametrize(("make", "says"), [(_unknown_model, "nonesuch.*hdab"), (_model_without_card, "card.json")])
@pytest.mark.parametrize("command", ["score", "infer"])
def test_a_wrong_model_is_refused_before_the_first_slide(
    rendered: Path, tmp_path: Path, command: str, make, says: str
) -> None:
    done = run(command, *make(tmp_path, rendered), "-o", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.search(says, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_the_others_go_on(rendered: Path, scored: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    (bad,) = _text_named_svs(tmp_path, rendered)
    done = run("score", bad, rendered, "--model", "hdab", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert [row["call"].split(":")[0] for row in rows(done)] == ["error", scored[1]["call"]]
    assert rows(done)[1] == scored[1]
    assert [
        row["call"].split(":")[0] for row in csv.DictReader(io.StringIO((tmp_path / "out" / "scores.csv").read_text()))
    ] == [
        "error",
        scored[1]["call"],
    ]
    assert "Failed:" in (tmp_path / "out" / "index.html").read_text()


def test_a_roi_without_cells_has_no_index(rendered: Path, tmp_path: Path) -> None:
    """The rendered slide's corner is glass."""
    words = _roi(tmp_path, rendered, _square((0, 0), (60, 0), (60, 60), (0, 60), (0, 0)))
    done = run("score", *words, "-o", tmp_path / "out")
    (row,) = rows(done)
    assert done.exit_code == 0
    assert (row["positive"], row["negative"], row["ki67_index"], row["call"]) == ("0", "0", "nan", "no cells")
    assert json.loads((tmp_path / "out" / "bad" / "score.json").read_text())["ki67_index"] is None


def test_what_stands_in_the_way_is_left_alone(rendered: Path, tmp_path: Path) -> None:
    words = _out_is_a_file(tmp_path, rendered)
    done = run("score", *words)
    assert done.exit_code == 0
    assert (tmp_path / "results" / rendered.stem).read_text() == "mine"
    assert rows(done)[0]["slide"].startswith("rendered-")


def test_a_folder_that_cannot_be_made_is_one_line(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("score", rendered, "-o", tmp_path / "file" / "out")
    assert done.exit_code == 1
    assert "choose another folder with -o" in rows(done)[0]["call"]
    assert len(done.stderr.splitlines()) == 1


def test_a_mosaic_of_another_model_is_not_passed_off(scored: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    done = run("score", scored[0] / "rendered" / "mosaic.ome.zarr", "--model", "ihcscoregan", "-o", tmp_path)
    assert done.exit_code == 1
    assert "was made by hdab, not ihcscoregan" in rows(done)[0]["call"]
    assert rows(done)[0]["model"] == "ihcscoregan"


def test_a_full_disk_is_one_line_and_nothing_finished_is_lost(
    rendered: Path, scored: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """The system refuses files over 64 KiB, as a full disk refuses any."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from wsiscore.cli import main; main()",
            "score",
            str(rendered),
            "--model",
            "hdab",
            "-o",
            str(tmp_path),
        ],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)),
    )
    assert done.returncode == 1
    assert "error: cannot write" in done.stdout
    assert "Traceback" not in done.stderr
    assert rows(run("score", rendered, "--model", "hdab", "-o", tmp_path)) == [scored[1]]


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"genA2B": _Bomb()}, "bomb.pt")
    with Path("bare.pt").open("wb") as file:
        pickle.dump(_Bomb(), file)
    for name in ("bomb.pt", "bare.pt"):
        done = run("models", "import", name, "--family", "ihcscoregan", "-o", "model")
        assert done.exit_code == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert not Path("exploded").exists()
        assert not Path("model").exists()


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    torch.save({"model.0.weight": torch.zeros(3, 3)}, tmp_path / "latest_net_G.pth")
    done = run("models", "import", tmp_path / "latest_net_G.pth", "--family", "ihcscoregan", "-o", tmp_path / "model")
    assert done.exit_code == 1
    assert "latest_net_G.pth" in done.stderr


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


# One slide must not end the run


def _unexpected(*_: object, **__: object) -> None:
    raise ZeroDivisionError("a mistake of the program")


def test_a_programming_error_in_one_slide_is_a_row_with_its_traceback_in_a_log(
    rendered: Path, scored: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = shutil.copy(rendered, tmp_path / "good.svs")
    shutil.copy(rendered.with_suffix(".geojson"), tmp_path / "good.geojson")
    bad = shutil.copy(rendered, tmp_path / "bad.svs")
    inner = steps.score_cells
    monkeypatch.setattr(steps, "score_cells", lambda *a, **k: (_unexpected if k["slide"] == "bad" else inner)(*a, **k))
    done = run("score", bad, good, "--model", "hdab", "-o", tmp_path / "out")
    assert done.exit_code == 1
    broken, whole = rows(done)
    assert broken["call"].startswith("error: unexpected ZeroDivisionError: a mistake of the program")
    assert "in _unexpected" in (tmp_path / "out" / "bad" / "error.log").read_text()
    assert whole == {**scored[1], "slide": "good"}
    monkeypatch.setattr(steps, "score_cells", inner)
    assert run("score", bad, "--model", "hdab", "-o", tmp_path / "out").exit_code == 0
    assert not list((tmp_path / "out" / "bad").glob("error.*"))


def test_a_failed_slide_keeps_its_row_when_others_are_scored_later(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "note.svs").write_text("no slide")
    run("score", tmp_path / "note.svs", "-o", tmp_path / "out")
    run("score", rendered, "--model", "hdab", "-o", tmp_path / "out")
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "scores.csv").read_text())))
    assert [row["slide"] for row in table] == ["note", "rendered"]
    assert table[0]["call"].startswith("error: ")


def test_a_slide_given_twice_is_scored_once(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "again.svs").symlink_to(rendered)
    done = run("score", rendered, rendered, tmp_path / "again.svs", "--model", "hdab", "-o", tmp_path / "out")
    assert len(rows(done)) == 1


@pytest.mark.parametrize("name", [b"not\xfftext.svs", b"x" * 251 + b".svs", b"nul\0.svs", b"index.html.svs"])
def test_a_strange_name_is_one_row(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - bytes
    with suppress(OSError, ValueError), open(path, "wb") as file:  # noqa: PTH123
        file.write(b"no slide")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "wsiscore", "score", "-", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, input=path + b"\n", env=env, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert len((tmp_path / "out" / "scores.csv").read_bytes().splitlines()) == 2


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


def test_a_full_output_is_one_line(rendered: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "wsiscore", "info", str(rendered)]
        done = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Error: cannot write to standard output: No space left on device"]


def test_closed_standard_error_harms_nothing(rendered: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = f"{sys.executable} -m wsiscore score {rendered} --model hdab -o {tmp_path / 'out'} 2>&-"
    done = subprocess.run(command, shell=True, env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
