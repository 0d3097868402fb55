"""`wsiscore doctor`, `--dry-run` and `--json`: what is said before anything is written, and as what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commands import rows, run

from wsiscore.cli import main
from wsiscore.models.card import read_card
from wsiscore.pipeline.cost import Cost
from wsiscore.pipeline.doctor import cohort_checks, machine_checks
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.plan import cost_text, plan_slide

COST = Cost("hdab", 0.25, 1.0, 10.0, 9.0, 20.0)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_plan_is_what_tile_lays(rendered: Path, tmp_path: Path) -> None:
    spec = read_card(Path("models/hdab")).spec
    words = ("--at", spec.mpp, "--size", 256, "--margin", spec.margin_px)
    laid = json.loads(Path(run("tile", rendered, *words, "-o", tmp_path).stdout.strip()).read_text())
    plan = plan_slide(rendered, ScoreOptions(model="hdab", tile_px=256))
    assert plan.tiles == len(laid["tiles"]) > 1
    assert plan_slide(tmp_path / "rendered" / "tiles.json", ScoreOptions()).tiles == plan.tiles
    assert plan.area_mm2 == plan_slide(rendered, ScoreOptions(model="hdab")).area_mm2


def test_a_dry_run_writes_nothing(
    scored: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.svs").touch()
    mosaic = scored[0] / "rendered" / "mosaic.ome.zarr"
    done = run("score", mosaic, "bad.svs", "--cutoff", "30", "--dry-run")
    assert done.exit_code == 1
    known, bad = rows(done)
    assert (known["tiles"], known["seconds"], known["error"]) == ("0", "-", "-")
    assert float(known["area_mm2"]) == pytest.approx(float(scored[1]["area_mm2"]), abs=1e-3)
    assert "bad.svs is an empty file" in bad["error"]
    assert "cutoff = 30.0  # given" in done.stderr
    assert 'maps = "needed"  # default' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.svs"]


def test_time_and_disk_add_up(rendered: Path) -> None:
    plan = plan_slide(rendered, ScoreOptions(model="hdab"))
    text = cost_text([plan, plan], COST)
    assert f"about {2 + 20 * plan.area_mm2:.0f} s and {40 * plan.area_mm2:.3g} MB" in text


def test_a_cohort_is_ready_if_its_slides_open_and_the_disk_is_large_enough(rendered: Path, tmp_path: Path) -> None:
    given = ScoreOptions(model="hdab", out=tmp_path)
    assert [check.state for check in cohort_checks([rendered], given, COST)] == ["ok"]
    bad = list(cohort_checks([rendered, tmp_path / "none.svs"], given, COST))
    assert [(check.name, check.state) for check in bad] == [("slide", "wrong"), ("cohort", "ok")]
    (full,) = cohort_checks([rendered], given, Cost("hdab", 0.25, 1, 1, 1, 1e12))
    assert full.state == "wrong"


def test_the_machine_is_checked() -> None:
    checks = {check.name: check for check in machine_checks(ScoreOptions())}
    assert {"version", "processor", "memory", "torch", "readers", "extras", "model", "disk"} <= set(checks)
    assert all(check.advice for check in checks.values() if check.state != "ok")
    assert not [check for check in checks.values() if check.state == "wrong"]


def test_doctor_says_what_to_do(model: Path, tmp_path: Path) -> None:
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "file").touch()
    words = ("doctor", "--model", model, "-o", tmp_path / "file" / "out", "--device", "mps")
    done = run(*words)
    assert done.exit_code == 1
    last = done.stdout.splitlines()[-1]
    for part in ("torch: leave out --device", "model: copy or install it anew", "disk: choose another folder"):
        assert part in last
    as_json = run(*words, "--json")
    assert as_json.exit_code == 1
    assert [check["name"] for check in lines(as_json.stdout) if check["state"] == "wrong"] == ["torch", "model", "disk"]
    assert as_json.stderr.startswith("not ready")


def test_a_table_as_json_holds_the_same(scored: tuple[Path, dict[str, str]], rendered: Path, tmp_path: Path) -> None:
    mosaic = scored[0] / "rendered" / "mosaic.ome.zarr"
    (tmp_path / "bad.svs").touch()
    score, failed = lines(run("score", mosaic, tmp_path / "bad.svs", "--json", "-o", tmp_path).stdout)
    assert list(score) == list(failed) == list(scored[1])
    assert score["positive"] == int(scored[1]["positive"])
    assert f"{score['ki67_index']:.1f}" == scored[1]["ki67_index"]
    assert (failed["positive"], failed["slide"]) == (None, "bad")
    assert sorted(lines(run("cohort", tmp_path, "--json").stdout), key=str) == sorted([score, failed], key=str)
    slide, stored = lines(run("info", rendered, mosaic, "--json").stdout)
    assert (slide["width_px"], slide["mpp"], slide["model"], stored["model"]) == (1800, 0.25, None, "hdab")


def test_tables_of_an_evaluation_as_json(rendered: Path) -> None:
    truth = rendered.with_suffix(".truth.csv")
    words = ("evaluate", "cells", truth, "--truth", truth)
    listed = rows(run(*words))
    as_json = lines(run(*words, "--json").stdout)
    assert [list(row) for row in as_json] == [list(row) for row in listed]
    assert as_json[-1][next(iter(as_json[-1]))] == "total"
    assert as_json[-1]["f1"] == 1


def leaves() -> Iterator[tuple[str, click.Command]]:
    for name in ("score", "cohort", "info", "doctor", "calibrate", "models", "evaluate"):
        command = main.get_command(click.Context(main), name)
        subs = command.commands if isinstance(command, click.Group) else {name: command}
        yield from ((f"{name} {sub}", own) for sub, own in subs.items() if own)


def test_every_command_that_prints_a_table_prints_json() -> None:
    without = {name for name, command in leaves() if "json_lines" not in {param.name for param in command.params}}
    assert without == {"models info", "models import"}
