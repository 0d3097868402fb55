"""Kill, crowd and damage ``wsiscore score``, and compare what it leaves with an undisturbed run, byte by byte.

    python benchmarks/chaos.py --seed 1

Prints a table of cases, tries and failures, and each failure in a line; exit status 1 if there is one. Every run is a
process. Times are left out of the comparison, and so is the folder ``.locks``.

kill at operation n
    SIGKILL before the n-th time that a file or folder is opened, renamed, made or removed, for every n; then the same
    command again.
kill when finished
    The same, of a run over a finished folder.
kill at random
    SIGKILL after a random time, up to three times in a row; then the same command again.
same slide at once
    Two or three processes score one slide into one folder; none, one or two of them are killed at a file operation.
other slides at once
    As many processes as slides, one of them broken, into one folder: one table of all.
array of jobs
    Processes with one slide each, three of them broken, a few at a time.
damage
    Files of a finished mosaic deleted, cut, or with a flipped bit: the mosaic is refused, the slide is scored again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_LEFTOVERS = (".part", ".partial", ".new")
_RUN_TIMES = ("started", "finished", "stages", "time", "process_peak_memory_mb")
_PAGE_TIMES = re.compile(rb"<h3>Time by stage, and memory</h3><dl>.*?</dl>|\d{4}-\d\d-\d\d[T ][\d:+]+", re.DOTALL)
_DAMAGE = re.compile(r"[^<]*mosaic\.ome\.zarr is damaged at [^<]*; score the slide itself, which computes it again")
_CORNERS_PX = ((40, 40), (2000, 40), (2000, 2000))  # regions in three shards

Failure = str


def prepare(folder: Path) -> Path:
    """Render a slide with small regions in three shards of its mosaic, and return it."""
    words = ["render", folder, "--name", "slide", "--size", "2300", "--mpp", "0.5", "--index", "20"]
    subprocess.run([sys.executable, "-m", "wsiscore", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    square = ((0, 0), (250, 0), (250, 250), (0, 250), (0, 0))
    rings = [[[x + dx, y + dy] for dx, dy in square] for x, y in _CORNERS_PX]
    regions = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}} for ring in rings
    ]
    text = json.dumps({"type": "FeatureCollection", "features": regions})
    (folder / "slide.geojson").write_text(text, encoding="utf-8")
    return folder / "slide.svs"


def start(words: Sequence[object], out: Path, *, kill_at: int = 0) -> int:
    """Start ``wsiscore score`` in a process of its own, and return the process id.

    Parameters
    ----------
    words
        Arguments.
    out
        Folder of the results; what the process prints is added to ``<out>.log``, the number of its file operations
        replaces ``<out>.operations``.
    kill_at
        The file operation before which the process kills itself, from 1; 0 for none.
    """
    import wsiscore.cli.score
    import wsiscore.pipeline.cohort  # loaded before the fork, so that a run takes a fraction of a second

    if process := os.fork():
        return process
    status = 70
    try:
        log = os.open(out.with_name(out.name + ".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        done, number = itertools.count(1), [0]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _CHANGES or (event == "open" and _inside(arguments[0], out)):
                number[0] = next(done)
                if number[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            wsiscore.cli.main([*map(str, words), "--model", "hdab", "-o", str(out)], standalone_mode=True)
        except SystemExit as end:
            status = int(end.code or 0)
        operations = os.open(out.with_name(out.name + ".operations"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(operations, b"%d" % number[0])
    finally:
        os._exit(status)


def _inside(path: object, out: Path) -> bool:
    return isinstance(path, str | os.PathLike) and str(path).startswith(f"{out}{os.sep}")


def finish(process: int) -> int:
    """Wait for a process and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def score(slides: Sequence[Path], out: Path, *, kill_at: int = 0) -> int:
    """Score slides in a process and return its exit status."""
    return finish(start(["score", *slides], out, kill_at=kill_at))


def bytes_of(out: Path, *, damaged: bool = False) -> dict[str, str]:
    """Return the hash of each file of a folder of results, without times; folders too, and what kills left.

    Of results that were `damaged`, the warning that says so is left out of ``run.json`` and of the report.
    """
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if Path(name).parts[0] == ".locks":
            continue
        if path.is_dir():
            found[name] = "folder"
            continue
        content = path.read_bytes()
        if path.name == "run.json":
            values = {key: value for key, value in json.loads(content).items() if key not in _RUN_TIMES}
            if damaged:
                values["warnings"] = [text for text in values["warnings"] if not _DAMAGE.fullmatch(text)]
            content = json.dumps(values).encode()
        elif path.name == "report.html":
            content = _PAGE_TIMES.sub(b"", content)
            if damaged:
                content = re.sub(b"<li>" + _DAMAGE.pattern.encode() + b"</li>\n", b"", content)
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def difference(out: Path, wanted: dict[str, str], *, damaged: bool = False) -> str:
    """Return in words how a folder of results differs from an undisturbed one; empty if it does not."""
    found = bytes_of(out, damaged=damaged)
    left = [name for name in found if name.endswith(_LEFTOVERS)]
    changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return f"left behind: {left}" if left else f"differs in {changed}" if changed else ""


def warnings_of(folder: Path) -> list[str]:
    """Return the warnings in the ``run.json`` of a slide's folder."""
    warnings: list[str] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["warnings"]
    return warnings


def rows(out: Path) -> list[str]:
    """Return the names of the slides in the table of a folder of results; a failed one with a ``!``."""
    with (out / "scores.csv").open(encoding="utf-8") as file:
        return [row["slide"] + "!" * row["call"].startswith("error: ") for row in csv.DictReader(file)]


class Chaos:
    """The cases, all with the same slide.

    Parameters
    ----------
    folder
        Empty; runs write there.
    seed
        Of what is random.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.slide = prepare(folder / "slides")
        self._numbers = itertools.count()
        begin = time.monotonic()
        self.whole = self.new()
        if score([self.slide], self.whole):
            raise SystemExit(self.log(self.whole))
        self.seconds = time.monotonic() - begin
        self.wanted = bytes_of(self.whole)

    def new(self, copy: Path | None = None) -> Path:
        """Return a new folder for results, with the content of another one if that is given."""
        out = self.folder / f"out-{next(self._numbers)}"
        if copy:
            shutil.copytree(copy, out)
        return out

    def log(self, out: Path) -> str:
        """Return what the runs into a folder printed."""
        return out.with_name(out.name + ".log").read_text(encoding="utf-8", errors="replace")

    def operations(self, out: Path) -> int:
        """Return the number of file operations of the last run into a folder that was not killed."""
        return int(out.with_name(out.name + ".operations").read_text())

    def resumed(self, out: Path, *, damaged: bool = False) -> Failure:
        """Score the slide, and return how the results differ from an undisturbed run; empty if they do not.

        Of results that were `damaged`, ``run.json`` must say so.
        """
        if status := score([self.slide], out):
            return f"exit status {status}: {self.log(out).strip().splitlines()[-1]}"
        if failure := difference(out, self.wanted, damaged=damaged):
            return failure
        if damaged and not any(map(_DAMAGE.fullmatch, warnings_of(out / "slide"))):
            return "no warning in run.json"
        shutil.rmtree(out)
        return ""

    def kill_at_operations(self, every: int, *, finished: bool = False) -> Iterator[Failure]:
        """Kill at each file operation, or at every few, of a fresh run or of one over finished results."""
        score([self.slide], probe := self.new(self.whole if finished else None))
        offset = self.random.randrange(every)
        for number in range(1 + offset, self.operations(probe) + 1, every):
            out = self.new(self.whole if finished else None)
            killed = score([self.slide], out, kill_at=number) == -signal.SIGKILL
            failure = self.resumed(out)
            yield failure and f"{'killed' if killed else 'ended'} at operation {number}: {failure}"

    def kill_at_random(self, n: int) -> Iterator[Failure]:
        """Kill after random times, one to three times in a row."""
        for _ in range(n):
            out, delays = self.new(), [self.random.uniform(0, self.seconds) for _ in range(self.random.randint(1, 3))]
            for delay in delays:
                process = start(["score", self.slide], out)
                time.sleep(delay)
                os.kill(process, signal.SIGKILL)
                finish(process)
            failure = self.resumed(out)
            yield failure and f"killed after {', '.join(f'{delay:.3f} s' for delay in delays)}: {failure}"

    def same_slide(self, n: int) -> Iterator[Failure]:
        """Let two or three processes score one slide into one folder; of some groups one or two are killed."""
        operations = self.operations(self.whole)
        for number in range(n):
            out, some = self.new(), 2 + number % 2
            killed = [self.random.randint(1, operations) for _ in range(number // 2 % some)]
            at = [*killed, *[0] * (some - len(killed))]
            processes = [start(["score", self.slide], out, kill_at=operation) for operation in at]
            statuses = [finish(process) for process in processes]
            lost = any(statuses[len(killed) :]) or not set(statuses) <= {0, -signal.SIGKILL}
            failure = self.resumed(out) if killed else difference(out, self.wanted)
            failure = f"exit status {statuses}: {self.log(out)}" if lost else failure
            yield failure and f"{some} at once, killed at operations {killed}: {failure}"

    def other_slides(self, n: int) -> Iterator[Failure]:
        """Let processes score different slides into one folder; one slide is broken."""
        slides = self._slides(4, broken=1)
        score(slides, alone := self.new())
        wanted = bytes_of(alone)
        for _ in range(n):
            out = self.new()
            statuses = [finish(process) for process in [start(["score", slide], out) for slide in slides]]
            failure = difference(out, wanted)
            yield failure or (f"exit status {statuses}" if sum(statuses) != 1 else "")

    def array(self, n: int, at_once: int = 3) -> Iterator[Failure]:
        """Score slides one a process, three of them broken, a few at a time."""
        slides, out, running, statuses = self._slides(n, broken=3), self.new(), [], []
        for slide in slides:
            if len(running) == at_once:
                statuses.append(finish(running.pop(0)))
            running.append(start(["score", slide], out))
        statuses += [finish(process) for process in running]
        found, wanted = rows(out), sorted(slide.stem + "!" * slide.stem.startswith("broken") for slide in slides)
        yield "" if found == wanted and sorted(statuses) == [0] * (n - 3) + [1] * 3 else f"{found}, {statuses}"

    def _slides(self, n: int, *, broken: int) -> list[Path]:
        folder, slides = self.folder / f"slides-{n}", []
        folder.mkdir(exist_ok=True)
        for number in range(n):
            name = f"broken-{number}" if number < broken else f"slide-{number}"
            slides.append(folder / f"{name}.svs")
            if number < broken:
                slides[-1].write_text("no slide")
            else:
                shutil.copy(self.slide, slides[-1])
                shutil.copy(self.slide.with_suffix(".geojson"), slides[-1].with_suffix(".geojson"))
        return slides

    def damage(self, n: int) -> Iterator[Failure]:
        """Damage up to n of the files of a finished mosaic that hold maps; n flipped bits a file."""
        mosaic = Path("slide", "mosaic.ome.zarr")
        shards = [
            path.relative_to(self.whole) for path in (self.whole / mosaic / "0" / "c").rglob("*") if path.is_file()
        ]
        chosen = self.random.sample(sorted(shards), min(n, len(shards)))
        for shard, change in itertools.product(chosen, ["deleted", "cut", *["flipped"] * n]):
            out = self.new(self.whole)
            content = bytearray((out / shard).read_bytes())
            if change == "deleted":
                (out / shard).unlink()
            elif change == "cut":
                (out / shard).write_bytes(content[: self.random.randrange(len(content))])
            else:
                content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
                (out / shard).write_bytes(content)
            refused = score([out / mosaic], self.new()) == 1
            failure = self.resumed(out, damaged=True)
            yield (failure and f"{shard} {change}: {failure}") or ("" if refused else f"{shard} {change}: accepted")


def main(words: Sequence[str] | None = None) -> int:
    """Run the cases, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=20, help="tries of each case that is random")
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th file operation only")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    given = parser.parse_args(words)
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), given.seed)
        cases: dict[str, Callable[[], Iterator[Failure]]] = {
            "kill at operation n": lambda: chaos.kill_at_operations(given.every),
            "kill when finished": lambda: chaos.kill_at_operations(given.every, finished=True),
            "kill at random": lambda: chaos.kill_at_random(given.n),
            "same slide at once": lambda: chaos.same_slide(given.n),
            "other slides at once": lambda: chaos.other_slides(max(1, given.n // 4)),
            "array of jobs": lambda: chaos.array(max(4, given.n)),
            "damage": lambda: chaos.damage(max(1, given.n // 4)),
        }
        failed = False
        print("case\ttries\tfailures", flush=True)
        for name, case in cases.items():
            results = list(case())
            failures = [failure for failure in results if failure]
            failed |= bool(failures)
            print(f"{name}\t{len(results)}\t{len(failures)}", flush=True)
            for failure in failures:
                print(f"  {failure}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
