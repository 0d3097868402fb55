"""One slide over 1, 2, … local workers of one thread: processor time on the longest way, and the clock.

    python benchmarks/workers.py --model hdab --mm2 6 --workers 1 2 3

The steps of a slide follow one another: it is begun, its parts are computed side by side, cells are found side by side,
and one worker does the rest.
The longest way is the sum over the steps of the processor time of the busiest worker: what the clock would show if each
worker had a processor to itself, which does not depend on what else the machine does. In the last step the one worker
has the threads of all, so there the clock shows less; on a quiet machine, compare that.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from scale import write_slide

from wsiscore.pipeline.cohort import score_slides
from wsiscore.pipeline.executors import Processes
from wsiscore.pipeline.options import ScoreOptions


def timed(function: Callable[[Any], Any], job: Any) -> tuple[Any, int, float]:
    """Return what a function returns, the process it ran in, and its processor time there."""
    start = time.process_time()
    result = function(job)
    return result, os.getpid(), time.process_time() - start


class Timed(Processes):
    """Local processes, with the processor time of the busiest worker and of all in each step."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, threads=1)
        self.steps = list[tuple[float, float]]()

    def map(self, function: Callable[[Any], Any], jobs: Iterable[Any], lost: Callable[..., Any]) -> Iterator[Any]:
        """Yield `function` of each job, and add a step."""
        used: defaultdict[int, float] = defaultdict(float)
        found = super().map(partial(timed, function), jobs, lambda job, error: (lost(job, error), 0, 0.0))
        for result, process, seconds in found:
            used[process] += seconds
            yield result
        self.steps.append((max(used.values(), default=0.0), sum(used.values())))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hdab")
    parser.add_argument("--mm2", type=float, default=6)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"{given.model}, {given.mm2:g} mm², load {os.getloadavg()[0]:.1f}")
    print("workers\tlongest way, cpu s\tof the first\tsum, cpu s\tclock s\tsteps (busiest worker), cpu s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_slide(slide := Path(folder) / "slide.svs", round(given.mm2**0.5 * 4000))
        write_slide(small := Path(folder) / "small.svs", 1024)
        for number in range(given.rounds):
            first = 0.0
            for workers in given.workers:
                executor = Timed(workers)
                options = ScoreOptions(model=given.model, out=Path(folder) / f"{workers}-{number}")
                warm = [
                    (small, ScoreOptions(model=given.model, out=Path(folder) / f"w{i}-{workers}-{number}"))
                    for i in range(workers)
                ]
                for _ in score_slides(warm, executor):  # loads the model in each process
                    pass
                executor.steps.clear()
                start = time.perf_counter()
                ((_, entry),) = score_slides([(slide, options)], executor)
                clock = time.perf_counter() - start
                executor.close()
                assert entry.score, entry.error
                way, total = (sum(step[i] for step in executor.steps) for i in range(2))
                first = first or way
                steps = ", ".join(f"{step[0]:.1f}" for step in executor.steps)
                print(f"{workers}\t{way:.1f}\t{first / way:.2f} ×\t{total:.1f}\t{clock:.1f}\t{steps}", flush=True)


if __name__ == "__main__":
    main()
