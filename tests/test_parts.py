"""One slide over several workers: the bytes of a run by one, whatever of it is lost on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiscore import pyramid, threads
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState
from wsiscore.pipeline import parts
from wsiscore.pipeline.cohort import part_of, score_slides
from wsiscore.pipeline.executors import Executor, Serial
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.synthetic.slides import render_slide


class Losing:
    """Runs jobs in this process, the last first, and loses those with the numbers given, counted over all maps."""

    local = False

    def __init__(self, workers: int, lost: set[int]) -> None:
        self.workers, self.lost, self.begun = workers, lost, 0

    def map(self, function: Callable[[Any], Any], jobs: Iterable[Any], lost: Callable[..., Any]) -> Iterator[Any]:
        results = []
        for job in reversed(list(jobs)):
            self.begun += 1
            results.append(lost(job, TimeoutError()) if self.begun in self.lost else function(job))
        return iter(results[::-1])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_slide(tmp_path_factory.mktemp("slides"), "one", index=30, width_px=700, height_px=600)


def content(out: Path) -> dict[str, Any]:
    """Return the files of a slide's folder; of the record what does not depend on the time."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and ".locks" not in path.parts):
        if path.name == "run.json":
            record = json.loads(path.read_text())
            found[path.name] = [record[key] for key in ("slide", "model", "settings", "warnings")]
        elif path.name != "report.html":
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


def score(slide: Path, out: Path, executor: Executor) -> None:
    ((_, entry),) = score_slides([(slide, ScoreOptions(out=out, model="hdab", tile_px=256))], executor)
    assert entry.score, entry.error


@pytest.mark.parametrize(
    ("workers", "lost"),
    [(2, set()), (3, {3}), (9, {2, 3, 4, 5}), (3, {7})],
    ids=["two workers", "three workers, one part lost", "all parts lost", "the cells of some blocks lost"],
)
def test_any_number_of_workers_gives_the_bytes_of_one(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, lost: set[int]
) -> None:
    monkeypatch.setattr(pyramid, "_SHARD_PX", 192)
    monkeypatch.setattr(parts, "BLOCK_PX", 192)
    alone = slide.parent / "alone"
    if not alone.exists():
        score(slide, alone, Serial())
    executor = Losing(workers, lost)
    score(slide, tmp_path, executor)
    blocks = 0 if lost & {2, 3, 4, 5} else 4
    assert executor.begun == 1 + 4 + blocks + 1  # the slide has four shards
    assert content(tmp_path) == content(alone)


def test_the_parts_of_a_run_that_was_killed_are_continued(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "_SHARD_PX", 192)

    class Killed(Losing):
        def map(self, function: Callable[[Any], Any], jobs: Iterable[Any], lost: Callable[..., Any]) -> Iterator[Any]:
            if self.begun == 5:
                raise KeyboardInterrupt
            return super().map(function, jobs, lost)

    with pytest.raises(KeyboardInterrupt):
        score(slide, tmp_path, Killed(2, {3}))
    states = Mosaic.open(tmp_path / "one" / "mosaic.ome.zarr").states()
    assert (states == TileState.WRITTEN).sum() == 3
    shutil.copytree(tmp_path, other := tmp_path.with_name("other"))
    for out, executor in ((tmp_path, Serial()), (other, Losing(2, set()))):
        score(slide, out, executor)
    assert content(tmp_path) == content(other)


@given(names=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), n=st.integers(1, 5), data=st.data())
def test_the_shards_of_a_run_are_its_slides_in_whatever_order(names: list[str], n: int, data: st.DataObject) -> None:
    jobs = [(Path("/slides") / f"{name}.svs", ScoreOptions()) for name in names]
    shards = [part_of(jobs, i, n) for i in range(1, n + 1)]
    sizes = [len({path for path, _ in shard}) for shard in shards]
    assert sorted(job[0] for shard in shards for job in shard) == sorted(job[0] for job in jobs)
    assert sum(sizes) == len(set(names))
    assert max(sizes) - min(sizes) <= 1
    other = data.draw(st.permutations(jobs))
    assert [sorted(path for path, _ in part_of(other, i, n)) for i in range(1, n + 1)] == [
        sorted(path for path, _ in shard) for shard in shards
    ]


@pytest.mark.parametrize("n", [1, 3])
def test_calls_in_threads_keep_their_order_their_context_and_the_first_error(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr(threads, "_given", [n])
    slide = ContextVar("slide", default="none")
    slide.set("one")
    assert threads.in_threads(lambda job: (job, slide.get()), iter(range(20))) == [(job, "one") for job in range(20)]
    with pytest.raises(ZeroDivisionError):
        threads.in_threads(lambda job: 1 // job if job < 9 else int("x"), [3, 0, 9, 1])


def test_a_process_uses_the_threads_it_was_given() -> None:
    code = (
        "import cv2, os, torch, zarr\n"
        "from wsiscore.threads import set_threads, threads\n"
        "before = threads()\nset_threads(None)\nassert threads() == before <= os.cpu_count()\n"
        "set_threads(3)\n"
        "found = threads(), torch.get_num_threads(), cv2.getNumThreads()\n"
        "assert found == (3,) * 3 and zarr.config.get('threading.max_workers') == 3, found\n"
        "assert os.environ['OMP_NUM_THREADS'] == os.environ['MKL_NUM_THREADS'] == '3'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
