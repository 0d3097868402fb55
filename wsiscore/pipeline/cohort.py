"""Many slides: scored by an engine, and gathered in one table and one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from wsiscore.pipeline.engine import Engine
from wsiscore.pipeline.job import out_of
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import try_score
from wsiscore.report.json import read_score
from wsiscore.report.result import Entry
from wsiscore.report.writers import COHORT_WRITERS

__all__ = ["score_slides", "write_cohort"]


def score_slides(paths: Iterable[Path], options: ScoreOptions, engine: Engine) -> Iterator[tuple[Path, Entry]]:
    """Score slides and yield each one's OUT folder and entry, in the order given, as soon as they are done.

    Parameters
    ----------
    paths
        Slides, tile lists or mosaics; taken one by one, so that a pipe may still be filling.
    options
        The same for all.
    engine
        What runs the jobs, one a slide. What is wrong with a slide is in its entry.
    """
    if not engine.local:  # a worker may stand in another folder
        options = replace(options, roi=options.roi and options.roi.absolute())
    jobs = ((path, replace(options, out=out_of(path, options).absolute())) for path in paths)
    return engine.map(partial(_score_job, progress=engine.local), jobs)


def _score_job(job: tuple[Path, ScoreOptions], *, progress: bool) -> tuple[Path, Entry]:
    path, options = job
    assert options.out is not None
    return options.out, try_score(path.absolute(), options, progress=progress)


def write_cohort(out: Path, entries: Sequence[Entry]) -> None:
    """Write ``scores.csv`` and ``index.html`` of all that `out` holds: these entries and what earlier runs left.

    So the jobs of an array that each score one slide into the same folder end with the table of them all.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    new = {entry.folder for entry in entries if entry.folder}
    together = [*entries, *(entry for entry in _earlier(out) if entry.folder not in new)]
    for writer in COHORT_WRITERS:
        writer.write(out / writer.name, together)


def _earlier(out: Path) -> Iterator[Entry]:
    """Yield the entries of the slides whose ``score.json`` lies in a folder of `out`, by name."""
    for path in sorted(out.glob("*/score.json")):
        if score := read_score(path):
            name = path.parent.name
            yield Entry(name, replace(score, slide=name), folder=name)
