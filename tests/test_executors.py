"""Executors lose no slide: each job has a result, whatever happens to the processes that work on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster
from executor_jobs import die_at, lost, move_to, set_version, work

from wsiscore.cli import main
from wsiscore.errors import WsiscoreError
from wsiscore.pipeline import executors
from wsiscore.pipeline.executors import Dask, Processes, open_executor
from wsiscore.synthetic.slides import render_slide

pytestmark = pytest.mark.filterwarnings("ignore")  # of dask, about processes that die

ROOT = Path(__file__).resolve().parent.parent
DIED = "each worker that tried it died, perhaps for want of memory"
GONE = "the cluster's scheduler went away; start it and give the same command again"


PATIENT = {  # on a busy machine a process takes long to start
    "distributed.deploy.lost-worker-timeout": "1h",
}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_PATIENCE_S", 600.0)
    monkeypatch.setattr(executors, "_ANSWERS_WITHIN", "30s")


def results(runs: executors.Executor, folder: Path, *names: str) -> list[str]:
    return list(runs.map(work, [(folder, name) for name in names], lost))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Return a worker with four threads, which is started again when it dies."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0, **PATIENT}),
        LocalCluster(n_workers=1, threads_per_worker=4, dashboard_address=None, memory_limit="1GiB") as started,
    ):
        yield started


@contextmanager
def started(folder: Path, *words: str, until: str) -> Iterator[tuple[str, int]]:
    """Give the last word of the line that a dask process prints once it is there, and its process id."""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stderr
    try:
        line = next(line for line in process.stderr if until in line)
        yield line.split()[-1], process.pid
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def scheduler(folder: Path) -> contextmanager[tuple[str, int]]:
    """Start a dask scheduler without workers, and give its address and its process id."""
    return started(folder, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", until="Scheduler at:")


def content(out: Path) -> dict[str, object]:
    """Return the files of a folder of results, of the record what does not depend on the time."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        if path.name == "run.json":
            record = json.loads(path.read_text())
            found[str(path.relative_to(out))] = [record.get(key) for key in ("slide", "model", "settings", "warnings")]
        elif path.is_file() and path.name != "report.html" and ".locks" not in path.parts:
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


def test_a_job_whose_process_dies_is_tried_again_and_then_is_lost(tmp_path: Path) -> None:
    found = results(Processes(2), tmp_path, "a", "once", "dies", "b")
    assert found == ["a", "once", "dies: its process died twice, perhaps for want of memory", "b"]


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """A killed run leaves no process behind, which would hold its output open."""
    code = (
        "import os, pathlib, sys\nfrom executor_jobs import lost, work\n"
        "from wsiscore.pipeline.executors import Processes\n"
        "if __name__ == '__main__':\n"
        "    list(Processes(2).map(work, [(pathlib.Path(sys.argv[1]), f'kills {os.getpid()}')], lost))\n"
    )
    (tmp_path / "run.py").write_text(code)
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", tmp_path],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == -9, done.stderr


def test_a_job_whose_worker_dies_is_tried_again_and_harms_no_other(cluster: LocalCluster, tmp_path: Path) -> None:
    with Client(cluster) as client:  # apart, since what dies of another job may die once of itself
        assert results(Dask(client), tmp_path, "a", "once", "b") == ["a", "once", "b"]
        found = results(Dask(client), tmp_path, "a", "dies", "raises", "b")
    assert found == ["a", f"dies: {DIED}", "raises: of its own", "b"]


def test_a_worker_out_of_memory_loses_one_job(cluster: LocalCluster, tmp_path: Path) -> None:
    with Client(cluster) as client:
        assert results(Dask(client), tmp_path, "eats", "b") == [f"eats: {DIED}", "b"]


def test_a_cluster_gives_the_bytes_of_a_local_run_though_its_worker_dies(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of slides side by side in one worker, which stands in another folder, with paths that are relative here."""
    for seed, name in enumerate(("one", "two")):
        render_slide(tmp_path, name, index=30, width_px=700, height_px=600, seed=seed)
    shutil.copytree(ROOT / "models" / "hdab", tmp_path / "model")
    (tmp_path / "note.svs").write_text("no slide")
    monkeypatch.chdir(tmp_path)
    slides = ["note.svs", "one.svs", "two.svs", "--model", "./model"]
    alone = CliRunner().invoke(main, ["score", *slides, "-o", "alone"])
    with Client(cluster) as client:
        client.run(move_to, "/")
        client.run(die_at, "os.rename", "mosaic.ome.zarr.new")
    done = CliRunner().invoke(main, ["score", *slides, "-o", "out", "--cluster", cluster.scheduler_address])
    assert (done.exit_code, done.stdout) == (alone.exit_code, alone.stdout)
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_a_worker_of_another_version_is_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    with Client(cluster) as client:
        before = Dask(client)
        client.run(set_version, "0.0")
        with pytest.raises(WsiscoreError, match=r"the worker tcp.* has wsiscore 0\.0, wanted .*; install the same"):
            Dask(client)
        (late,) = results(before, tmp_path, "a")
        assert "a: a worker has wsiscore 0.0, wanted" in late
        client.run(set_version, executors.__version__)


def test_a_cluster_without_workers_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executors, "_POLL_S", 0.01)
    monkeypatch.setattr(executors, "_PATIENCE_S", 0.02)
    with scheduler(tmp_path) as (address, _), pytest.raises(WsiscoreError, match=r"no worker came to tcp"):  # noqa: SIM117
        with open_executor(address):
            pass
    assert "the cluster has no worker yet; waiting for one" in caplog.text


@pytest.mark.parametrize("what", ["scheduler", "worker"])
def test_a_cluster_that_goes_away_loses_what_it_had_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(executors, "_POLL_S", 0.1)
    with scheduler(tmp_path) as (address, process):
        words = ["worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        with started(tmp_path, *words, until="Registered to:") as (_, worker), open_executor(address) as runs:
            assert results(runs, tmp_path, "a", "b") == ["a", "b"]
            monkeypatch.setattr(executors, "_PATIENCE_S", 0.2)
            found = results(runs, tmp_path, f"kills {process if what == 'scheduler' else worker}", "c", "d")
    reason = GONE if what == "scheduler" else "the cluster had no worker for 0.2 s; start one, and try again"
    assert [line.split(": ", 1)[1] for line in found] == [reason] * 3
