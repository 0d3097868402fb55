"""A short run of the benchmark of kills, crowds and damage."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_kills_crowds_and_damage_leave_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--n", "1", "--every", "170", "--folder"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*line, str(tmp_path)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [row.split("\t") for row in done.stdout.splitlines()]
    assert table[0] == ["case", "tries", "failures"]
    assert len(table) == 8
    assert all(int(tries) and failures == "0" for _, tries, failures in table[1:])
    assert not list(tmp_path.iterdir())


def test_the_benchmark_notices_what_a_kill_changes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("chaos", ROOT / "benchmarks" / "chaos.py")
    assert spec
    assert spec.loader
    chaos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chaos)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cells.csv").write_text("1")
    wanted = chaos.bytes_of(tmp_path)
    assert not chaos.difference(tmp_path, wanted)
    (tmp_path / "a" / "cells.csv").write_text("2")
    assert chaos.difference(tmp_path, wanted) == "differs in ['a/cells.csv']"
    (tmp_path / ".b.part").write_text("")
    assert "left behind" in chaos.difference(tmp_path, wanted)
