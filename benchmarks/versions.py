"""Two versions of wsiscore on one slide, in turn: seconds of the processor, by the clock, and memory.

    git worktree add ../before v0.1
    python benchmarks/versions.py slides/big.svs --before ../before --rounds 3

Only the ratio compares across machines.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """Of one run: seconds of the processor and by the clock, and most memory in 10⁶ bytes."""

    processor: float
    clock: float
    memory: float


def run(checkout: Path, slide: Path, arguments: list[str]) -> Cost:
    """Score a slide by the code of a checkout, into a folder that is removed."""
    with tempfile.TemporaryDirectory() as out:
        line = [sys.executable, "-m", "wsiscore", "score", str(slide.absolute()), "-o", out, *arguments]
        start = time.perf_counter()
        process = subprocess.Popen(
            line, cwd=out, env={**os.environ, "PYTHONPATH": str(checkout.absolute())}, stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{checkout}: wsiscore score ended with status {process.returncode}")
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss / 1000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the earlier version")
    parser.add_argument("--rounds", type=int, default=3)
    given, arguments = parser.parse_known_args()
    versions = {"before": given.before, "now": Path(__file__).resolve().parent.parent}
    costs: dict[str, list[Cost]] = {name: [] for name in versions}
    for _ in range(given.rounds):
        for name, checkout in versions.items():
            costs[name].append(run(checkout, given.slide, arguments))
    for name, own in costs.items():
        ratios = sorted(b.processor / a.processor for a, b in zip(costs["before"], own, strict=True))
        processor, clock, memory = (statistics.median(column) for column in zip(*own, strict=True))
        print(
            f"{name:<7} {processor:7.1f} s of the processor {clock:7.1f} s by the clock {memory:6.0f} MB, "
            f"{statistics.median(ratios):.2f} of before ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
