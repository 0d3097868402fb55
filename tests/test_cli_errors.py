"""The commands on what is broken: one line or one row with the reason."""

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
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import rows, run
from making import write_png

from wsiscore.pipeline import steps


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


@pytest.mark.parametrize("command", ["score", "infer", "tile"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_first_slide(
    rendered: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").touch()
    done = run(command, rendered, "-o", tmp_path / "file" / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{tmp_path / 'file'} is not a folder; choose another" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "mps"], "device 'mps' is not on this computer"),
        (["--engine", "onnx"], "the engine onnx is not installed"),
        (["--roi", "broken.geojson"], "broken.geojson"),
        (["--roi", "good.geojson", "--roi-class", "NoSuch"], "NoSuch"),
    ],
    ids=["device", "engine", "roi", "class"],
)
def test_what_is_wrong_for_all_slides_is_refused_before_the_first(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    if words[-1] == "onnx" and find_spec("onnxruntime"):
        pytest.skip("the engine is installed")
    monkeypatch.chdir(tmp_path)
    Path("broken.geojson").write_text('{"type": "Feature", "geom')
    shutil.copy(rendered.with_suffix(".geojson"), "good.geojson")
    done = run("score", rendered, *words, "-o", "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
    assert not Path("out").exists()


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
    assert whole == {**scored[1], "slide": "good", "path": str(good)}
    monkeypatch.setattr(steps, "score_cells", inner)
    assert run("score", bad, "--model", "hdab", "-o", tmp_path / "out").exit_code == 0
    assert not list((tmp_path / "out" / "bad").glob("error.*"))


def test_too_little_memory_for_a_slide_is_a_row(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object, **__: object) -> None:
        np.empty(2**60, np.uint8)

    monkeypatch.setattr(steps, "score_cells", greedy)
    monkeypatch.setattr("wsiscore.pipeline.failures.read_card", greedy)
    done = run("score", rendered, "--model", "hdab", "-o", tmp_path)
    (row,) = rows(done)
    assert (done.exit_code, row["model"]) == (1, "hdab")
    assert row["call"].startswith("error: there is not enough memory; use fewer --threads or a smaller --batch")
    assert "in greedy" in (tmp_path / "rendered" / "error.log").read_text()


def test_a_name_that_is_too_long_is_one_line(rendered: Path, tmp_path: Path) -> None:
    done = run("score", rendered, "--model", "x" * 5000, "-o", tmp_path)
    assert done.exit_code in (1, 2)
    assert "File name too long" in done.stderr
    assert "standard output" not in done.stderr
    assert len(done.stderr.splitlines()[-1]) < 300


def test_a_removed_working_directory_is_one_line(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"cd '{tmp_path}/gone' && rmdir '{tmp_path}/gone' && exec '{sys.executable}' -m wsiscore tile '{rendered}'"
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: the working directory is gone; change to another one\n"


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
