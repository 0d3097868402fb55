"""Closed and full streams, and an interrupt at any time, end a command with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

_INTERRUPTED = """
import os, runpy, signal, sys
wanted = sys.argv[1]
def hook(event, arguments):
    if event == "import" and arguments[0] == wanted:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
sys.argv[1:] = sys.argv[2:]
runpy.run_module("wsiscore", run_name="__main__", alter_sys=True)
"""


def wsiscore(words: str, folder: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a line of a shell in which ``wsiscore`` is this one."""
    line = words.replace("wsiscore", f"{sys.executable} -m wsiscore")
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=ENVIRONMENT, input=stdin, capture_output=True, check=False
    )


@pytest.mark.parametrize("module", ["wsiscore.cli", "click", "wsiscore.pipeline.steps", "scipy"])
def test_an_interrupt_during_the_imports_is_one_line(module: str, rendered: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-c", _INTERRUPTED, module, "score", str(rendered), "--model", "hdab", "-o", "out"]
    done = subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Aborted!\n")


def test_only_the_entry_is_loaded_before_an_interrupt_is_heard() -> None:
    code = "import sys; before = set(sys.modules); import wsiscore; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "['__future__', 'wsiscore']\n"


@pytest.mark.parametrize(
    "command",
    [
        "score {slide} --model hdab -o out",
        "infer {slide} --model hdab -o out",
        "tile {slide} -o out",
        "models list",
        "evaluate cells {truth} --truth {truth}",
    ],
)
def test_a_full_output_is_one_line(command: str, rendered: Path, tmp_path: Path) -> None:
    truth = rendered.with_suffix("").with_suffix(".truth.csv")
    done = wsiscore(f"wsiscore {command.format(slide=rendered, truth=truth)} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == b"Error: cannot write to standard output: No space left on device"
    assert b"Traceback" not in done.stderr


def test_paths_that_end_in_nul_are_one_row_that_says_so(rendered: Path, tmp_path: Path) -> None:
    done = wsiscore("wsiscore score - -o out", tmp_path, stdin=f"{rendered}\0{rendered}\0".encode())
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert b"Traceback" not in done.stderr


def test_a_closed_input_is_no_traceback(tmp_path: Path) -> None:
    done = wsiscore("wsiscore score - -o out <&-", tmp_path)
    assert b"Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 1
