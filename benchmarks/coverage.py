"""How often the 95 % intervals of an index hold the true index: simulated tumours, counting against sampling.

Each tumour is a square of 3,000 cells/mm² in which the logit of the probability to be positive is a Gaussian field of
standard deviation 0.8. Its covariance at the distance d is exp(−d²/2L²) (smooth) or exp(−d/L) (rough), or the mean of
two smooth ones (two lengths). The true index is the mean over all tumours.

    python benchmarks/coverage.py --runs 500
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import fft, special

from wsiscore.analysis.blocks import sampling
from wsiscore.analysis.intervals import COUNTING, Sampling, score_interval
from wsiscore.cells.table import Cells

PIXEL_UM = 50.0
CELLS_PER_MM2 = 3000
MEAN, SD = float(np.log(0.2 / 0.8)), 0.8  # of the logit

SMOOTH = [("smooth", (length,)) for length in (100, 300, 700)]
OTHERS = [("rough", (100,)), ("rough", (300,)), ("two lengths", (80, 500)), ("two lengths", (100, 700))]
SETTINGS = [*product((3, 6, 10), SMOOTH), *product((6, 10), OTHERS)]

Floats = npt.NDArray[np.float64]


@dataclass
class Coverage:
    """Numbers of runs."""

    runs: int = 0
    counting: int = 0
    sampling: int = 0
    warned: int = 0
    unwarned_hold: int = 0
    block_um: float = 0.0


def true_index() -> float:
    """Return the mean of the logistic of a Gaussian, in percent, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(100 * np.sum(weights * special.expit(MEAN + SD * nodes)) / weights.sum())


def simulate(rng: np.random.Generator, side_mm: float, kind: str, lengths_um: tuple[float, ...]) -> Cells:
    """Return the cells of a tumour."""
    n = round(1000 * side_mm / PIXEL_UM)
    size = fft.next_fast_len(n + int(8 * max(lengths_um) / PIXEL_UM))  # periodic: the far side must not be near
    f = np.fft.fftfreq(size, PIXEL_UM)
    squared = f[:, None] ** 2 + f[None] ** 2
    power = np.zeros_like(squared)
    for length in lengths_um:
        own = np.exp(-2 * (np.pi * length) ** 2 * squared)
        if kind == "rough":
            own = (1 + (2 * np.pi * length) ** 2 * squared) ** -1.5
        power += own / own.mean() / len(lengths_um)
    noise = fft.ifft2(fft.fft2(rng.standard_normal((size, size))) * np.sqrt(power)).real
    p = special.expit(MEAN + SD * noise[:n, :n]).ravel()
    where = np.repeat(np.arange(n * n), rng.poisson(CELLS_PER_MM2 * PIXEL_UM**2 / 1e6, n * n))
    row, col = np.divmod(where, n)
    x, y = (PIXEL_UM * (at + rng.random(len(where))) for at in (col, row))
    positivity = (rng.random(len(where)) < p[where]).astype(float)
    nothing = np.zeros(len(where))
    return Cells(x, y, nothing, positivity, nothing, nothing.astype(np.int64))


def holds(cells: Cells, varies: Sampling, truth: float) -> bool:
    """Return whether the interval of the index holds the truth."""
    low, high = score_interval(int(cells.positive.sum()), len(cells), varies)
    return low <= truth <= high


def measure(side_mm: float, kind: str, lengths_um: tuple[float, ...], runs: int) -> Coverage:
    """Return the coverage over some tumours."""
    rng, truth, found = np.random.default_rng(1), true_index(), Coverage(runs)
    for _ in range(runs):
        cells = simulate(rng, side_mm, kind, lengths_um)
        varies = sampling(cells)
        if varies is None:
            raise SystemExit(f"{side_mm} mm is too small an area for an interval of sampling")
        held = holds(cells, varies, truth)
        found.counting += holds(cells, COUNTING, truth)
        found.sampling += held
        found.warned += varies.lower_bound
        found.unwarned_hold += held and not varies.lower_bound
        found.block_um += varies.block_um / runs
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="tumours of each kind")
    runs = parser.parse_args().runs
    print("| side, mm | kind, L in µm | counting, % | sampling, % | flagged, % | sampling, unflagged, % | block, µm |")
    print("|---|---|---|---|---|---|---|")
    for side_mm, (kind, lengths_um) in SETTINGS:
        found = measure(side_mm, kind, lengths_um, runs)
        without = runs - found.warned
        rest = f"{100 * found.unwarned_hold / without:.0f}" if without >= 20 else "–"
        numbers = (100 * value / runs for value in (found.counting, found.sampling, found.warned))
        print(
            "|",
            " | ".join(
                [str(side_mm), f"{kind}, {' and '.join(map(str, lengths_um))}", *(f"{x:.0f}" for x in numbers), rest]
            ),
            f"| {found.block_um:.0f} |",
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
