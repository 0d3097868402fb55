"""The recipes for clusters run: each command of theirs, as they stand, by bash."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from wsiscore.cli import main
from wsiscore.synthetic.slides import render_slide

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "docs" / "recipes"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two slides, and with `wsiscore` as a program."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("one", "two"):
        render_slide(folder / "slides", name, index=30, width_px=512, height_px=512)
    (folder / "bin").mkdir()
    program = folder / "bin" / "wsiscore"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wsiscore "$@"\n')
    program.chmod(0o755)
    return folder


def bash(desk: Path, *words: str, **variables: str) -> str:
    """Run bash there, and return what it prints."""
    path = {"PATH": f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", *words]
    done = subprocess.run(
        command, cwd=desk, env={**os.environ, **path, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_jobs_of_a_slurm_array_end_with_one_table(desk: Path) -> None:
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
    script = str(RECIPES / "slurm-array.sh")
    rows = [bash(desk, script, "slides", "array", "--model", "hdab", **array, SLURM_ARRAY_TASK_ID=i) for i in "12"]
    assert [row.splitlines()[1].split("\t")[0] for row in rows] == ["one", "two"]
    with (desk / "array" / "scores.csv").open(newline="") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["one", "two"]


@pytest.mark.parametrize("part", ["script", "stub"])
def test_the_nextflow_module_writes_what_it_promises(desk: Path, tmp_path: Path, part: str) -> None:
    """The lines that Nextflow would run, with its variables in place."""
    module = (RECIPES / "nextflow" / "main.nf").read_text()
    lines = re.search(rf'{part}:.*?"""\n(.*?)"""', module, re.DOTALL)
    assert lines
    values = {"slide": str(desk / "slides" / "one.svs"), "regions": "", "prefix": "case-1", "args": "--model hdab"}
    values |= {"task.cpus": "1", "task.process": "WSISCORE_SCORE"}
    text = re.sub(r"(?<!\\)\$\{([\w.]+)\}", lambda found: values[found[1]], lines[1])
    text = re.sub(r"\\([\\$])", r"\1", text)  # as Groovy reads it
    dedented = "\n".join(line.removeprefix("    ") for line in text.splitlines())
    bash(desk, "-euo", "pipefail", "-c", f"cd '{tmp_path}'\n{dedented}\n")
    promised = re.findall(r'path\(?\s*"([^"]+)"\)?\s*,\s*emit', module)
    assert len(promised) == 6
    for name in promised:
        assert (tmp_path / name.replace("${prefix}", "case-1")).exists(), name
    assert "wsiscore: 0." in (tmp_path / "versions.yml").read_text()
    meta = yaml.safe_load((RECIPES / "nextflow" / "meta.yml").read_text())
    assert list(meta["output"]) == re.findall(r"emit: (\w+)", module)


@pytest.mark.parametrize("recipe", ["slurm-array.sh", "slurm-dask.sh"])
def test_the_scripts_are_bash(desk: Path, recipe: str) -> None:
    bash(desk, "-n", str(RECIPES / recipe))


def test_the_recipes_use_options_that_there_are() -> None:
    files = [path for path in RECIPES.rglob("*") if path.is_file()]
    lines = [line for path in files for line in path.read_text().replace("\\\n", " ").splitlines()]
    used = [(found[1], found[2]) for line in lines for found in re.finditer(r"wsiscore (score|cohort) (.*)", line)]
    assert len(used) >= 5
    for command, words in used:
        own = main.get_command(click.Context(main), command)
        assert own is not None
        known = {name for option in own.params for name in option.opts}
        assert set(re.findall(r"--[a-z-]+", words)) <= known, words
