"""Everyday use: folders as input, NUL-separated lists, the configuration file, quiet and verbose runs, completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from commands import rows, run
from making import write_png
from reports import entries

from wsiscore.cli import main
from wsiscore.cli.command import Command
from wsiscore.cli.score import short_line
from wsiscore.report.result import Entry

ROOT = Path(__file__).resolve().parent.parent


def wsiscore(*words: object, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    line = [sys.executable, "-m", "wsiscore", *map(str, words)]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False)


def commands() -> Iterator[tuple[str, click.Command]]:
    waiting: list[tuple[str, click.Command]] = [("wsiscore", main)]
    while waiting:
        name, command = waiting.pop()
        if isinstance(command, click.Group):
            context = click.Context(command)
            found = ((sub, command.get_command(context, sub)) for sub in command.list_commands(context))
            waiting += [(f"{name} {sub}", own) for sub, own in found if own]
        else:
            yield name, command


@pytest.fixture
def folder(rendered: Path, tmp_path: Path) -> Path:
    """Return a folder with two slides, and with what is none."""
    slides = tmp_path / "slides"
    (slides / "out" / "a").mkdir(parents=True)
    (slides / "out" / "a" / "run.json").write_text("{}")
    shutil.copy(rendered, slides / "b.svs")
    write_png(slides / "a.PNG", np.full((64, 64, 3), 235, np.uint8))
    write_png(slides / ".hidden.png", np.full((64, 64, 3), 235, np.uint8))
    for name in ("b.geojson", "notes.txt", "b.truth.csv"):
        (slides / name).touch()
    return slides


def test_a_folder_stands_for_its_slides(folder: Path) -> None:
    done = run("info", folder, "--mpp", "0.5")
    assert [row["path"] for row in rows(done)] == [str(folder / "a.PNG"), str(folder / "b.svs")]


@pytest.mark.parametrize(("name", "says"), [("out", "holds no slide"), ("out/a", "holds the results of a slide")])
def test_a_folder_without_slides_is_refused(folder: Path, name: str, says: str) -> None:
    done = run("info", folder / name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_roi_is_not_of_a_folder_of_several(folder: Path, rendered: Path) -> None:
    done = run("tile", folder, "--roi", rendered.with_suffix(".geojson"))
    assert done.exit_code == 2
    assert "single slide" in done.stderr


def test_paths_may_end_in_nul(rendered: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copy(rendered, tmp_path / "two\nlines.svs"))
    done = run("info", "-", "-0", stdin=f"{odd}\0{rendered}")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("Aperio") == 2


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_configuration_file_gives_defaults_and_options_win(rendered: Path, here: Path) -> None:
    Path("wsiscore.toml").write_text('[tile]\nsize = 256\nat = 1\nout = "tiled"\nroi-class = "Tumor"\n')
    done = run("tile", rendered, "--at", "2")
    assert done.exit_code == 0, done.stderr
    grid = json.loads(Path(done.stdout.strip()).read_text())["grid"]
    record = json.loads((here / "tiled" / "rendered" / "run.json").read_text())
    assert (grid["tile_px"], grid["mpp"], grid["margin_px"]) == (256, 2, 32)
    assert record["options"]["roi_classes"] == ["Tumor"]
    assert (record["options"]["tile_px"], record["options"]["tile_mpp"]) == (256, 2.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tile]\nsizes = 256", "'sizes' is no option of `tile`"),
        ("[tiles]\nsize = 256", "'tiles' is no table of a command"),
        ("size = 256", "'size' is no table of a command"),
        ("[tile]\nsize = 300", "'300' is not one of"),
        ("[tile]\nsize = [256]", "wanted one value"),
        ("[tile]\nmpp = true", "wanted a text or a number"),
        ("[tile]\nmpp = 2026-01-01", "mpp is 2026-01-01; wanted a text or a number"),
        ("[tile]\nroi-class = [1, [2]]", "wanted a text or a number"),
        (f"[tile]\nmpp = 1{400 * '0'}", "is not a finite number"),
        ("[score]\nbatch = 1.5\n[tile]\nsize = 256.5", "256.5"),
        ("[tile]\nout =", "Invalid value"),
        (f"[tile]\nout = {2000 * '['}", "Invalid value"),
    ],
)
def test_a_wrong_configuration_is_one_line(rendered: Path, here: Path, text: str, says: str) -> None:
    (here / "mine.toml").write_text(text)
    done = run("tile", rendered, "--config", "mine.toml")
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr.splitlines()[-1]


def test_the_table_of_a_command_in_a_group_has_its_name_too(here: Path) -> None:
    Path("wsiscore.toml").write_text("[evaluate.cells]\nradius = -1\n")
    done = run("evaluate", "cells", "a", "--truth", "b")
    assert done.exit_code == 2
    assert "--radius" in done.stderr
    assert run("models", "list").exit_code == 0


def test_every_command_has_the_options_of_all() -> None:
    without = [name for name, command in commands() if not isinstance(command, Command)]
    assert not without


def test_quiet_and_verbose(tmp_path: Path) -> None:
    """A point among annotations is warned about."""
    path = write_png(tmp_path / "field.png", np.full((600, 600, 3), 200, np.uint8))
    square = {"type": "Polygon", "coordinates": [[[0, 0], [500, 0], [500, 500], [0, 500], [0, 0]]]}
    shapes = (square, {"type": "Point", "coordinates": [9, 9]})
    features = [{"type": "Feature", "properties": {}, "geometry": shape} for shape in shapes]
    (tmp_path / "field.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    plain, quiet, verbose = (
        wsiscore("tile", path, "--mpp", "0.5", "-o", "out", *more, folder=tmp_path) for more in ([], ["-q"], ["-v"])
    )
    assert plain.stdout == quiet.stdout == verbose.stdout == "out/field/tiles.json\n"
    assert "left out" in plain.stderr
    assert quiet.stderr == ""
    assert set(plain.stderr.splitlines()) < set(verbose.stderr.splitlines())
    assert json.loads((tmp_path / "out" / "field" / "run.json").read_text())["warnings"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str, tmp_path: Path) -> None:
    script = wsiscore(folder=tmp_path, _WSISCORE_COMPLETE=f"{shell}_source")
    assert f"_WSISCORE_COMPLETE={shell}_complete" in script.stdout


def test_completion_knows_the_options(tmp_path: Path) -> None:
    asked = {"_WSISCORE_COMPLETE": "bash_complete", "COMP_WORDS": "wsiscore score --cut", "COMP_CWORD": "2"}
    assert wsiscore(folder=tmp_path, **asked).stdout == "plain,--cutoff\n"


def test_what_is_no_command_says_what_may_be_meant(rendered: Path) -> None:
    for given, said in (("scor", "is it 'score'?"), (rendered, f"to score it: wsiscore score {rendered}")):
        done = run(given)
        assert (done.exit_code, said in done.stderr) == (2, True)


def test_a_terminal_shows_a_line_that_fits() -> None:
    high, unsure, empty = entries()
    lines = [short_line(entry.slide, entry) for entry in (high, unsure, empty, Entry("b", None, "is no slide"))]
    assert [line.split() for line in (lines[0], lines[3])] == [
        ["slide", "1", "300", "700", "30.0", "%", "27.2–32.9", "high"],
        ["b", "error:", "is", "no", "slide"],
    ]
    assert "indeterminate: by counting alone" in lines[1]
    assert "–" in lines[2]
    assert short_line("slide").index("call") == lines[0].index("high") == lines[1].index("indeterminate")
